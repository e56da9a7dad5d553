"""What IQ1, IQ2 and IQ3 share: vectors of four or eight elements as points of a lattice, under odd integer scales."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rocforge.formats.quantizers.pack import rounded_fp16
from rocforge.formats.quantizers.search import (
    SCALE_STEPS,
    Rounding,
    best_scale,
    block_scales,
    error_weights,
    groups_of,
    reciprocal,
)

BLOCK = 256
SCORES = 1 << 18
"""Scores of points that are computed at once, so that they stay in a core's cache."""
PRODUCT = 1 << 14
"""Scores of one matrix product: OpenBLAS takes no threads of its own for so few, and tiles have a thread each."""


class Lattice:
    """Points, and how blocks are made of them.

    Args:
        points: float32 (sets, points of a set, dimensions), in units of what the scales multiply. A group takes its
            points from one set.
        group: elements that share a scale, and a set.
        levels: the largest code of a scale; a code stands for 2 * code + 1.
        peaks: what the largest magnitude of a group may become.
    """

    def __init__(self, points: np.ndarray, group: int, levels: int, peaks: np.ndarray):
        self.sets, self.size, self.dimensions = points.shape
        self.points = points.reshape(-1, self.dimensions)
        self.group, self.levels, self.peaks = group, levels, peaks
        self._table = np.concatenate([self.points, self.points**2], axis=1).T.copy()

    def nearest(self, values: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The nearest of all points (vectors,), by the weighted squared error of values (vectors, dimensions)."""
        # The error of p is that of zero, less p · (2 w x - w p).
        features = np.concatenate([2 * weight * values, -weight], axis=1)
        shared = self.group // self.dimensions
        step = max(shared, SCORES // len(self.points) // shared * shared)
        return np.concatenate([self._best(features[i : i + step]) for i in range(0, len(features), step)])

    def _best(self, features: np.ndarray) -> np.ndarray:
        rows = min(32, PRODUCT // len(self.points))
        scores = features.reshape(-1, rows, features.shape[1]) @ self._table
        scores = scores.reshape(len(features), -1)
        if self.sets == 1:
            return scores.argmax(axis=1)
        scores = scores.reshape(len(features), self.sets, self.size)
        points = scores.argmax(axis=2)
        best = np.take_along_axis(scores, points[:, :, None], axis=2)[:, :, 0]
        shared = self.group // self.dimensions
        chosen = best.reshape(-1, shared, self.sets).sum(axis=1).argmax(axis=1).repeat(shared)
        return chosen * self.size + points[np.arange(len(points)), chosen]


class Codes(NamedTuple):
    """What a block holds: indices of points (blocks, vectors), codes of scales (blocks, groups), d (blocks,)."""

    points: np.ndarray
    scales: np.ndarray
    d: np.ndarray


def weights_of(x: np.ndarray, importance: np.ndarray | None, group: int) -> np.ndarray:
    """What the error of each element counts, (blocks, 256)."""
    return np.ascontiguousarray(error_weights(x, importance, group).T).reshape(-1, BLOCK)


def fit(x: np.ndarray, weight: np.ndarray, lattice: Lattice) -> Codes:
    """The codes that make the weighted squared error of x (blocks, 256) smallest."""
    vectors = weight.reshape(-1, lattice.dimensions)

    def nearest(values: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(values.T)
        chosen = lattice.nearest(rows.reshape(-1, lattice.dimensions), vectors)
        return np.ascontiguousarray(lattice.points[chosen].reshape(rows.shape).T)

    groups, counts = groups_of(x, lattice.group), groups_of(weight, lattice.group)
    scale = best_scale(groups, counts, lattice.peaks, nearest, np.abs(groups).max(axis=0))
    by_block = (len(x), BLOCK // lattice.group)
    steps = (2 * lattice.levels + 1) * SCALE_STEPS
    scales, d = block_scales(scale.reshape(by_block), counts.sum(axis=0).reshape(by_block), steps, _odd(lattice.levels))
    step = reciprocal(d[:, None] * scales).reshape(-1, 1)
    chosen = lattice.nearest((x.reshape(-1, lattice.group) * step).reshape(vectors.shape), vectors)
    values = (lattice.points[chosen].reshape(-1, lattice.group) * scales.reshape(-1, 1)).reshape(x.shape)
    products = weight * values
    fitted = np.einsum("ij,ij->i", products, x) * reciprocal(np.einsum("ij,ij->i", products, values))
    points = chosen.reshape(len(x), -1)
    return Codes(points, ((scales - 1) / 2).astype(np.uint8), rounded_fp16(fitted))


def _odd(levels: int) -> Rounding:
    """Rounds to the odd integers from 1 to 2 * levels + 1."""

    def nearest(values: np.ndarray) -> np.ndarray:
        return 2 * np.clip(np.rint((values - 1) / 2), 0, levels) + 1

    return nearest
