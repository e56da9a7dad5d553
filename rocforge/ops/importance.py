"""Sums of squares of what weights multiply, for importance matrices."""

from __future__ import annotations

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops.device import importance as device
from rocforge.ops.types import Array


def add_squares(sums: Array, counts: Array, x: Array, ids: Array = None) -> None:
    """Add the squares of what a weight multiplies, in place.

    Args:
        sums: float32 (matrices, columns), to which the squares are added.
        counts: float32 (matrices,), to which the number of inputs is added.
        x: floats (tokens, columns), or a row for each token-expert pair (tokens * used, columns).
        ids: integers (tokens, used), the experts of each token; None: there is one matrix.
    """
    if get_array_module(sums) is not np:
        device.add_squares(sums, counts, x, ids)
        return
    squares = np.square(np.asarray(x, np.float32))
    if ids is None:
        sums[0] += squares.sum(axis=0)
        counts[0] += len(x)
        return
    rows = np.arange(ids.size) // (ids.size // len(x))
    for expert in np.unique(ids):
        chosen = rows[ids.reshape(-1) == expert]
        sums[expert] += squares[chosen].sum(axis=0)
        counts[expert] += len(chosen)
