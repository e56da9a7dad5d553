"""Normalizations on a device: launches of norm.hip. Shapes and meanings are those of rocforge.ops.norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.distributed import Group
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.arguments import check_row
from rocforge.ops.device.moe import floats_of
from rocforge.ops.device.operands import PackedOperand, empty_operand, output_arguments, to_fp16
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.device.strided import float32
from rocforge.ops.types import Array, NextNorm

_rms_norm = Kernel(
    "norm.hip", "rms_norm", "float32*? float16*? uint8*? float32* float32*? float32*? uint32 uint32 float32"
)
_rms_norm_of_sum = Kernel(
    "norm.hip",
    "rms_norm_of_sum",
    "float32* float16*? uint8*? float32* float32* float32*? float32* uint32 uint64 uint32 uint32 float32",
)
_rms_norm_of_experts = Kernel("norm.hip", "rms_norm_of_experts")
_ADD_NORMED = {
    (two, several): Kernel("norm.hip", name)
    for two, several, name in (
        (False, False, "add_normed"),
        (False, True, "add_normed_for_several"),
        (True, False, "add_two_normed"),
        (True, True, "add_two_normed"),
    )
}
_layer_norm = Kernel("norm.hip", "layer_norm", "float32*? uint8*? float32* float32*? float32*? uint32 uint32 float32")


def rms_norm(
    x: Array, weight: Array, eps: float, residual: Array = None, form: OperandForm = OperandForm.FLOAT32
) -> Array | PackedOperand:
    """The norm of x (..., n), of another form than float32 (tokens, n), in the form that the next product takes.

    Float16 is cut to ±65504.
    """
    x = float32(x)
    out = empty_operand(x.shape, form)
    n = x.shape[-1]
    if x.size:
        *to, width = output_arguments(out)
        _rms_norm(*_a_block_each(x.size // n), (*to, x, float32(weight), float32(residual), width, n, eps))
    return out


def rms_norm_both(
    x: Array, weight: Array, eps: float, form: OperandForm = OperandForm.INT8
) -> tuple[Array, Array | PackedOperand]:
    """The norm of x (tokens, n) in float32, and in the form that the next product takes, of one launch."""
    if form is OperandForm.FLOAT32:
        out = rms_norm(x, weight, eps)
        return out, out
    x = float32(x)
    out, operand = empty_operand(x.shape, OperandForm.FLOAT32), empty_operand(x.shape, form)
    if x.size:
        _, fp16, packed, width = output_arguments(operand)
        args = (out, fp16, packed, x, float32(weight), None, width, x.shape[-1], eps)
        _rms_norm(*_a_block_each(len(x)), args)
    return out, operand


def rms_norm_of_sum(
    x: Array, y: Array, bias: Array, weight: Array, eps: float, form: OperandForm = OperandForm.FP16
) -> tuple[Array, Array | PackedOperand]:
    """`x + y + bias`, and the norm of it in float16 or a packed form, of one launch.

    Args:
        x: (tokens, n).
        y: (tokens, n), or (parts, tokens, n), which are added up.
        bias: (n,) or None.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_row("rms_norm_of_sum", x, weight=weight, bias=bias)
    if x.shape != y.shape[-2:]:
        raise ValueError(f"rms_norm_of_sum: x and y have different shapes, {x.shape} and {y.shape}")
    total, out = cupy_module().empty(x.shape, np.float32), empty_operand(x.shape, form)
    if x.size:
        _, fp16, packed, width = output_arguments(out)
        arrays = (total, fp16, packed, *map(float32, (x, y, bias, weight)))
        parts = len(y) if y.ndim == 3 else 1
        _rms_norm_of_sum(*_a_block_each(len(x)), (*arrays, parts, x.size, width, x.shape[1], eps))
    return total, out


def rms_norm_of_cards(
    group: Group, x: Array, weight: Array, eps: float, form: OperandForm
) -> tuple[Array, Array | PackedOperand]:
    """The sum of x (tokens, n) over a group's cards, written to x, and the norm of it, of one launch."""
    out = empty_operand(x.shape, form)
    floats, fp16, packed, width = output_arguments(out)
    norm = {"weight": float32(weight), "floats": floats, "fp16": fp16, "quantized": packed, "width": width, "eps": eps}
    return group.all_reduce(x, norm), out


def rms_norm_of_experts(
    y: Array, rank: Array, weights: Array, residual: Array, weight: Array, eps: float, form: OperandForm
) -> tuple[Array, Array | PackedOperand]:
    """What `rocforge.ops.device.moe.combine` gives, and the norm of it in a form that is not float32, of one launch."""
    (tokens, used), n = weights.shape, residual.shape[1]
    total, operand = empty_operand((tokens, n), OperandForm.FLOAT32), empty_operand((tokens, n), form)
    _, fp16, packed, width = output_arguments(operand)
    y, y_fp16 = floats_of(y)
    args = {"sum": total, "fp16": fp16, "quantized": packed, "y": y, "y_fp16": y_fp16, "rank": rank, "weights": weights}
    args |= {"residual": residual, "weight": float32(weight), "used": used, "width": width, "n": n, "eps": eps}
    _rms_norm_of_experts(*_a_block_each(tokens), args)
    return total, operand


def add_normed(
    x: Array,
    ys: Sequence[Array],
    norms: Sequence[Any],
    factor: Array,
    following: Sequence[tuple[NextNorm, OperandForm]],
) -> tuple[Array, list[Array | PackedOperand]]:
    """What `rocforge.ops.norm.add_normed` gives, also of no ys, of one launch.

    Args:
        x, ys, norms, factor: as there.
        following: up to MAX_NEXT norms, and the form of each.
    """
    x, n = float32(x), x.shape[1]
    total = cupy_module().empty(x.shape, np.float32) if ys else x
    as_is = False, OperandForm.FLOAT32  # the result itself
    outs = [total if (norm.normalizes, form) == as_is else empty_operand(x.shape, form) for norm, form in following]
    if x.size and (ys or any(out is not total for out in outs)):
        y, other = (None if i >= len(ys) else float32(ys[i]) for i in (0, 1))
        next_norms = [_next(norm, out) for (norm, _), out in zip(following, outs, strict=True) if out is not total]
        args = {"sum": total if ys else None, "x": x, "y": y, "other": other, "factor": float32(factor)}
        args |= {"norms": _filled([(float32(norm.weight), norm.eps) for norm in norms], (None, 0.0))}
        args |= {"next": _filled(next_norms, _NO_NEXT), "nexts": len(next_norms), "n": n}
        _ADD_NORMED[other is not None, len(next_norms) > 1](*_a_block_each(len(x)), args)
    return total, outs


MAX_NEXT = 3
"""The most norms of a stream that one launch gives."""
_NO_NEXT = (None, None, None, 0, None, 0.0, 0.0, 0)


def _next(norm: NextNorm, out: Array | PackedOperand) -> tuple[Any, ...]:
    """A `NextNorm` of the kernel."""
    return (*output_arguments(out), float32(norm.weight), norm.eps, norm.scale, int(norm.normalizes))


def _filled(values: list[tuple[Any, ...]], rest: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [*values, *[rest] * (MAX_NEXT - len(values))]


def layer_norm(
    x: Array, weight: Array, bias: Array, eps: float, form: OperandForm = OperandForm.FLOAT32
) -> Array | PackedOperand:
    """As `rms_norm`; float16 takes a launch more."""
    if form is OperandForm.FP16:
        return to_fp16(layer_norm(x, weight, bias, eps))
    x = float32(x)
    out = empty_operand(x.shape, form)
    n = x.shape[-1]
    if x.size:
        floats, _, packed, width = output_arguments(out)
        args = (floats, packed, x, float32(weight), float32(bias), width, n, eps)
        _layer_norm(*_a_block_each(x.size // n), args)
    return out


def _a_block_each(rows: int) -> tuple[tuple[int], tuple[int]]:
    """Grid and block of a launch for that many rows."""
    return (rows,), (tuning.current().norm_threads,)
