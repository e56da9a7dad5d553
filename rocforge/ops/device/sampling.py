"""Sampling on a device: what rocforge.ops.sampling does on the host, for all rows of a batch at once, in two launches.

How each row is sampled lies in device memory, and its step and its token counts are advanced there, so that the
launches can be replayed. The same request draws the same tokens as on the host, but for a draw that falls within
float32's rounding of the border between two tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rocforge.device import tuning
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.strided import blocks, copy_into, float32
from rocforge.ops.sampling import SamplingParams
from rocforge.ops.types import Array, HostArray

VOCABULARY_LIMIT = 1 << 19

_INTEGERS = ("step", "top_k", "counts_row", "bias_start", "bias_count")
_FLOATS = ("temperature", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
PARAMETERS = np.dtype(
    [("seed", np.uint64), ("top_p", np.float64)]
    + [(name, np.int32) for name in _INTEGERS]
    + [(name, np.float32) for name in _FLOATS]
    + [("reserved", np.int32, 2)]
)
"""`Parameters` of sampling.hip, 64 bytes."""

_slices = Kernel(
    "sampling.hip", "sample_slices", "float32* float32* int32* float32* uint8* int32*? int32*? float32*? uint32 uint32"
)
_rows = Kernel(
    "sampling.hip", "sample_rows", "int32* int32*? int32*? uint32 uint8* int32*? float32* float32* int32* uint32 uint32"
)
_logprobs = Kernel("sampling.hip", "token_logprobs", "float32* int32*? float32*? float32* int32* uint32 uint32")


class Sampler:
    """How the rows of a batch are sampled, on the current device.

    Args:
        params: for each row.
        steps: how many tokens each row's request has so far.
        counts_rows: for each row, its row in `counts`, or -1 where nothing depends on the tokens so far.
        counts: int32 CuPy array (.., vocabulary), from `count_tokens`; or None where counts_rows are all -1.
        room: biases that there is room for, at least.

    Attributes:
        parameters: uint8 CuPy array (rows, 64), PARAMETERS for each row.
        biases: how many biases there is room for.
    """

    def __init__(
        self,
        params: Sequence[SamplingParams],
        steps: Sequence[int],
        counts_rows: Sequence[int] | None = None,
        counts: Array = None,
        room: int = 0,
    ):
        cupy = cupy_module()
        rows = np.zeros(len(params), PARAMETERS)
        biases = [p.logit_bias for p in params]
        for row, p, step in zip(rows, params, steps, strict=True):
            row["seed"], row["step"], row["top_k"] = p.drawn_seed & (1 << 64) - 1, step, min(p.top_k, VOCABULARY_LIMIT)
            for name in ("top_p", *_FLOATS):
                row[name] = getattr(p, name)
        rows["counts_row"] = -1 if counts_rows is None else counts_rows
        rows["bias_count"] = [len(bias) for bias in biases]
        rows["bias_start"] = np.cumsum(rows["bias_count"]) - rows["bias_count"]
        self.parameters = cupy.asarray(rows.view(np.uint8).reshape(len(rows), -1))
        self.counts, self._bias_ids, self._bias_values = counts, None, None
        ids = [token for bias in biases for token in bias]
        values = [value for bias in biases for value in bias.values()]
        self.biases = max(len(ids), room)
        if self.biases:
            spare = [0] * (self.biases - len(ids))
            self._bias_ids = cupy.asarray(np.array(ids + spare, np.int32))
            self._bias_values = cupy.asarray(np.array(values + spare, np.float32))

    def become(self, other: Sampler) -> None:
        """Take over how another one of the same sizes samples, in this one's memory, where captured launches see it."""
        mine, others = ((s.parameters, s.counts, s._bias_ids, s._bias_values) for s in (self, other))
        for target, source in zip(mine, others, strict=True):
            if target is not None:
                copy_into(target, source)

    def __call__(self, logits: Array, tokens: Array = None, host_tokens: Array = None, step: Array = None) -> Array:
        """The next token of each row; its step, and its counts, go up by one.

        Args:
            logits: float32 CuPy array (rows, vocabulary); not changed.
            tokens: int32 (rows,), where they are put; None for a new array.
            host_tokens: int32 (2, rows), memory of the host where they are put as well; or None.
            step: int32, shape (1,): they go to the first row of that where it is even, else to the second.

        Returns:
            int32, shape (rows,); -1 where the highest logit is not finite, but with `host_tokens` only there, since the
            next step takes these.

        Raises:
            ValueError: the vocabulary has more than 524,288 tokens, or the rows are not those of `params`.
        """
        cupy, logits = cupy_module(), float32(logits)
        rows, vocabulary = logits.shape
        if rows != len(self.parameters) or vocabulary > VOCABULARY_LIMIT:
            raise ValueError(f"sample: logits of shape {logits.shape} for {len(self.parameters)} rows")
        tuned = tuning.current()
        count = blocks(vocabulary, tuned.sample_slice)
        scaled = cupy.empty((rows, count * tuned.sample_slice), np.float32)
        highest, best = cupy.empty((rows, count), np.float32), cupy.empty((rows, count), np.int32)
        tokens = cupy.empty(rows, np.int32) if tokens is None else tokens
        biases = (self._bias_ids, self._bias_values)
        slices = (scaled, highest, best, logits, self.parameters, self.counts, *biases, vocabulary, count)
        _slices((count, rows), (tuned.sample_slice_threads,), slices)
        drawn = (rows, self.parameters, self.counts, scaled, highest, best, vocabulary, count)
        _rows((rows,), (tuned.sample_row_threads,), (tokens, host_tokens, step, *drawn))
        return tokens


def count_tokens(prompt: Sequence[int], output: Sequence[int], vocabulary: int) -> HostArray:
    """A row of counts for a request: int32 (vocabulary,), twice a token's uses in output, plus one if in prompt."""
    counts = 2 * np.bincount(np.asarray(output, np.int64), minlength=vocabulary).astype(np.int32)
    counts[np.asarray(prompt, np.int64)] += 1
    return counts


def logprobs_device(logits: Array, tokens: Array, count: int) -> tuple[Array, Array, Array]:
    """`rocforge.ops.sampling.logprobs` of each row, on the device.

    Args:
        logits: float32 CuPy array (rows, vocabulary), unchanged by penalties.
        tokens: int32 (rows,); what is reported for -1 means nothing.
        count: how many of the most likely tokens to report, at most the vocabulary and 1024.

    Returns:
        float32 (rows,) of the tokens; int32 (rows, count), ids of the most likely ones in descending order; float32
        (rows, count), theirs.
    """
    cupy, logits = cupy_module(), float32(logits)
    rows, vocabulary = logits.shape
    if not 0 <= count <= min(vocabulary, 1024) or vocabulary > VOCABULARY_LIMIT:
        raise ValueError(f"logprobs: count is {count} for logits of shape {logits.shape}")
    chosen = cupy.empty(rows, np.float32)
    ids, values = cupy.empty((rows, count), np.int32), cupy.empty((rows, count), np.float32)
    _logprobs((rows,), (tuning.current().sample_row_threads,), (chosen, ids, values, logits, tokens, vocabulary, count))
    return chosen, ids, values
