"""Normalizations over the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.arrays import cupy_module, get_array_module
from rocforge.device.kernels import Kernel
from rocforge.ops.arguments import check_shape, module_of
from rocforge.ops.device.operands import Activations, columns_for_weights, takes_fp16
from rocforge.ops.device.strided import float32

_rms_norm = Kernel(
    "norm.hip", "rms_norm", "float32*? float16*? uint8*? float32* float32*? float32*? uint32 uint32 float32"
)
_rms_norm_of_sum = Kernel(
    "norm.hip", "rms_norm_of_sum", "float32* float16* float32* float32* float32*? float32* uint32 float32"
)
_layer_norm = Kernel("norm.hip", "layer_norm", "float32*? uint8*? float32* float32*? float32*? uint32 uint32 float32")


def rms_norm(x: Any, weight: Any = None, eps: float = 1e-5, residual: Any = None) -> Any:
    """Divide by the root mean square over the last axis: `x / sqrt(mean(x**2) + eps) * weight + residual`.

    Args:
        x: floats, shape (..., n).
        weight: shape (n,), or None for one.
        eps: added under the root.
        residual: float32, the shape of x, or None.

    Returns:
        float32, shape (..., n).

    Raises:
        ValueError: the shapes do not fit.
        TypeError: arrays on both the host and a device.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization, https://arxiv.org/abs/1910.07467.
    """
    module = module_of("rms_norm", x=x, weight=weight, residual=residual)
    _check("rms_norm", x, weight)
    check_shape("rms_norm", "residual", residual, x.shape)
    if module is not np:
        return _rms_norm_device(x, weight, eps, residual)
    x = x.astype(np.float32, copy=False)
    mean = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    y = x / np.sqrt(mean + np.float32(eps))
    if weight is not None:
        y *= weight
    if residual is not None:
        y += residual
    return y


def _rms_norm_device(x: Any, weight: Any, eps: float, residual: Any) -> Any:
    x = float32(x)
    out = cupy_module().empty(x.shape, np.float32)
    n = x.shape[-1]
    if x.size:
        args = (out, None, None, x, float32(weight), float32(residual), 0, n, eps)
        _rms_norm(*_a_block_each(x.size // n), args)
    return out


def rms_norm_fp16(x: Any, weight: Any, eps: float) -> Any:
    """`rms_norm` of a CuPy array (rows, n) in float16, cut to ±65504."""
    _check("rms_norm_fp16", x, weight)
    x = float32(x)
    out = cupy_module().empty(x.shape, np.float16)
    _rms_norm(*_a_block_each(len(x)), (None, out, None, x, float32(weight), None, 0, x.shape[-1], eps))
    return out


def rms_norm_of_sum(x: Any, y: Any, bias: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    """`x + y + bias`, and `rms_norm_fp16` of it, of one launch; x and y (rows, n) on a device, bias (n,) or None."""
    _check("rms_norm_of_sum", x, weight, bias)
    if x.shape != y.shape:
        raise ValueError(f"rms_norm_of_sum: x and y have different shapes, {x.shape} and {y.shape}")
    total, fp16 = cupy_module().empty(x.shape, np.float32), cupy_module().empty(x.shape, np.float16)
    arrays = (total, fp16, *map(float32, (x, y, bias, weight)))
    _rms_norm_of_sum(*_a_block_each(len(x)), (*arrays, x.shape[1], eps))
    return total, fp16


def rms_norm_quantized(x: Any, weight: Any, eps: float, columns: int = 0) -> Activations:
    """`rms_norm` of a CuPy array (rows, n) in int8, or in units for that many columns, of one launch."""
    _check("rms_norm_quantized", x, weight)
    x = float32(x)
    out = Activations.empty(*x.shape, columns)
    _rms_norm(*_a_block_each(len(x)), (None, None, out.data, x, float32(weight), None, columns, x.shape[-1], eps))
    return out


def rms_norm_both(x: Any, weight: Any, eps: float) -> tuple[Any, Activations]:
    """`rms_norm` and, in int8, `rms_norm_quantized` of a CuPy array (rows, n) in one launch."""
    _check("rms_norm_both", x, weight)
    x = float32(x)
    out, rounded = cupy_module().empty(x.shape, np.float32), Activations.empty(*x.shape)
    _rms_norm(*_a_block_each(len(x)), (out, None, rounded.data, x, float32(weight), None, 0, x.shape[-1], eps))
    return out, rounded


def rms_norm_for(weights: Sequence[Any], x: Any, weight: Any, eps: float) -> Any:
    """`rms_norm` of x (rows, n) in the form that products with these matrices take."""
    if get_array_module(x) is np:
        return rms_norm(x, weight, eps)
    columns = columns_for_weights(len(x), weights)
    if columns is not None:
        return rms_norm_quantized(x, weight, eps, columns)
    return (rms_norm_fp16 if takes_fp16(len(x), weights) else rms_norm)(x, weight, eps)


def layer_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Subtract the mean, divide by the standard deviation over the last axis, then scale and shift.

    Args:
        x: floats, shape (..., n).
        weight, bias: shape (n,), or None for one and zero.
        eps: added to the variance.

    Returns:
        float32, shape (..., n).

    Raises:
        ValueError: the shapes do not fit.
        TypeError: arrays on both the host and a device.

    Source: Ba, Kiros and Hinton, Layer Normalization, https://arxiv.org/abs/1607.06450.
    """
    module = module_of("layer_norm", x=x, weight=weight, bias=bias)
    _check("layer_norm", x, weight, bias)
    if module is not np:
        return _layer_norm_device(x, weight, bias, eps)
    x = x.astype(np.float32, copy=False)
    y = x - x.mean(axis=-1, keepdims=True)
    y /= np.sqrt((y * y).mean(axis=-1, keepdims=True) + np.float32(eps))
    if weight is not None:
        y *= weight
    if bias is not None:
        y += bias
    return y


def _layer_norm_device(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    x = float32(x)
    out = cupy_module().empty(x.shape, np.float32)
    n = x.shape[-1]
    if x.size:
        _layer_norm(*_a_block_each(x.size // n), (out, None, x, float32(weight), float32(bias), 0, n, eps))
    return out


def layer_norm_quantized(x: Any, weight: Any, bias: Any, eps: float, columns: int = 0) -> Activations:
    """`layer_norm` of a CuPy array (rows, n) as activations for the product that follows, of one launch."""
    _check("layer_norm_quantized", x, weight, bias)
    x = float32(x)
    out = Activations.empty(*x.shape, columns)
    args = (None, out.data, x, float32(weight), float32(bias), columns, x.shape[-1], eps)
    _layer_norm(*_a_block_each(len(x)), args)
    return out


def _a_block_each(rows: int) -> tuple[tuple[int], tuple[int]]:
    """Grid and block of a launch for that many rows."""
    return (rows,), (tuning.current().norm_threads,)


def _check(name: str, x: Any, weight: Any, bias: Any = None) -> None:
    row = x.shape[-1:]
    for array in (weight, bias):
        if array is not None and (array.shape != row or not row):
            which = "weight" if array is weight else "bias"
            raise ValueError(f"{name}: a {which} of shape {array.shape} does not fit x of shape {x.shape}")
