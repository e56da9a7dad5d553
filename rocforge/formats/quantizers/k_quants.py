"""K-quants: blocks of 256 elements, in groups of 16 or 32 with integer scales (and minima) below float16 ones."""

from __future__ import annotations

import numpy as np

from rocforge.formats.quantizers.pack import as_bytes, interleave, rounded_fp16
from rocforge.formats.quantizers.search import (
    SCALE_STEPS,
    STEPS,
    best_affine,
    best_scale,
    block_scales,
    blocks_of,
    error_weights,
    groups_of,
    reciprocal,
    signed,
    unsigned,
)

BLOCK = 256


def q2_k(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, scales, minima, d, dmin = _affine(x, importance, 16, 3, 15)
    low = interleave(codes.reshape(-1, 4, 32), 2).reshape(-1, 64)
    return np.concatenate([scales | (minima << 4), low, as_bytes(d, "<f2"), as_bytes(dmin, "<f2")], axis=1)


def q3_k(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, scales, d = _signed(x, importance, 4, 32)
    high = interleave((codes >> 2).reshape(-1, 8, 32), 1)
    low = interleave((codes & 3).reshape(-1, 4, 32), 2).reshape(-1, 64)
    stored = (scales + 32).astype(np.uint8)
    scale_low = interleave((stored & 15).reshape(-1, 2, 8), 4)
    scale_high = interleave((stored >> 4).reshape(-1, 4, 4), 2)
    return np.concatenate([high, low, scale_low, scale_high, as_bytes(d, "<f2")], axis=1)


def q4_k(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, scales, minima, d, dmin = _affine(x, importance, 32, 15, 63)
    low = interleave(codes.reshape(-1, 2, 32), 4).reshape(-1, 128)
    return np.concatenate([as_bytes(d, "<f2"), as_bytes(dmin, "<f2"), _six_bits(scales, minima), low], axis=1)


def q5_k(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, scales, minima, d, dmin = _affine(x, importance, 32, 31, 63)
    high = interleave((codes >> 4).reshape(-1, 8, 32), 1)
    low = interleave((codes & 15).reshape(-1, 2, 32), 4).reshape(-1, 128)
    return np.concatenate([as_bytes(d, "<f2"), as_bytes(dmin, "<f2"), _six_bits(scales, minima), high, low], axis=1)


def q6_k(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, scales, d = _signed(x, importance, 32, 128)
    low = interleave((codes & 15).reshape(-1, 2, 64), 4).reshape(-1, 128)
    high = interleave((codes >> 4).reshape(-1, 4, 32), 2).reshape(-1, 64)
    return np.concatenate([low, high, as_bytes(scales, "i1"), as_bytes(d, "<f2")], axis=1)


def _affine(
    x: np.ndarray, importance: np.ndarray | None, group: int, levels: int, scale_levels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """codes (blocks, 256), scales and minima (blocks, groups), uint8; d and dmin float16 (blocks,)."""
    groups, weight = groups_of(x, group), error_weights(x, importance, group)
    scale, minimum = best_affine(groups, weight, levels, levels + STEPS)
    candidates, nearest = scale_levels * SCALE_STEPS, unsigned(scale_levels)
    minima, dmin = block_scales(_by_block(minimum, group), _by_block(weight.sum(axis=0), group), candidates, nearest)
    scale, counts = _scales_above(groups + (dmin[:, None] * minima).ravel(), weight, scale, levels)
    scales, d = block_scales(_by_block(scale, group), _by_block(counts, group), candidates, nearest)

    def codes() -> np.ndarray:
        step, shift = d[:, None] * scales, dmin[:, None] * minima
        return unsigned(levels)((groups + shift.ravel()) * reciprocal(step.ravel()))

    d, dmin = _refit(groups, weight, codes(), scales, minima, d, dmin)
    stored = blocks_of(codes().astype(np.uint8), BLOCK)
    return stored, scales.astype(np.uint8), minima.astype(np.uint8), d.astype(np.float16), dmin.astype(np.float16)


def _scales_above(x: np.ndarray, weight: np.ndarray, scale: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """The scales that fit x best, once rounded minima are added to it, and what an error of each counts, (groups,)."""
    codes = unsigned(levels)(x * reciprocal(scale))
    products = weight * codes
    counts = np.einsum("ij,ij->j", products, codes)
    return np.einsum("ij,ij->j", products, x) * reciprocal(counts), counts


def _by_block(values: np.ndarray, group: int) -> np.ndarray:
    return values.reshape(-1, BLOCK // group)


def _refit(
    x: np.ndarray,
    weight: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    minima: np.ndarray,
    d: np.ndarray,
    dmin: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The d and dmin that fit the codes of whole blocks best, by least squares; as they were where there are none."""
    group = len(x)
    products = weight * codes
    by_block = [
        _by_block(sums, group)
        for sums in (
            np.einsum("ij,ij->j", products, codes),
            products.sum(axis=0),
            weight.sum(axis=0),
            np.einsum("ij,ij->j", products, x),
            np.einsum("ij,ij->j", weight, x),
        )
    ]
    factors = (scales * scales, scales * minima, minima * minima, scales, minima)
    ll, lm, mm, xl, xm = (np.einsum("ij,ij->i", *pair) for pair in zip(by_block, factors, strict=True))
    variance = ll * mm - lm * lm
    determinant = reciprocal(np.where(variance > 1e-6 * ll * mm, variance, 0))
    fitted, lifted = (xl * mm - xm * lm) * determinant, (xl * lm - xm * ll) * determinant
    usable = (fitted > 0) & (lifted > 0)
    return rounded_fp16(np.where(usable, fitted, d)), rounded_fp16(np.where(usable, lifted, dmin))


def _signed(
    x: np.ndarray, importance: np.ndarray | None, levels: int, scale_levels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """codes from 0 on (blocks, 256), uint8; scales, integers from -scale_levels (blocks, 16); d float16 (blocks,)."""
    groups, weight = groups_of(x, 16), error_weights(x, importance, 16)
    scale = _by_block(best_scale(groups, weight, -levels - STEPS, signed(levels)), 16)
    total = _by_block(weight.sum(axis=0), 16)
    scales, d = block_scales(scale, total, -scale_levels * SCALE_STEPS, signed(scale_levels))

    def codes() -> np.ndarray:
        return signed(levels)(groups * reciprocal((d[:, None] * scales).ravel()))

    values = codes() * scales.ravel()
    products = weight * values
    fitted = _by_block(np.einsum("ij,ij->j", products, groups), 16).sum(axis=1)
    d = rounded_fp16(fitted * reciprocal(_by_block(np.einsum("ij,ij->j", products, values), 16).sum(axis=1)))
    return blocks_of((codes() + levels).astype(np.uint8), BLOCK), scales, d.astype(np.float16)


def _six_bits(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Eight scales and eight minima of 6 bits, (blocks, 8) each, as 12 bytes."""
    first, second = np.split(scales, 2, axis=1), np.split(minima, 2, axis=1)
    tops = [low | (high >> 4) << 6 for low, high in (first, second)]
    return np.concatenate([*tops, first[1] & 15 | (second[1] & 15) << 4], axis=1)
