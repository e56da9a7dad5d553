"""IQ2 and IQ3: signs, and magnitudes that are points of a lattice."""

from __future__ import annotations

import functools

import numpy as np

from rocforge.formats import blocks
from rocforge.formats.quantizers.lattices import BLOCK, Codes, Lattice, fit, weights_of
from rocforge.formats.quantizers.pack import as_bytes, interleave

PEAKS = np.array([0.85, 0.95, 1.07, 1.2])
"""What the largest magnitude of a group may become, over the largest of a point."""


def iq2_xxs(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, signs = _even_fit(x, importance, "IQ2_XXS", 8, 32)
    points = codes.points.astype(np.uint8).reshape(-1, 8, 4)
    words = np.concatenate([points, _scales_and_signs(codes, signs)], axis=2)
    return np.concatenate([as_bytes(codes.d, "<f2"), words.reshape(len(x), -1)], axis=1)


def iq2_xs(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, signs = _even_fit(x, importance, "IQ2_XS", 8, 16)
    words = codes.points | (signs & 127).astype(np.uint16) << 9
    return np.concatenate([as_bytes(codes.d, "<f2"), as_bytes(words, "<u2"), _scale_pairs(codes)], axis=1)


def iq2_s(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, signs = _fit(x, importance, "IQ2_S", 8, 16)
    high = interleave((codes.points >> 8).astype(np.uint8).reshape(-1, 8, 4).swapaxes(1, 2), 2)
    low = as_bytes(codes.points & 255, "u1")
    return np.concatenate([as_bytes(codes.d, "<f2"), low, signs, high, _scale_pairs(codes)], axis=1)


def iq3_xxs(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, signs = _even_fit(x, importance, "IQ3_XXS", 4, 32)
    words = _scales_and_signs(codes, signs).reshape(len(x), -1)
    return np.concatenate([as_bytes(codes.d, "<f2"), as_bytes(codes.points, "u1"), words], axis=1)


def iq3_s(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, signs = _fit(x, importance, "IQ3_S", 1, 32)
    high = np.packbits((codes.points >> 8).astype(np.uint8), axis=1, bitorder="little")
    low = as_bytes(codes.points & 255, "u1")
    return np.concatenate([as_bytes(codes.d, "<f2"), low, high, signs, _scale_pairs(codes)], axis=1)


@functools.cache
def _lattice(name: str, unit: float, group: int) -> Lattice:
    points = blocks.lattice(blocks.QTYPES[name])
    assert points is not None
    points = points[0] / np.float32(unit)
    return Lattice(points, group, 15, points.max() * PEAKS)


def _fit(x: np.ndarray, importance: np.ndarray | None, name: str, unit: float, group: int) -> tuple[Codes, np.ndarray]:
    """The codes of the magnitudes, and the signs, a byte for eight elements, uint8 (blocks, 32)."""
    codes = fit(np.abs(x), weights_of(x, importance, group), _lattice(name, unit, group))
    return codes, np.packbits(x < 0, axis=1, bitorder="little")


def _even_fit(
    x: np.ndarray, importance: np.ndarray | None, name: str, unit: float, group: int
) -> tuple[Codes, np.ndarray]:
    """The same where an even number of eight elements must be negative, since the eighth sign is not stored.

    Where it is odd, the element that counts least takes the other sign, and becomes a negative magnitude.
    """
    weight = weights_of(x, importance, group)
    negative = (x < 0).reshape(-1, 8)
    odd = np.flatnonzero(negative.sum(axis=1) % 2)
    least = (weight * x * x).reshape(-1, 8).argmin(axis=1)[odd]
    magnitude = np.abs(x).reshape(-1, 8)
    magnitude[odd, least] *= -1
    negative[odd, least] ^= True
    codes = fit(magnitude.reshape(x.shape), weight, _lattice(name, unit, group))
    return codes, np.packbits(negative.reshape(-1, BLOCK), axis=1, bitorder="little")


def _scales_and_signs(codes: Codes, signs: np.ndarray) -> np.ndarray:
    """Words of a scale and the signs of 32 elements, uint8 (blocks, 8, 4)."""
    shifts = np.arange(0, 28, 7, dtype=np.uint32)
    words = np.bitwise_or.reduce((signs & 127).reshape(-1, 8, 4).astype(np.uint32) << shifts, axis=2)
    return as_bytes(words | codes.scales.astype(np.uint32) << 28, "<u4").reshape(-1, 8, 4)


def _scale_pairs(codes: Codes) -> np.ndarray:
    return interleave(codes.scales.reshape(len(codes.d), -1, 2).swapaxes(1, 2), 4)
