"""Decode steps on a device: one token for each request, as a replayed graph that feeds itself.

Tokens, positions, block tables and sampling parameters are in device memory, and a step advances them. So the host can
queue a step before it knows the previous one's tokens, and a step is one call: the launch of a graph. A graph is
captured for each batch size, rounded up to a power of two; ROCFORGE_GRAPHS=0 queues the same kernels one by one.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.device.streams import Stream
from rocforge.engine.capture import GraphRecorder
from rocforge.engine.request import Request
from rocforge.engine.sampler import DeviceSampler, PendingTokens, SampledToken
from rocforge.engine.state import NONE
from rocforge.nn.batch import Batch, Paging
from rocforge.nn.cache import KVCache
from rocforge.nn.observe import Observer, observations_recorded, replay
from rocforge.nn.transformer import Transformer
from rocforge.ops.device.strided import a_thread_each

ATTEMPTS = 3
"""Attempts to capture a step: another thread's calls can invalidate a capture."""

advance_decode = Kernel("decode.hip", "advance_decode", f"{'int32* ' * 6}uint32 uint32 uint32 uint32")


@dataclass(frozen=True)
class PendingStep:
    """A step that is queued.

    Attributes:
        requests: whose step it is.
        sampled: their tokens.
    """

    requests: list[Request]
    sampled: PendingTokens

    def tokens(self) -> list[SampledToken]:
        """The token of each request; waits for the step."""
        return self.sampled.get()


class Decoder:
    """Queues decode steps on a stream, which must be the current one.

    Args:
        stream: on a GPU.
        model: on that GPU.
        cache: its cache, there.
        width: blocks of the longest sequence.
        max_requests: in a step.
    """

    def __init__(self, stream: Stream, model: Transformer, cache: KVCache, width: int, max_requests: int):
        self._stream, self._model, self._cache, self._width = stream, model, cache, width
        self._graphs = os.environ.get("ROCFORGE_GRAPHS", "1") != "0"
        self._recorder = GraphRecorder(stream.device)
        self._plans: dict[int, _Plan] = {}  # the last used is the last
        self._requests: list[Request] = []
        self._steps: list[int] = []
        self._sampler = DeviceSampler(stream, model.config.vocabulary, _rows_for(max_requests))
        self._table_lengths: list[list[int]] = []
        weakref.finalize(self, _drop, self._plans, self._recorder).atexit = False

    def launch(self, requests: Sequence[Request]) -> PendingStep:
        """Queue a step: each request's next token from its last one.

        If it is of the same requests as the step before, it needs none of that one's tokens on the host.

        Args:
            requests: each has one token that is not in the cache, and the blocks for it.
        """
        if requests != self._requests:
            self._begin(requests)
        plan, lengths = next(reversed(self._plans.values())), _table_lengths(requests)
        if self._table_lengths != lengths:
            plan.set_tables(requests, self._stream)
            self._table_lengths = lengths
        plan.run(self._graphs)
        sampled = self._sampler.launch(plan.logits, requests, range(len(requests)), self._steps)
        self._steps = [step + 1 for step in self._steps]
        return PendingStep(self._requests, sampled)

    def sample(self, logits: Any, requests: Sequence[Request]) -> list[SampledToken]:
        """The next token of each request, from its row of the logits of another step."""
        steps = [len(request.output) for request in requests]
        return self._sampler.launch(logits, requests, range(len(requests)), steps).get()

    def forget(self) -> None:
        """Start the next step from the host's tokens, not from the previous step's."""
        self._requests = []

    @property
    def memory_reserved(self) -> int:
        """Bytes that the graphs' pool has taken of the device."""
        return self._recorder.memory_reserved

    def trim(self) -> None:
        """Drop the graphs, and free their memory. Nothing may be in flight."""
        self.forget()
        _drop(self._plans, self._recorder)

    def _begin(self, requests: Sequence[Request]) -> None:
        rows = _rows_for(len(requests))
        tokens = self._sampler.last_tokens[:rows]
        plan = self._plans.pop(rows, None) or _Plan(self._model, self._cache, self._width, tokens, self._recorder)
        plan.begin(requests, self._stream)
        self._plans[rows], self._requests = plan, list(requests)
        self._steps = [len(request.output) for request in requests]
        self._table_lengths = _table_lengths(requests)


def _rows_for(requests: int) -> int:
    return 1 << (requests - 1).bit_length()


def _table_lengths(requests: Sequence[Request]) -> list[list[int]]:
    return [[len(table) for table in request.state.tables] for request in requests]


def _drop(plans: dict[Any, _Plan], recorder: GraphRecorder) -> None:
    """A graph's memory is free once its plan has gone."""
    plans.clear()
    recorder.free_unused()


class _Plan:
    """The memory of a decode step of some size, and its graph.

    Args:
        tokens: int32 (rows,): the last token of each row.

    Attributes:
        logits: of the last step.
    """

    def __init__(self, model: Transformer, cache: KVCache, width: int, tokens: Any, recorder: GraphRecorder):
        rows, groups, cupy = len(tokens), len(cache.paged), cupy_module()
        self._model, self._cache, self._tokens, self._recorder = model, cache, tokens, recorder
        self._inputs = cupy.zeros((5 + groups + groups * width, rows), np.int32)
        self._next, self._positions, self._lengths, step, self._state_slots = self._inputs[:5]
        self._step_number, self._slots = step[:1], self._inputs[5 : 5 + groups]
        self._tables = self._inputs[5 + groups :].reshape(groups, rows, width)
        self._starts = cupy.asarray(np.arange(rows + 1, dtype=np.int32))
        self.logits: Any = None
        self._warm, self._attempts, self._fused = False, ATTEMPTS, model.fused
        self._graph: tuple[Any, Any] | None = None
        self._observed: list[tuple[Observer, Any]] = []

    def begin(self, requests: Sequence[Request], stream: Stream) -> None:
        """Put these requests in the rows, from the first; the rest are idle."""
        inputs, tables = np.zeros(self._inputs.shape, np.int32), self._padded_tables(requests)
        tokens, positions, slots = np.zeros(self._tokens.shape, np.int32), inputs[0], inputs[4]
        positions[:], slots[:] = -1, NONE
        for row, request in enumerate(requests):
            tokens[row], positions[row] = request.tokens(request.length - 1, request.length)[0], request.length - 1
            slots[row] = request.state.slot
        inputs[5 + len(tables) :] = tables.reshape(-1, inputs.shape[1])
        stream.upload(inputs, out=self._inputs)
        stream.upload(tokens, out=self._tokens)

    def set_tables(self, requests: Sequence[Request], stream: Stream) -> None:
        """Upload the requests' block tables, between two steps."""
        stream.upload(self._padded_tables(requests), out=self._tables)

    def _padded_tables(self, requests: Sequence[Request]) -> np.ndarray:
        tables = np.zeros(self._tables.shape, np.int32)
        for row, request in enumerate(requests):
            for group, table in enumerate(request.state.tables):
                tables[group, row, : len(table)] = table
        return np.maximum(tables, 0)

    def run(self, graphs: bool) -> None:
        """Queue a step. The first is run kernel by kernel, which compiles them; the second is captured.

        So is the first, and the second, after a module of the model has been replaced, observed or adapted.
        """
        if self._fused is not self._model.fused:
            self._fused, self._warm, self._graph, self._attempts = self._model.fused, False, None, ATTEMPTS
        with self._recorder.memory():
            if graphs and self._warm and self._attempts and self._graph is None:
                with observations_recorded() as self._observed:
                    self._graph = self._recorder.capture(self._step)
                self._attempts -= 1
            if self._graph is None:
                self.logits, self._warm = self._step(), True
        if self._graph is not None:
            graph, self.logits = self._graph
            graph.launch()
            replay(self._observed)

    def _step(self) -> Any:
        groups, rows, width = self._tables.shape
        args = (self._next, self._positions, self._lengths, self._step_number, self._slots, self._tables)
        advance_decode(*a_thread_each(rows), (*args, groups, rows, width, self._cache.block_size))
        paging = [Paging(*pair) for pair in zip(self._slots, self._tables, strict=True)]
        batch = Batch(self._cache, self._positions, self._starts, self._lengths, (1, 1), paging, self._state_slots)
        return self._model(self._tokens, batch)
