"""Sampling on a device: what rocforge.ops.sampling does on the host, for all rows at once, in two or three launches.

A Sampler belongs to an engine. What it needs of a request lies on the host, as a record in the request's slot; a step
copies those of its rows to the device, with masks and biases, in one upload. A step of the same requests after it needs
none: their records are on the device, where the kernels count their steps. The same request draws the same tokens as
on the host, but for a draw that falls within float32's rounding of the border between two tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rocforge.device import tuning
from rocforge.device.kernels import Kernel, launches_overlap
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.strided import blocks, copy_into, float32
from rocforge.ops.sampling import SamplingParams, biases
from rocforge.ops.types import Array, HostArray

VOCABULARY_LIMIT = 1 << 19
NONE_FINITE, NONE_ALLOWED = -1, -2
"""In place of a token: the highest logit is not finite; the mask leaves no token with a finite one."""

RUN = 128
"""Tokens of a run, of which the kernels know the highest logit, as in select.h."""

_INTEGERS = ("step", "top_k", "slot", "counts_row", "edited_row", "mask_start", "bias_start")
_FLOATS = (
    *("temperature", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("top_n_sigma", "typical_p", "xtc_probability", "xtc_threshold"),
)
PARAMETERS = np.dtype(
    [("seed", np.uint64), ("top_p", np.float64)]
    + [(name, np.int32) for name in _INTEGERS]
    + [(name, np.float32) for name in _FLOATS]
)
"""`Parameters` of sampling.hip, 80 bytes."""
_RECORD_WORDS = PARAMETERS.itemsize // 4

Upload = Callable[[HostArray, Array], Any]
"""(array, out): queues a copy to a CuPy array of as many bytes; `Stream.upload`."""

_slices = Kernel("sampling.hip", "sample_slices", "float32*? float32* int32* float32* uint32* int32*? uint32 uint32")
_sums = Kernel("sampling.hip", "sample_sums", "uint64* float32* float32*? float32* uint32* uint32 uint32")
_rows = Kernel(
    "sampling.hip",
    "sample_rows",
    "int32* int32* int32*? float32* float32*? float32* int32* uint64* uint32* uint32 uint32",
)
_chains = Kernel(
    "sampling.hip", "sample_chains", "int32* int32* int32*? float32* float32*? float32* uint32* uint32 uint32"
)
_logprob_sums = Kernel("sampling.hip", "logprob_sums", "float32* float32* float32* int32*? uint32 uint32")
_logprobs = Kernel(
    "sampling.hip",
    "token_logprobs",
    "float32* int32*? float32*? float32* int32* int32*? float32* float32* uint32 uint32 uint32 uint32",
)


class Sampler:
    """Samples the next tokens of requests, each in a slot, on the current device and stream.

    Args:
        vocabulary: how many tokens it has.
        slots: how many there are.

    Attributes:
        last_tokens: int32 CuPy array (slots,): the last token of each slot.

    Raises:
        ValueError: the vocabulary has more than 524,288 tokens.
    """

    def __init__(self, vocabulary: int, slots: int):
        if vocabulary > VOCABULARY_LIMIT:
            raise ValueError(f"sampling: a vocabulary of {vocabulary} tokens; allowed are {VOCABULARY_LIMIT}")
        cupy = cupy_module()
        self._vocabulary, self._runs = vocabulary, blocks(vocabulary, RUN)
        self._records = np.zeros(slots, PARAMETERS)
        self._biases: dict[int, _Biases] = {}
        self._counts = _Counts(vocabulary, slots)
        self.last_tokens = cupy.zeros(slots, np.int32)
        self._highest = cupy.empty((slots, self._runs), np.float32)
        self._best = cupy.empty((slots, self._runs), np.int32)
        self._sums = cupy.empty((slots, self._runs), np.uint64)
        self._staged = cupy.empty(slots * _RECORD_WORDS, np.uint32)
        self._edited: Array = None
        self._queued: _Queued | None = None

    def begin(
        self,
        slot: int,
        params: SamplingParams,
        counts: HostArray | None,
        upload: Upload,
        ends: Collection[int] = (),
    ) -> None:
        """Sample a slot by these parameters from now on.

        Args:
            slot: from 0.
            params: of the request in it.
            counts: int32 (vocabulary,), from `count_tokens`; each launch adds the token that it draws. None where
                nothing depends on the tokens so far.
            upload: copies the counts.
            ends: tokens that end its text.
        """
        self.end(slot)
        self._queued = None
        record = self._records[slot]
        for name in ("top_p", *_FLOATS):
            record[name] = getattr(params, name)
        record["seed"], record["top_k"] = params.drawn_seed & (1 << 64) - 1, min(params.top_k, VOCABULARY_LIMIT)
        if params.xtc_threshold > 0.5:
            record["xtc_probability"] = 0
        record["slot"], record["edited_row"], record["mask_start"], record["bias_start"] = slot, -1, -1, -1
        record["counts_row"] = -1 if counts is None else self._counts.put(slot, counts, upload)
        if params.logit_bias or params.min_tokens:
            record["bias_start"] = 0  # a step says where
            first, later = (_bias_words(biases(params, ends, step)) for step in (0, params.min_tokens))
            self._biases[slot] = _Biases(first, later, params.min_tokens)

    def set_biases(self, slot: int, bias: Mapping[int, float]) -> None:
        """What is added to the logits of a slot's tokens from now on, in place of what `begin` has said."""
        self._queued = None
        self._records[slot]["bias_start"] = 0 if bias else -1
        words = _bias_words(bias)
        self._biases[slot] = _Biases(words, words, 0)

    def end(self, slot: int) -> None:
        """Give back what a slot's request has of memory; no effect on a slot without one."""
        self._counts.remove(slot)
        self._biases.pop(slot, None)

    def __call__(
        self,
        logits: Array,
        slots: Sequence[int],
        steps: Sequence[int],
        masks: Mapping[int, HostArray],
        host_tokens: Array,
        upload: Upload,
    ) -> None:
        """Queue the sampling of a token for each of some slots, into `last_tokens` and `host_tokens`.

        Args:
            logits: float32 CuPy array (rows, vocabulary), not changed: a row for each slot, and any more rows.
            slots: each after `begin`.
            steps: how many tokens the request of each has so far.
            masks: for some of the rows, which tokens may come next: uint32, a bit for each token from the least
                significant on. Tokens past its end may not.
            host_tokens: int32 CuPy array (rows,) or longer, in memory of the host, which stays at its address;
                NONE_FINITE or NONE_ALLOWED in place of a token. In `last_tokens` is some token then.
            upload: copies parameters, masks and biases.

        Raises:
            ValueError: the logits have fewer rows, or another vocabulary.
        """
        rows = len(slots)
        if len(logits) < rows or logits.shape[1] != self._vocabulary:
            raise ValueError(f"sampling: logits of shape {logits.shape} for {rows} rows of {self._vocabulary} tokens")
        if not rows:
            return
        queued = self._queued
        if queued is None or masks or not queued.continues(logits, slots, steps):
            self._queued = None  # its records are overwritten
            queued = self._upload(logits, slots, steps, masks, upload)
            self._queued = queued if queued.repeats else None
        queued.steps = [step + 1 for step in steps]
        address = host_tokens.data.ptr
        if address not in queued.launches:
            queued.launches[address] = self._launches(queued, host_tokens)
        for launch in queued.launches[address]:
            launch()

    def restart(self) -> None:
        """Keep nothing of the last launch, of which the logits are."""
        self._queued = None

    def _launches(self, queued: _Queued, host_tokens: Array) -> list[Callable[[], None]]:
        tuned, sizes, rows = tuning.current(), (self._vocabulary, self._runs), len(queued.slots)
        logits, edited, counts, found = queued.logits, self._edited, self._counts.array, (self._highest, self._best)
        slices, threads = (blocks(self._vocabulary, tuned.sample_slice), rows), (tuned.sample_slice_threads,)
        staged, row_threads = queued.staged, (tuned.sample_row_threads,)
        with launches_overlap():
            launches = [_slices.launch_of(slices, threads, (edited, *found, logits, staged, counts, *sizes))]
            if queued.summed:
                sums = (self._sums, logits, edited, self._highest, staged, *sizes)
                launches.append(_sums.launch_of(slices, threads, sums))
            drawn = (self.last_tokens, host_tokens, counts, logits, edited, *found, self._sums, staged, *sizes)
            launches.append(_rows.launch_of((rows,), row_threads, drawn))
            if queued.chained:
                several = (self.last_tokens, host_tokens, counts, logits, edited, self._highest, staged, *sizes)
                launches.append(_chains.launch_of((rows,), row_threads, several))
        return launches

    def _upload(
        self,
        logits: Array,
        slots: Sequence[int],
        steps: Sequence[int],
        masks: Mapping[int, HostArray],
        upload: Upload,
    ) -> _Queued:
        """Bring the records of the rows to the device, with what they point to behind them."""
        records = self._records[np.asarray(slots)]
        records["step"] = steps
        parts, end = [records.view(np.uint32)], records.nbytes // 4
        for row, mask in masks.items():
            parts.append(self._padded(mask))
            records["mask_start"][row], end = end, end + len(parts[-1])
        biased = np.flatnonzero(records["bias_start"] >= 0).tolist()
        for row in biased:
            parts.append(self._biases[slots[row]].at(steps[row]))
            records["bias_start"][row], end = end, end + len(parts[-1])
        starts = [records[name] >= 0 for name in ("mask_start", "bias_start", "counts_row")]
        edited = np.flatnonzero(np.logical_or.reduce(starts) & (records["temperature"] > 0))
        records["edited_row"][edited] = np.arange(len(edited))
        self._reserve(end, len(edited))
        staged = self._staged[:end]
        upload(np.concatenate(parts), staged)
        random = records["temperature"] > 0
        chained = (records["top_n_sigma"] > 0) | (records["typical_p"] < 1) | (records["xtc_probability"] > 0)
        every = (records["top_k"] <= 0) | (records["top_k"] >= self._vocabulary)
        summed, several = bool((random & ~chained & every).any()), bool((random & chained).any())
        return _Queued(float32(logits), list(slots), staged, summed, several, not masks and not biased)

    def _padded(self, mask: HostArray) -> HostArray:
        """A mask with a bit for each token."""
        words = np.zeros(blocks(self._vocabulary, 32), np.uint32)
        words[: len(mask)] = mask[: len(words)]
        return words

    def _reserve(self, words: int, edited: int) -> None:
        """Make room for that many words of an upload, and edited rows."""
        cupy = cupy_module()
        if words > len(self._staged):
            self._staged = cupy.empty(_power_of_two(words), np.uint32)
        if edited and (self._edited is None or edited > len(self._edited)):
            self._edited = None  # its memory is free for the larger one
            shape = min(_power_of_two(edited), len(self._records)), self._runs * RUN
            self._edited = cupy.empty(shape, np.float32)


@dataclass
class _Queued:
    """The sampling of some slots from some logits, once their records are on the device.

    Attributes:
        logits: as the kernels take them: a copy of some that are not float32, which no later step has.
        slots: of their rows.
        staged: the records.
        summed: whether the weights of all tokens count for one of them.
        chained: whether one has several truncations.
        repeats: whether the records hold for the steps after, whose numbers the kernels count.
        steps: that the records are of.
        launches: by the address that the tokens go to.
    """

    logits: Array
    slots: list[int]
    staged: Array
    summed: bool
    chained: bool
    repeats: bool
    steps: list[int] = field(default_factory=list)
    launches: dict[int, list[Callable[[], None]]] = field(default_factory=dict)

    def continues(self, logits: Array, slots: Sequence[int], steps: Sequence[int]) -> bool:
        """Whether that is asked for once more, each slot's next step."""
        return self.logits is logits and self.slots == slots and self.steps == steps


class _Biases(NamedTuple):
    """What is added to a slot's logits, as the kernel reads it: before `min_tokens` of its tokens, and from then on."""

    first: HostArray
    later: HostArray
    min_tokens: int

    def at(self, step: int) -> HostArray:
        return self.first if step < self.min_tokens else self.later


def _bias_words(bias: Mapping[int, float]) -> HostArray:
    """Their count, the ids and the values, in words of 32 bits."""
    values = np.fromiter(bias.values(), np.float32, len(bias))
    return np.concatenate([np.array([len(bias), *bias], np.uint32), values.view(np.uint32)])


class _Counts:
    """Counts of tokens, a row for each slot that has any.

    Attributes:
        array: int32 CuPy array (rows, vocabulary), with as many rows as were needed at a time so far, rounded up to a
            power of two; None before.
    """

    def __init__(self, vocabulary: int, most: int):
        self.array: Array = None
        self._vocabulary, self._most = vocabulary, most
        self._rows: dict[int, int] = {}  # by slot
        self._free: list[int] = []

    def put(self, slot: int, counts: HostArray, upload: Upload) -> int:
        """Put the counts of a slot that has none in a row; returns which."""
        if not self._free:
            self._grow()
        row = self._rows[slot] = self._free.pop()
        upload(counts, self.array[row])
        return row

    def remove(self, slot: int) -> None:
        """Free the row of a slot; no effect where it has none."""
        if slot in self._rows:
            self._free.append(self._rows.pop(slot))

    def _grow(self) -> None:
        used, old = len(self._rows), self.array
        size = min(_power_of_two(used + 1), self._most)
        self.array = cupy_module().empty((size, self._vocabulary), np.int32)
        if old is not None:
            copy_into(self.array[:used], old)
        self._free = list(range(used, size))


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def count_tokens(prompt: Sequence[int], output: Sequence[int], vocabulary: int) -> HostArray:
    """The counts of a request: int32 (vocabulary,), twice a token's uses in output, plus one if in prompt."""
    counts = 2 * np.bincount(np.asarray(output, np.int64), minlength=vocabulary).astype(np.int32)
    counts[np.asarray(prompt, np.int64)] += 1
    return counts


def logprobs_device(logits: Array, tokens: Array, count: int, places: Array = None) -> tuple[Array, Array, Array]:
    """`rocforge.ops.sampling.logprobs` of rows, on the device.

    Args:
        logits: float32 CuPy array (.., vocabulary), unchanged by penalties.
        tokens: int32 (..,); what is reported for those below zero means nothing.
        count: how many of the most likely tokens to report, at most the vocabulary and 1024.
        places: int32 (2, rows): the rows of the logits, and the places in `tokens`, to report on; None for all.

    Returns:
        float32 (rows,) of the tokens; int32 (rows, count), ids of the most likely ones in descending order; float32
        (rows, count), theirs.
    """
    cupy, logits = cupy_module(), float32(logits)
    vocabulary, rows = logits.shape[1], len(logits) if places is None else places.shape[1]
    if not 0 <= count <= min(vocabulary, 1024) or vocabulary > VOCABULARY_LIMIT:
        raise ValueError(f"logprobs: count is {count} for logits of shape {logits.shape}")
    tuned, runs = tuning.current(), blocks(vocabulary, RUN)
    highest, sums = cupy.empty((rows, runs), np.float32), cupy.empty((rows, runs), np.float32)
    chosen = cupy.empty(rows, np.float32)
    ids, values = cupy.empty((rows, count), np.int32), cupy.empty((rows, count), np.float32)
    slices = blocks(vocabulary, tuned.sample_slice), rows
    with launches_overlap():
        _logprob_sums(slices, (tuned.sample_slice_threads,), (highest, sums, logits, places, vocabulary, runs))
        args = (chosen, ids, values, logits, tokens, places, highest, sums, rows, vocabulary, runs, count)
        _logprobs((rows,), (tuned.sample_row_threads,), args)
    return chosen, ids, values
