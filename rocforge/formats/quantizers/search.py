"""Search of scales: which scale (and minimum) makes the weighted squared error of a group of elements smallest.

Arrays here are (elements of a group, groups), so that sums over a group are sums of rows, which NumPy does fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from rocforge.formats.quantizers.pack import rounded_fp16

STEPS = np.linspace(-0.9, 1.5, 9)
"""What is added to the largest code to have what the largest element of a group is rounded to."""
SCALE_STEPS = np.linspace(0.6, 1.2, 25)
"""What the largest scale of a block becomes, over the largest integer: which scale counts most shows only in trying."""
Rounding = Callable[[np.ndarray], np.ndarray]
"""Rounds an array, in place where it likes, to values that codes stand for."""


def groups_of(blocks: np.ndarray, size: int) -> np.ndarray:
    """(blocks, elements) as (size, groups)."""
    return np.ascontiguousarray(blocks.reshape(-1, size).T)


def blocks_of(groups: np.ndarray, elements: int) -> np.ndarray:
    """(size, groups) as (blocks, elements)."""
    return np.ascontiguousarray(groups.T).reshape(-1, elements)


def error_weights(x: np.ndarray, importance: np.ndarray | None, size: int) -> np.ndarray:
    """What the error of each element of blocks counts, (size, groups): its importance, and more the larger it is."""
    if importance is None:
        groups = np.abs(groups_of(x, size))
        return groups + np.sqrt(np.einsum("ij,ij->j", groups, groups) / size)
    square = x * x
    return groups_of(importance * np.sqrt(2 * square.mean(axis=1, keepdims=True) + square), size)


def signed(levels: int) -> Rounding:
    """Rounds to the integers from -levels to levels - 1."""

    def nearest(values: np.ndarray) -> np.ndarray:
        np.rint(values, out=values)
        np.maximum(values, -levels, out=values)
        return np.minimum(values, levels - 1, out=values)

    return nearest


def unsigned(levels: int) -> Rounding:
    """Rounds to the integers from 0 to levels."""

    def nearest(values: np.ndarray) -> np.ndarray:
        np.rint(values, out=values)
        np.maximum(values, 0, out=values)
        return np.minimum(values, levels, out=values)

    return nearest


def table(values: Iterable[int]) -> Rounding:
    """Rounds to the ascending integers of a table, from -128 on."""
    indices = _table_indices(values)
    rounded = np.array(list(values), np.float32)[indices]

    def nearest(x: np.ndarray) -> np.ndarray:
        return rounded.take(_half_steps(x))

    return nearest


def table_codes(values: Iterable[int]) -> Callable[[np.ndarray], np.ndarray]:
    """Gives the indices, uint8, of the nearest of the ascending integers of a table, from -128 on."""
    indices = _table_indices(values)

    def codes(x: np.ndarray) -> np.ndarray:
        return indices.take(_half_steps(x))

    return codes


def _table_indices(values: Iterable[int]) -> np.ndarray:
    # Midpoints between integers are whole half steps, so the half step below x says which value is nearest.
    known = np.array(list(values), np.float32)
    midpoints = (known[1:] + known[:-1]) / 2
    return np.searchsorted(midpoints, np.arange(-128, 128, 0.5), side="right").astype(np.uint8)


def _half_steps(x: np.ndarray) -> np.ndarray:
    return np.clip(2 * x + 256, 0, 511).astype(np.intp)


def signed_peak(x: np.ndarray) -> np.ndarray:
    """The element of the largest magnitude of each group (groups,), with its sign."""
    high, low = x.max(axis=0), x.min(axis=0)
    return np.where(high > -low, high, low)


def reciprocal(x: np.ndarray) -> np.ndarray:
    """1 / x, and 0 where x is 0 or so small that the quotient is infinite."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / x
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def best_scale(
    x: np.ndarray,
    weight: np.ndarray,
    candidates: Iterable[float],
    nearest: Rounding,
    peak: np.ndarray | None = None,
) -> np.ndarray:
    """The scales (groups,) that make the sum of weight * (x - scale * nearest(x / scale))² smallest.

    Args:
        x: (elements, groups).
        weight: the same shape.
        candidates: what to round the peak of x to.
        nearest: rounds to the values of codes.
        peak: (groups,); the element of the largest magnitude, unless given.
    """
    peak = signed_peak(x) if peak is None else peak
    unit = x * reciprocal(peak)
    weighted = weight * unit
    gain, scale = np.zeros_like(peak), np.zeros_like(peak)

    def consider(factor: float | np.ndarray) -> None:
        # With the best scale for these codes the error is that of zeros less the gain.
        values = nearest(unit * factor)
        product = np.einsum("ij,ij->j", weighted, values)
        fitted = product * reciprocal(np.einsum("ij,ij->j", weight * values, values))
        better = product * fitted > gain
        np.copyto(gain, product * fitted, where=better)
        np.copyto(scale, fitted, where=better)

    for candidate in candidates:
        consider(float(candidate))
    consider(reciprocal(scale))
    return scale * peak


def block_scales(
    scales: np.ndarray, weight: np.ndarray, candidates: Iterable[float], nearest: Rounding
) -> tuple[np.ndarray, np.ndarray]:
    """Scales of groups (blocks, groups) as integers, and the scale of these (blocks,), a float16's value.

    Args:
        scales, weight: (blocks, groups).
        candidates, nearest: as in `best_scale`.
    """
    d = rounded_fp16(best_scale(scales.T, weight.T, candidates, nearest))
    return nearest(scales * reciprocal(d)[:, None]), d


def best_affine(
    x: np.ndarray, weight: np.ndarray, levels: int, candidates: Iterable[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima (groups,) for x of about scale * code - minimum, codes from 0 to levels, minimum at least 0.

    Args:
        x, weight: (elements, groups).
        levels: the largest code.
        candidates: what to round the range of x to.
    """
    low = np.minimum(x.min(axis=0), 0)
    span = x.max(axis=0) - low
    unit = (x - low) * reciprocal(span)  # from 0 to 1
    ceiling = -low * reciprocal(span)  # the shift that makes the minimum 0
    weighted = weight * unit
    sum_w, sum_x = weight.sum(axis=0), weighted.sum(axis=0)
    gain = np.full_like(span, -np.inf)
    scale, shift = np.full_like(span, 1 / levels), np.zeros_like(span)
    nearest = unsigned(levels)

    def consider(values: np.ndarray) -> None:
        codes = nearest(values)
        products = weight * codes
        sum_l = products.sum(axis=0)
        sum_l2 = np.einsum("ij,ij->j", products, codes)
        sum_xl = np.einsum("ij,ij->j", weighted, codes)
        variance = sum_w * sum_l2 - sum_l * sum_l
        determinant = reciprocal(np.where(variance > 1e-6 * sum_w * sum_l2, variance, 0))
        fitted = (sum_w * sum_xl - sum_x * sum_l) * determinant
        moved = (sum_l2 * sum_x - sum_l * sum_xl) * determinant
        over = moved > ceiling
        np.copyto(moved, ceiling, where=over)
        np.copyto(fitted, (sum_xl - moved * sum_l) * reciprocal(sum_l2), where=over)
        reached = fitted * (2 * (sum_xl - moved * sum_l) - fitted * sum_l2) + moved * (2 * sum_x - moved * sum_w)
        better = (reached > gain) & (determinant > 0)
        np.copyto(gain, reached, where=better)
        np.copyto(scale, fitted, where=better)
        np.copyto(shift, moved, where=better)

    for candidate in candidates:
        consider(unit * np.float32(candidate))
    consider((unit - shift) * reciprocal(scale))
    return scale * span, -(low + shift * span)
