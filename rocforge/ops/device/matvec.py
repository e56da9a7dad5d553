"""GEMV: products of one to eight tokens with weights, one launch for up to three matrices.

x is int8 (`rocforge.ops.device.operands`), or float32 where the weights are floats.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.cards import card_of
from rocforge.device.geometry import GEMV_RUN, gated_rows, gemv_log_lanes, gemv_rows, then_norm_log_lanes
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.planar import CELL, cells_of
from rocforge.ops.device.operands import PackedOperand, PartialNorm, empty_operand
from rocforge.ops.device.plan import MAX_MATRICES, OperandForm
from rocforge.ops.device.strided import blocks
from rocforge.ops.device.weights import format_of, memory_of
from rocforge.ops.types import Array, Weight


def _operand(x: Array | PackedOperand, cells: int) -> dict[str, Any]:
    """x, in rows of that many cells, as kernels take it, with the norm that it lacks."""
    data, norm = (x.data, x.norm) if isinstance(x, PackedOperand) else (x, None)
    squares, eps = norm or (None, 0.0)
    return {"x": data, "squares": squares, "columns": x.shape[1], "eps": eps, "tokens": len(x), "cells": cells}


def products(
    x: Array | PackedOperand, weights: Sequence[Weight], biases: Sequence[Array] | None = None, residual: Array = None
) -> list[Array]:
    """`x @ w.T + bias` for each of one to three matrices, in one launch.

    Args:
        x: (tokens, columns), tokens from 1 to MAX_GEMV_TOKENS: int8, or float32 where the weights are floats.
        weights: one to three matrices (rows, columns) of one format, or the last of another; all planar or all floats.
        biases: float32 (rows,) or None, for each.
        residual: float32 (tokens, rows of the first), added to the first; or None.

    Returns:
        float32 CuPy arrays (tokens, rows), one for each.
    """
    empty, (tokens, columns), tuned = cupy_module().empty, x.shape, tuning.current()
    first, last = format_of(weights[0]), format_of(weights[-1])
    cells = first.cells(columns)
    ys = [empty((tokens, len(w)), np.float32) for w in weights]
    log_lanes = gemv_log_lanes(tuned, tokens, sum(map(len, weights)), cells)
    matrices = matrix_arguments(weights, biases, ys)
    args = {**_operand(x, cells), "log_lanes": log_lanes, "matrices": matrices, "residual": residual}
    threads, together = tuned.gemv_threads, gemv_rows(tuned, tokens)
    grid = sum(blocks(blocks(len(w), together) << log_lanes, threads) for w in weights)
    _product_kernel(tokens, first.kernel, last.kernel)((grid,), (threads,), args)
    return ys


def product_then_norm(
    x: PackedOperand, weight: Weight, bias: Array, residual: Array, norm: Array, eps: float
) -> tuple[Array, PackedOperand]:
    """`x @ weight.T + bias + residual`, and its rms_norm for the product that follows, of one launch.

    The norm's factor, for which all elements have to be there, is left to that product.

    Args:
        x: int8 (1, columns), no norm lacking.
        weight: planar matrix (rows, columns).
        bias: float32 (rows,), or None.
        residual: float32 (1, rows), or None.
        norm: float32 (rows,), the norm's weight.
        eps: of the norm.

    Returns:
        float32 CuPy array (1, rows), and int8 of that shape.
    """
    cupy, rows, cells = cupy_module(), len(weight), cells_of(x.shape[1])
    y, squares = cupy.empty((1, rows), np.float32), cupy.empty(blocks(rows, GEMV_RUN), np.float32)
    normed = empty_operand((1, rows), OperandForm.INT8)
    normed.norm = PartialNorm(squares, eps)
    out_cells, device = cells_of(rows), cupy.cuda.runtime.getDevice()
    log_lanes = then_norm_log_lanes(tuning.of(device), rows, cells, card_of(device).compute_units)
    product = (x.data, cells, log_lanes, memory_of(weight), bias, residual, y, rows)
    grid, threads = out_cells * CELL // GEMV_RUN, GEMV_RUN << log_lanes
    args = (*product, norm, normed.data, out_cells, squares)
    _then_norm_kernel(format_of(weight).kernel)((grid,), (threads,), args)
    return y, normed


@functools.cache
def _then_norm_kernel(name: str) -> Kernel:
    signature = "void* int32 int32 void* float32*? float32*? float32* int32 float32* uint8* int32 float32*"
    return Kernel("matvec.hip", "matvec_then_norm", signature, RF_QTYPE=name, RF_TOKENS=1)


_NO_MATRIX = (None, None, None, 0)


def matrix_arguments(
    weights: Sequence[Weight], biases: Sequence[Array] | None, ys: Sequence[Array]
) -> list[tuple[Array, Array, Array, int]]:
    """The MAX_MATRICES `Matrix` of a launch, of one weight to as many.

    Of fewer the first comes first and the last goes last, since that may be of another format.
    """
    biases = [None] * len(weights) if biases is None else biases
    first, *rest = [(memory_of(w), bias, y, len(w)) for w, bias, y in zip(weights, biases, ys, strict=True)]
    return [first, *[_NO_MATRIX] * (MAX_MATRICES - 1 - len(rest)), *rest]


@functools.cache
def _product_kernel(tokens: int, first: str, last: str) -> Kernel:
    other = {} if first == last else {"RF_QTYPE_LAST": last}
    return Kernel("matvec.hip", "matvec", RF_QTYPE=first, **_shape(tokens), **other)


def _shape(tokens: int) -> dict[str, Any]:
    """The kernel for that many tokens: there is one for 1, for 2, for up to 4 and for up to 8."""
    return {"RF_TOKENS": 1 << (tokens - 1).bit_length()}


GATES = {"swiglu": 0, "geglu": 1, "swiglu_oai": 2}
"""The kernels' numbers of gated units; functions of that name are in rocforge.ops.activation."""


def gated_product(
    x: Array | PackedOperand, gate: Weight, up: Weight, biases: Sequence[Array], unit: str, result: OperandForm
) -> Array | PackedOperand:
    """`unit(x @ gate.T + gate_bias, x @ up.T + up_bias)` in one launch.

    Args:
        x: as in `products`.
        gate, up: matrices of equal shape and format.
        biases: float32 (rows,) or None, for each.
        unit: one of GATES.
        result: FLOAT32, or INT8 for the product that follows.

    Returns:
        (tokens, rows) in that form.
    """
    (tokens, columns), rows, weight = x.shape, len(gate), format_of(gate)
    out, output, elements = gated_output(tokens, rows, result)
    matrices = gated_matrices([memory_of(gate), memory_of(up)], biases, rows, unit)
    args = {**_operand(x, weight.cells(columns)), "matrices": matrices, "out": output}
    tuned = tuning.current()
    grid = blocks(elements, gated_rows(tuned, tokens))
    _gated_kernel(tokens, weight.kernel)((grid,), (tuned.gated_threads,), args)
    return out


def gated_matrices(pair: Sequence[Array], biases: Sequence[Array], rows: int, unit: str) -> tuple[Any, ...]:
    """The `Gated` of a launch: of the memory of gate and up, and their biases. A memory of both has the rows of gate,
    and then those of up, of each expert."""
    if len(pair) > 1:
        return *pair, *biases, rows, rows, GATES[unit]
    (data,) = pair
    up = data.reshape(-1)[rows * math.prod(data.shape[2:]) :]
    return data, up, None, None, rows, 2 * rows, GATES[unit]


def gated_output(
    tokens: int, rows: int, form: OperandForm
) -> tuple[Array | PackedOperand, tuple[Array, Array, int], int]:
    """Room for the result of a gated product, float32 or packed.

    Returns:
        The result; the `GatedOutput` of the launch; and the elements of a row of it, as far as they are filled up.
    """
    out = empty_operand((tokens, rows), form)
    if form.packed:
        cells = cells_of(rows)
        return out, (None, out.data, cells), CELL * cells
    return out, (out, None, 0), rows


@functools.cache
def _gated_kernel(tokens: int, name: str) -> Kernel:
    return Kernel("matvec.hip", "matvec_gated", RF_QTYPE=name, **_shape(tokens))
