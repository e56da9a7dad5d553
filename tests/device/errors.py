"""How far results of a device are from what they should be."""

from __future__ import annotations

import cupy as cp
import numpy as np


def far(y: cp.ndarray, reference: np.ndarray, x: np.ndarray, w: np.ndarray) -> float:
    """The largest error of the products x @ w.T, in what the sum of their magnitudes is."""
    return (np.abs(y.get() - reference) / (np.abs(x) @ np.abs(w).T)).max()
