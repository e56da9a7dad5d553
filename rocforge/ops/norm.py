"""Normalizations over the last axis."""

from __future__ import annotations

from typing import Any

import numpy as np


def rms_norm(x: Any, weight: Any = None, eps: float = 1e-5) -> Any:
    """Divide by the root mean square over the last axis: `x / sqrt(mean(x**2) + eps) * weight`.

    Args:
        x: floats, shape (..., n).
        weight: shape (n,), or None for one.
        eps: added under the root.

    Returns:
        float32, shape (..., n).

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization, https://arxiv.org/abs/1910.07467.
    """
    _check_weight("rms_norm", x, weight)
    x = x.astype(np.float32, copy=False)
    mean = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    y = x / np.sqrt(mean + np.float32(eps))
    if weight is not None:
        y *= weight
    return y


def layer_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Subtract the mean, divide by the standard deviation over the last axis, then scale and shift.

    Args:
        x: floats, shape (..., n).
        weight, bias: shape (n,), or None for one and zero.
        eps: added to the variance.

    Returns:
        float32, shape (..., n).

    Source: Ba, Kiros and Hinton, Layer Normalization, https://arxiv.org/abs/1607.06450.
    """
    _check_weight("layer_norm", x, weight)
    x = x.astype(np.float32, copy=False)
    y = x - x.mean(axis=-1, keepdims=True)
    y /= np.sqrt((y * y).mean(axis=-1, keepdims=True) + np.float32(eps))
    if weight is not None:
        y *= weight
    if bias is not None:
        y += bias
    return y


def _check_weight(name: str, x: Any, weight: Any) -> None:
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(f"{name}: a weight of shape {weight.shape} does not fit x of shape {x.shape}")
