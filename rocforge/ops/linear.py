"""Products with weight matrices, packed or not: x @ w.T."""

from __future__ import annotations

from typing import Any

import numpy as np

from rocforge.quant import QuantizedArray

TILE_ELEMENTS = 1 << 22
"""Elements of a packed weight that are unpacked at a time: 16 MiB of float32, about what the last cache level holds."""


def linear(x: Any, weight: Any, bias: Any = None, residual: Any = None) -> Any:
    """`x @ weight.T + bias + residual` in float32.

    Args:
        x: floats, shape (..., columns).
        weight: QuantizedArray or float array, shape (rows, columns).
        bias: shape (rows,), or None.
        residual: shape (..., rows), or None.

    Returns:
        float32, shape (..., rows).

    Raises:
        ValueError: the shapes do not fit.
    """
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"linear: x of shape {x.shape} does not fit a weight of shape {weight.shape}")
    x = x.astype(np.float32, copy=False)
    y = _product_packed(x, weight) if isinstance(weight, QuantizedArray) else x @ _float32(weight).T
    if bias is not None:
        y += bias
    if residual is not None:
        y += residual
    return y


def _float32(weight: np.ndarray) -> np.ndarray:
    return weight.astype(np.float32, copy=False)


def _product_packed(x: np.ndarray, weight: QuantizedArray) -> np.ndarray:
    """Unpack a tile of rows at a time, unless the float32 values are kept."""
    rows, columns = weight.shape
    step = max(1, TILE_ELEMENTS // columns)
    if weight.keep_float32 or step >= rows:
        return x @ weight.float32().T
    y = np.empty((*x.shape[:-1], rows), np.float32)
    for start in range(0, rows, step):
        y[..., start : start + step] = x @ weight[start : start + step].float32().T
    return y
