"""The packed types of a KV cache's keys and values, by the names that llama.cpp has for them.

A block of a cache holds, for each head, the rows of its tokens, one after another, and behind them their scales:
float16, one for 32 elements. So a kernel reads both in whole words.

Sources: q8_0 and q4_0: ggml, https://github.com/ggml-org/ggml; fp8_e4m3: Micikevicius et al.,
https://arxiv.org/abs/2209.05433; Hadamard matrices: Ashkboos et al., QuaRot, https://arxiv.org/abs/2404.00456.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rocforge.formats.quantizers.search import reciprocal, signed_peak

RUN = 32
"""Elements that share a scale."""
MOST_SPREAD = 128
"""The largest Hadamard matrix that heads are multiplied with."""
FP8_MAX = 448.0

Codes = tuple[np.ndarray, np.ndarray | None]
"""uint8 (..., bytes of a row), and float16 scales (..., runs of a row) where the type has them."""


@dataclass(frozen=True)
class PackedType:
    """A type of less than 16 bits an element.

    Attributes:
        name: llama.cpp's.
        bits: an element's, without the scales.
        scaled: whether runs of 32 elements have a scale.
        spread: whether queries and keys are multiplied with a Hadamard matrix first: `spread`.
        encode: float32 (..., dim) as codes and scales.
        decode: those as float32 (..., dim).
    """

    name: str
    bits: int
    scaled: bool
    spread: bool
    encode: Callable[[np.ndarray], Codes]
    decode: Callable[[np.ndarray, np.ndarray | None], np.ndarray]

    def row_nbytes(self, dim: int) -> int:
        """Bytes of a head of one token, without its scales."""
        return dim * self.bits // 8

    def runs(self, dim: int) -> int:
        """Scales of a head of one token."""
        return dim // RUN if self.scaled else 0

    def block_nbytes(self, dim: int, block_size: int) -> int:
        """Bytes of a head in a block of so many tokens."""
        return block_size * (self.row_nbytes(dim) + 2 * self.runs(dim))

    def holds(self, dim: int) -> bool:
        """Whether a head of so many elements is whole runs."""
        return not self.scaled or dim % RUN == 0


def _runs(x: np.ndarray) -> np.ndarray:
    return x.reshape(*x.shape[:-1], -1, RUN)


def _encode_q8_0(x: np.ndarray) -> Codes:
    runs = _runs(x)
    scales = np.abs(runs).max(axis=-1) / np.float32(127)
    codes = np.rint(runs * reciprocal(scales)[..., None]).astype(np.int8)
    return codes.view(np.uint8).reshape(x.shape), scales.astype(np.float16)


def _decode_q8_0(codes: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    assert scales is not None
    values = _runs(codes.view(np.int8)) * scales[..., None].astype(np.float32)
    return values.reshape(codes.shape)


def _encode_q4_0(x: np.ndarray) -> Codes:
    """Of a run, what is largest in size becomes -8."""
    runs = _runs(x)
    scales = signed_peak(np.moveaxis(runs, -1, 0)) / np.float32(-8)
    codes = np.minimum(runs * reciprocal(scales)[..., None] + np.float32(8.5), 15).astype(np.uint8)
    halves = codes.reshape(*x.shape[:-1], -1, 2, 8)  # elements b and b + 8 of 16 are in one byte
    packed = halves[..., 0, :] | halves[..., 1, :] << 4
    return packed.reshape(*x.shape[:-1], -1), scales.astype(np.float16)


def _decode_q4_0(codes: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    assert scales is not None
    packed = codes.reshape(*codes.shape[:-1], -1, 1, 8)
    elements = np.concatenate([packed & 15, packed >> 4], axis=-2).astype(np.float32) - 8
    values = _runs(elements.reshape(*codes.shape[:-1], -1)) * scales[..., None].astype(np.float32)
    return values.reshape(*codes.shape[:-1], -1)


def _encode_fp8(x: np.ndarray) -> Codes:
    """To nearest even, at most 448 either way; there is no negative zero."""
    size = np.minimum(np.abs(x), np.float32(FP8_MAX))
    exponent = np.maximum(np.frexp(np.maximum(size, 2**-9))[1], -5)  # below 2 ** -6 steps are the same
    codes = np.rint(np.ldexp(size, 4 - exponent)).astype(np.uint8) + 8 * (exponent + 5).astype(np.uint8)
    return np.where((x < 0) & (codes > 0), codes | 0x80, codes).astype(np.uint8), None


@functools.cache
def _fp8_values() -> np.ndarray:
    """The float of each byte."""
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    values = np.where(exponent, np.ldexp(8.0 + mantissa, exponent - 10), mantissa / 512).astype(np.float32)
    return np.concatenate([values, -values])


def _decode_fp8(codes: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    return _fp8_values()[codes]


PACKED = {
    "q8_0": PackedType("q8_0", 8, True, False, _encode_q8_0, _decode_q8_0),
    "q4_0": PackedType("q4_0", 4, True, True, _encode_q4_0, _decode_q4_0),
    "fp8_e4m3": PackedType("fp8_e4m3", 8, False, False, _encode_fp8, _decode_fp8),
}
"""The packed types by name."""
FLOATS: dict[str, np.dtype] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}
"""The others."""
CACHE_TYPES = ("f16", *PACKED)
"""What can be asked for."""


@functools.cache
def _hadamard(size: int) -> np.ndarray:
    """float32 (size, size), orthogonal; size is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.float32), matrix)
    return matrix / np.float32(np.sqrt(size))


def spread(x: np.ndarray) -> np.ndarray:
    """Heads (..., dim) multiplied with a Hadamard matrix: of the largest power of two that dim is a multiple of, 128 at
    most. It takes no large element of its own to 4 bits, and leaves products of queries and keys as they are."""
    size = min(x.shape[-1] & -x.shape[-1], MOST_SPREAD)
    return (x.reshape(*x.shape[:-1], -1, size) @ _hadamard(size)).reshape(x.shape)
