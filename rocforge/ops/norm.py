"""Normalizations over the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.device.distributed import Group
from rocforge.ops.activation import scale_columns
from rocforge.ops.arguments import check_row, check_shape, float32_of, operands
from rocforge.ops.device import norm as device
from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.device.plan import OperandForm, form_for
from rocforge.ops.types import Array, NextNorm, Weight


def rms_norm(x: Array, weight: Array = None, eps: float = 1e-5, residual: Array = None) -> Array:
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

    >>> rf.rms_norm(np.array([[3, 4]], np.float32), np.ones(2, np.float32), 1e-6)
    array([[0.8485281, 1.1313708]], dtype=float32)
    """
    module, x, weight, residual = operands("rms_norm", x=x, weight=weight, residual=residual)
    check_row("rms_norm", x, weight=weight)
    check_shape("rms_norm", "residual", residual, x.shape)
    if module is not np:
        return device.rms_norm(x, weight, eps, residual)
    x = x.astype(np.float32, copy=False)
    mean = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    y = x / np.sqrt(mean + float32_of("rms_norm", "eps", eps))
    if weight is not None:
        y *= weight
    if residual is not None:
        y += residual
    return y


def rms_norm_for(weights: Sequence[Weight], x: Array, weight: Array, eps: float) -> Array | PackedOperand:
    """`rms_norm` of x (tokens, n), in the form in which products with these weights take it."""
    if get_array_module(x) is np:
        return rms_norm(x, weight, eps)
    check_row("rms_norm_for", x, weight=weight)
    return device.rms_norm(x, weight, eps, form=form_for(weights, len(x)))


def rms_norm_both_for(
    weights: Sequence[Weight], x: Array, weight: Array, eps: float
) -> tuple[Array, Array | PackedOperand]:
    """`rms_norm` of x (tokens, n), and that in the form in which products with these weights take it, of one launch."""
    if get_array_module(x) is np:
        y = rms_norm(x, weight, eps)
        return y, y
    check_row("rms_norm_both_for", x, weight=weight)
    return device.rms_norm_both(x, weight, eps, form_for(weights, len(x)))


def summed_then_norm(
    group: Group, x: Array, weight: Array, eps: float, weights: Sequence[Weight]
) -> tuple[Array, Array | PackedOperand | None]:
    """The sum of x (tokens, n) over a group's cards, which may be written to x; and `rms_norm_for` of it, where one
    launch gives both, else None."""
    if not group.gives_norm(x):
        return group.all_reduce(x), None
    check_row("summed_then_norm", x, weight=weight)
    return device.rms_norm_of_cards(group, x, weight, eps, form_for(weights, len(x)))


def add_normed(
    x: Array, ys: Sequence[Array], norms: Sequence[Any], factor: Array, following: Sequence[NextNorm]
) -> tuple[Array, list[Array | PackedOperand] | None]:
    """A residual stream past a layer whose results are normalized, and what follows on it.

    Args:
        x: float32 (tokens, n), the stream.
        ys: float32 (tokens, n), one or two, whose sum is added.
        norms: what has a weight (n,) and an eps: the `rms_norm` of each of ys, and of two that of their sum.
        factor: float32 (1,), on the result; or None.
        following: the norms of the result that come next.

    Returns:
        float32 (tokens, n); and on a device, of the same launch, each of `following` as the products after it take it;
        else None.
    """
    for norm in (*norms, *following):
        check_row("add_normed", x, weight=norm.weight)
    for y in ys:
        check_shape("add_normed", "y", y, x.shape)
    if get_array_module(x) is not np:
        total, normed = device.add_normed(x, ys, norms, factor, _with_forms(following, len(x)))
        return total, normed or None
    if len(ys) == 1:
        total = rms_norm(ys[0], norms[0].weight, norms[0].eps, x)
    else:
        first, other = (rms_norm(y, norm.weight, norm.eps) for y, norm in zip(ys, norms[:2], strict=True))
        total = rms_norm(first + other, norms[2].weight, norms[2].eps, x)
    return total if factor is None else scale_columns(total, factor), None


def rms_norms(x: Array, norms: Sequence[NextNorm]) -> list[Array | PackedOperand]:
    """Several norms of one x (tokens, n), each as the products after it take it; on a device of one launch."""
    if get_array_module(x) is np:
        normed = [rms_norm(x, norm.weight, norm.eps) if norm.normalizes else x for norm in norms]
        return [y if norm.scale == 1 else y * np.float32(norm.scale) for y, norm in zip(normed, norms, strict=True)]
    return device.add_normed(x, [], [], None, _with_forms(norms, len(x)))[1]


def _with_forms(norms: Sequence[NextNorm], tokens: int) -> list[tuple[NextNorm, OperandForm]]:
    return [(norm, form_for(norm.consumers, tokens)) for norm in norms]


def layer_norm(x: Array, weight: Array = None, bias: Array = None, eps: float = 1e-5) -> Array:
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

    >>> rf.layer_norm(np.array([[1, 3]], np.float32), np.ones(2, np.float32), np.zeros(2, np.float32), 1e-6)
    array([[-0.9999995,  0.9999995]], dtype=float32)
    """
    module, x, weight, bias = operands("layer_norm", x=x, weight=weight, bias=bias)
    check_row("layer_norm", x, weight=weight, bias=bias)
    if module is not np:
        return device.layer_norm(x, weight, bias, eps)
    x = x.astype(np.float32, copy=False)
    y = x - x.mean(axis=-1, keepdims=True)
    y /= np.sqrt((y * y).mean(axis=-1, keepdims=True) + float32_of("layer_norm", "eps", eps))
    if weight is not None:
        y *= weight
    if bias is not None:
        y += bias
    return y
