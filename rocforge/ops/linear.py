"""Products with weight matrices, packed or not: x @ w.T."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops import activation
from rocforge.ops.arguments import check_matrix, check_sums, host_floats, operands
from rocforge.ops.device import products as device
from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.row_tiles import row_tiles
from rocforge.ops.types import Array, HostArray, Weight
from rocforge.quant import QuantizedArray, joined_float32


def linear(
    x: Array | PackedOperand,
    weight: Weight,
    bias: Array = None,
    residual: Array = None,
    overwrite_residual: bool = False,
) -> Array:
    """`x @ weight.T + bias + residual` in float32.

    On a device, one or two tokens are multiplied with the packed weights, x rounded to int8 in runs of 32; up to 64 on
    the matrix unit, in float16; more by the BLAS library, in float16, where finite values of x beyond ±65504 are cut
    to that. A NaN in a row of x makes that row of the result NaN, an infinity makes it infinite or NaN.

    Args:
        x: floats, shape (..., columns), the leading axes counting tokens; on a device also a PackedOperand in the form
            that `rocforge.ops.device.plan.form_for` says.
        weight: QuantizedArray or array of numbers, shape (rows, columns).
        bias: shape (rows,), or None.
        residual: shape (..., rows), or None.
        overwrite_residual: the result may be written to the residual's memory, which nobody else reads.

    Returns:
        float32, shape (..., rows).

    Raises:
        ValueError: the shapes do not fit.
        TypeError: arrays on both the host and a device, or an x packed in another form.

    >>> weight = rf.quantize(np.eye(32, dtype=np.float32), "Q8_0")
    >>> rf.linear(np.ones((2, 32), np.float32), weight).shape
    (2, 32)
    """
    module, x, weight, bias, residual = operands("linear", "weight", x=x, weight=weight, bias=bias, residual=residual)
    check_matrix("linear", "weight", weight)
    if weight.shape[0] == 0:
        check_sums(x, [weight], [bias], residual)
        return module.zeros((*x.shape[:-1], 0), np.float32)
    return linears(x, [weight], [bias], residual, overwrite_residual)[0]


def linear_then_norm(
    x: Array | PackedOperand,
    weight: Weight,
    bias: Array,
    residual: Array,
    norm: Array,
    eps: float,
    consumers: Sequence[Weight],
    overwrite_residual: bool = False,
) -> tuple[Array, Array | PackedOperand | None]:
    """`linear(x, weight, bias, residual)` and, if that takes no launch of its own, its rms_norm for the next product.

    Args:
        x, weight, bias, residual, overwrite_residual: as in `linear`.
        norm, eps: weight (rows,) and epsilon of the norm.
        consumers: the matrices that the norm's result is to be multiplied with.

    Returns:
        float32, shape (..., rows); and on a device the norm in the form that products with the consumers take, of one
        token that is int8, or float16 for the BLAS library; else None.
    """
    if get_array_module(weight) is not np:
        both = device.linear_then_norm(x, weight, bias, residual, norm, eps, consumers, overwrite_residual)
        if both is not None:
            return both
    return linear(x, weight, bias, residual, overwrite_residual), None


def linears(
    x: Array | PackedOperand,
    weights: Sequence[Weight],
    biases: Sequence[Array] | None = None,
    residual: Array = None,
    overwrite_residual: bool = False,
) -> list[Array]:
    """`linear` of one x with several weights; on a device in one launch for up to 64 tokens.

    Args:
        x, residual, overwrite_residual: as in `linear`; the residual is added to the first product.
        weights: matrices with the columns of x.
        biases: one for each, or None.

    Returns:
        One float32 array for each weight.
    """
    biases = [None] * len(weights) if biases is None else biases
    check_sums(x, weights, biases, residual)
    if get_array_module(*weights) is not np:
        return device.linears(x, weights, biases, residual, overwrite_residual)
    ys = _products(host_floats("linear", x), weights)
    for y, bias in zip(ys, biases, strict=True):
        if bias is not None:
            y += bias
    if residual is not None:
        ys[0] += residual
    return ys


def gated_linear(
    x: Array | PackedOperand,
    gate: Weight,
    up: Weight | None,
    gate_bias: Array = None,
    up_bias: Array = None,
    activate: str = "swiglu",
    consumer: Weight | None = None,
) -> Array | PackedOperand:
    """`activate(linear(x, gate, gate_bias), linear(x, up, up_bias))`; on a device in one launch for up to 64 tokens.

    Args:
        x: as in `linear`.
        gate, up: matrices of one shape; without up, gate has the rows of both, and its bias too.
        gate_bias, up_bias: shape (rows,), or None.
        activate: "swiglu", "geglu" or "swiglu_oai": the function of that name in rocforge.ops.activation.
        consumer: the weight that the result is to be multiplied with, if that is all it is for.

    Returns:
        float32, shape (..., rows); with `consumer`, on a device, in the form in which a product with that takes it,
        where the kernel can write it. Where that is float16, the BLAS library's products of gate and up are rounded to
        it as well, beyond ±65504 to infinity, if they have no biases.
    """
    on_host, unit = get_array_module(gate) is np, getattr(activation, activate)
    if up is None:
        rows = len(gate) // 2
        if on_host:
            y = linear(x, gate, gate_bias)
            return unit(y[..., :rows], y[..., rows:])
        gate, up = gate[:rows], gate[rows:]
        gate_bias, up_bias = (None, None) if gate_bias is None else (gate_bias[:rows], gate_bias[rows:])
    if gate.shape != up.shape:
        raise ValueError(f"gated_linear: gate and up have different shapes, {gate.shape} and {up.shape}")
    if not on_host:
        return device.gated_linear(x, gate, up, [gate_bias, up_bias], activate, consumer)
    return unit(*linears(x, [gate, up], [gate_bias, up_bias]))


def _products(x: HostArray, weights: Sequence[Weight]) -> list[HostArray]:
    """Several as one, where they keep their values: BLAS reads one large matrix faster than some small ones."""
    joined = joined_float32(weights) if len(weights) > 1 else None
    if joined is None:
        return [_product(x, weight) for weight in weights]
    y, ends = x @ joined.T, itertools.accumulate(len(weight) for weight in weights)
    return [y[..., end - len(weight) : end] for weight, end in zip(weights, ends, strict=True)]


def _product(x: HostArray, weight: Weight) -> Array:
    if isinstance(weight, QuantizedArray):
        return _product_packed(x, weight)
    return x @ weight.astype(np.float32, copy=False).T


def _product_packed(x: HostArray, weight: QuantizedArray) -> Array:
    """Unpack a tile of rows at a time, unless the float32 values are kept."""
    tiles = [()] if weight.keep_float32 else list(row_tiles(weight.shape))
    if tiles == [()]:
        return x @ weight.float32().T
    y = np.empty((*x.shape[:-1], len(weight)), np.float32)
    for (rows,) in tiles:
        y[..., rows] = x @ weight[rows].float32().T
    return y
