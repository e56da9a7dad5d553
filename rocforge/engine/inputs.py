"""StepInputs: the model's inputs of a step on a device, at addresses that captured launches know.

The host describes a step in one array, which is uploaded; the kernel `begin_step` makes the inputs of it. A request's
block tables stay on the device while it runs, so that a step brings only blocks that were added; so does its last
token, which the host need not have read. A step in which the requests of the one before go on decoding brings nothing.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rocforge.device import tuning
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.engine.request import Request
from rocforge.engine.scheduler import ScheduledChunk
from rocforge.engine.state import NONE, SequenceState
from rocforge.nn.batch import Batch, Paging
from rocforge.nn.cache import KVCache
from rocforge.nn.low_rank import TokenAdapters
from rocforge.ops.device.strided import blocks

begin_step = Kernel("step.hip", "begin_step")

_NAMES = ("ids", "positions", "query_starts", "lengths", "state_slots", "rows", "adapters", "row_adapters", "slots",
          "tables")  # fmt: skip
_DECODE_GRID = [1, 2, 4, 8, 16, 32, 64, *range(96, 256, 32), *range(256, 512, 64), *range(512, 1 << 16, 128)]
_PROMPT_GRID = [16, 32, 64, 96, *range(128, 512, 64), *range(512, 2048, 128), *range(2048, 4096, 256)]
_PROMPT_GRID += range(4096, 1 << 17, 512)


def decode_sizes(most: int) -> list[int]:
    """The numbers of requests, up to `most`, that decode steps are captured for."""
    return [*itertools.takewhile(lambda size: size < most, _DECODE_GRID), most]


def prompt_sizes(most: int) -> list[int]:
    """The numbers of tokens, up to `most`, that steps with prompts are captured for."""
    return [*itertools.takewhile(lambda size: size < most, _PROMPT_GRID), most]


@dataclass(frozen=True)
class StepShape:
    """What a captured step is made for.

    Attributes:
        tokens: of the step. Fewer are filled up.
        rows: whose logits are computed, at most; as many as requests, at most.
        mixed: whether requests may have several tokens. Else each of the rows is a request's one token.
        longest: tokens of the longest sequence, at most, where attention patterns have as many keys; 0: of any length.
        expanded: blocks of latents that become keys and values, at most; 0: latents serve as they are.
        fewest: tokens that each request has at least, and what fills up.
    """

    tokens: int
    rows: int
    mixed: bool
    longest: int = 0
    expanded: int = 0
    fewest: int = 1

    @property
    def sequences(self) -> int:
        """With one of length 0 that has the tokens which fill up a mixed step."""
        return self.rows + self.mixed

    def sizes(self, groups: int, width: int) -> list[int]:
        """Elements of each input, in the order of `StepInputs.views`."""
        tokens, sequences, rows = self.tokens, self.sequences, self.rows
        fixed = [tokens, tokens, sequences + 1, sequences, sequences, rows, tokens, rows]
        return [*fixed, groups * tokens, groups * sequences * width]


class _Begun(NamedTuple):
    """The step whose inputs are there, where requests have a token each: the requests, where each goes on, where the
    device has its state, and what begins the next such step. `staged` is kept for that; requests are not."""

    shape: StepShape
    requests: list[weakref.ref[Request]]
    stops: list[int]
    places: list[tuple[int, int]]
    launch: Callable[[], None]
    staged: Any

    def continues(self, shape: StepShape, chunks: Sequence[ScheduledChunk]) -> bool:
        """Whether a step is of the same requests, each with its next token, in blocks that the device knows."""
        if shape != self.shape or [chunk.start for chunk in chunks] != self.stops:
            return False
        return all(
            chunk.request is request()
            and ((state := chunk.request.state).row, state.slot) == place
            and state.uploaded == [*map(len, state.tables)]
            for chunk, request, place in zip(chunks, self.requests, self.places, strict=True)
        )

    def next(self) -> _Begun:
        """The step after."""
        return self._replace(stops=[stop + 1 for stop in self.stops])


class StepInputs:
    """The inputs of steps, one step at a time: those of all shapes share the memory.

    Args:
        cache: of the model, on the current device.
        shapes: of the steps that may come.
        rows: requests that run at a time.
        width: blocks of the longest sequence.
        last_tokens: int32 CuPy array (rows,): the last token of the request in each row.
    """

    def __init__(self, cache: KVCache, shapes: Sequence[StepShape], rows: int, width: int, last_tokens: Any):
        self._cache, self._width, self._groups, self.last_tokens = cache, width, len(cache.paged), last_tokens
        most = max(sum(shape.sizes(self._groups, width)) for shape in shapes)
        self._memory = cupy_module().zeros(most, np.int32)
        self._kept = cupy_module().zeros((self._groups, rows, width), np.int32)
        self._begun: _Begun | None = None

    def views(self, shape: StepShape) -> list[Any]:
        """int32 CuPy arrays: ids, positions, query_starts, lengths, state_slots, rows, adapters, row_adapters, slots,
        tables."""
        ends = [*itertools.accumulate(shape.sizes(self._groups, self._width))]
        return [self._memory[start:end] for start, end in itertools.pairwise([0, *ends])]

    def batch(self, shape: StepShape) -> tuple[Any, Batch]:
        """The ids, and the batch, that a step of this shape calls the model with."""
        ids, positions, query_starts, lengths, state_slots, rows, *adapters, slots, tables = self.views(shape)
        slots = slots.reshape(self._groups, shape.tokens)
        tables = tables.reshape(self._groups, shape.sequences, self._width)
        paging = [Paging(*pair) for pair in zip(slots, tables, strict=True)]
        queries = (shape.fewest, shape.tokens if shape.mixed else 1)
        wanted = rows if shape.mixed else None
        longest = shape.longest or self._width * self._cache.block_size
        sequences = (positions, query_starts, lengths, queries, longest, paging, state_slots)
        return ids, Batch(self._cache, *sequences, wanted, TokenAdapters(*adapters), shape.expanded)

    def begin(self, shape: StepShape, chunks: Sequence[ScheduledChunk], staged: Any) -> None:
        """Queue what makes the inputs of an upload of what `stage` gives for the same chunks; of None, those of the
        step that follows the one before."""
        if staged is None:
            assert self._begun is not None
            self._begun = self._begun.next()
            self._begun.launch()
            return
        threads = tuning.current().elementwise_threads
        grid = blocks(max(shape.tokens, shape.sequences + 1), threads) + self._groups * shape.sequences
        args = {"staged": staged, "last_tokens": self.last_tokens, **dict(zip(_NAMES, self.views(shape), strict=True))}
        args |= {"kept": self._kept, "tokens": shape.tokens, "sequences": shape.sequences, "wanted": shape.rows}
        args |= {"groups": self._groups, "width": self._width, "kept_rows": self._kept.shape[1]}
        args |= {"block_size": self._cache.block_size, "one_each": int(not shape.mixed)}
        launch = begin_step.launch_of((grid,), (threads,), args)
        launch()
        requests = [chunk.request for chunk in chunks]
        for request in requests:
            request.state.uploaded = list(map(len, request.state.tables))
        self._begun = None
        if not shape.mixed:
            places = [(request.state.row, request.state.slot) for request in requests]
            stops = [chunk.stop for chunk in chunks]
            self._begun = _Begun(shape, [*map(weakref.ref, requests)], stops, places, launch, staged)

    def stage(self, shape: StepShape, chunks: Sequence[ScheduledChunk]) -> np.ndarray | None:
        """What a step is, as `begin_step` in step.hip reads it; None where it follows from the step before, whose
        requests all go on decoding.

        Args:
            chunks: of the step; none: all of its tokens are idle.
        """
        if self._begun and self._begun.continues(shape, chunks):
            return None
        states = [chunk.request.state for chunk in chunks]
        n, sequences = len(chunks), shape.sequences
        starts, counts = np.array([(chunk.start, chunk.tokens) for chunk in chunks], np.int32).reshape(n, 2).T
        ends, total = counts.cumsum(dtype=np.int32), int(counts.sum())
        ids, positions, sequence = np.zeros((3, shape.tokens), np.int32)
        lengths, kept_row = np.zeros((2, sequences), np.int32)
        (state_slots, adapters), rows = np.full((2, sequences), NONE, np.int32), np.zeros(shape.rows, np.int32)
        query_starts = np.arange(sequences + 1, dtype=np.int32)
        if shape.mixed:  # sequences without requests have no tokens, and the last one those that fill up
            query_starts[1:-1], query_starts[-1], sequence[:] = total, shape.tokens, sequences - 1
        else:
            sequence[:] = query_starts[:-1]
        ids[:total] = [id for chunk in chunks for id in _ids(chunk)]
        positions[:total] = np.arange(total) + np.repeat(starts - ends + counts, counts)
        sequence[:total] = np.repeat(np.arange(n), counts)
        query_starts[1 : n + 1], lengths[:n] = ends, starts + counts
        state_slots[:n], kept_row[:n] = [state.slot for state in states], [state.row for state in states]
        adapters[:n] = [NONE if chunk.request.lora is None else chunk.request.lora.id for chunk in chunks]
        wanted = [chunk.needs_logits for chunk in chunks]
        rows[: sum(wanted)] = ends[np.array(wanted, bool)] - 1
        parts = (ids, positions, sequence, query_starts, lengths, state_slots, kept_row, adapters, rows)
        return np.concatenate([*parts, *self._staged_tables(states, sequences)])

    def _staged_tables(self, states: Sequence[SequenceState], sequences: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each table, of each group and sequence: its blocks, those that the device has, and where among the blocks
        that it lacks, which are the second result, its own begin."""
        tables = np.zeros((3, self._groups, sequences), np.int32)
        added: list[int] = []
        for group in range(self._groups):
            begin = len(added)
            lengths = [len(state.tables[group]) for state in states]
            known = [state.uploaded[group] for state in states]
            for state, length, have in zip(states, lengths, known, strict=True):
                if have < length:
                    added += state.tables[group][have:]
            lacking = np.subtract(lengths, known)
            tables[:, group, : len(states)] = lengths, known, begin + lacking.cumsum() - lacking
        return tables.reshape(-1), np.maximum(np.array(added, np.int32), 0)


def _ids(chunk: ScheduledChunk) -> Sequence[int]:
    """Ids of a chunk's tokens; of one that the host has not read, -1 - its request's row."""
    request = chunk.request
    if chunk.start >= request.known:
        return (-1 - request.state.row,)
    ids = request.tokens(chunk.start, chunk.stop)
    return ids if len(ids) == chunk.tokens else [*ids, -1 - request.state.row]
