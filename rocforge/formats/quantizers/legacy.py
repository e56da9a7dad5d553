"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 elements, a float16 scale, and a float16 minimum in Q4_1 and Q5_1."""

from __future__ import annotations

import numpy as np

from rocforge.formats.quantizers.pack import as_bytes, interleave, rounded_fp16
from rocforge.formats.quantizers.search import (
    STEPS,
    best_affine,
    best_scale,
    error_weights,
    groups_of,
    reciprocal,
    signed,
    signed_peak,
    unsigned,
)


def q4_0(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, d = _signed(x, importance, 8)
    return np.concatenate([as_bytes(d, "<f2"), _nibbles(codes)], axis=1)


def q5_0(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, d = _signed(x, importance, 16)
    return np.concatenate([as_bytes(d, "<f2"), _fifth_bits(codes), _nibbles(codes & 15)], axis=1)


def q4_1(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, d, minimum = _affine(x, importance, 15)
    return np.concatenate([as_bytes(d, "<f2"), as_bytes(minimum, "<f2"), _nibbles(codes)], axis=1)


def q5_1(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, d, minimum = _affine(x, importance, 31)
    return np.concatenate(
        [as_bytes(d, "<f2"), as_bytes(minimum, "<f2"), _fifth_bits(codes), _nibbles(codes & 15)], axis=1
    )


def q8_0(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """The importance is of no use: rounding is all that is done."""
    d = np.abs(x).max(axis=1) / np.float32(127)
    scaled = x * reciprocal(d)[:, None]
    away = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))  # as C's roundf
    return np.concatenate([as_bytes(rounded_fp16(d), "<f2"), as_bytes(away, "i1")], axis=1)


def _signed(x: np.ndarray, importance: np.ndarray | None, levels: int) -> tuple[np.ndarray, np.ndarray]:
    if importance is None:
        scale = signed_peak(x.T) / -levels
        codes = np.minimum(np.trunc(x * reciprocal(scale)[:, None] + (levels + np.float32(0.5))), 2 * levels - 1)
        return codes.astype(np.uint8), rounded_fp16(scale)
    d = rounded_fp16(best_scale(groups_of(x, 32), error_weights(x, importance, 32), -levels - STEPS, signed(levels)))
    codes = signed(levels)(x * reciprocal(d)[:, None])
    return (codes + levels).astype(np.uint8), d


def _affine(x: np.ndarray, importance: np.ndarray | None, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if importance is None:
        minimum = x.min(axis=1)
        scale = (x.max(axis=1) - minimum) / levels
        codes = np.trunc((x - minimum[:, None]) * reciprocal(scale)[:, None] + np.float32(0.5))
        return np.minimum(codes, levels).astype(np.uint8), rounded_fp16(scale), rounded_fp16(minimum)
    scale, negated = best_affine(groups_of(x, 32), error_weights(x, importance, 32), levels, levels + STEPS)
    d, minimum = rounded_fp16(scale), rounded_fp16(-negated)
    codes = (x - minimum[:, None]) * reciprocal(d)[:, None]
    return unsigned(levels)(codes).astype(np.uint8), d, minimum


def _nibbles(codes: np.ndarray) -> np.ndarray:
    return interleave(codes.reshape(-1, 2, 16), 4)


def _fifth_bits(codes: np.ndarray) -> np.ndarray:
    return np.packbits(codes >> 4, axis=1, bitorder="little")
