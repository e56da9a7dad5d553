"""Products of one token with planar weights on Hopper, of stream.hip: what matvec.py has, from weights streamed through
LDS by blocks that stay."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.cards import card_of
from rocforge.device.geometry import GEMV_RUN
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.planar import CELL, cells_of
from rocforge.ops.device.matvec import gated_matrices, gated_output, matrix_arguments
from rocforge.ops.device.operands import PackedOperand, PartialNorm, empty_operand
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.device.strided import blocks
from rocforge.ops.device.weights import format_of, memory_of
from rocforge.ops.types import Array, Weight

WAVES = 8
"""Of a block."""


def stream_products(
    x: PackedOperand, weights: Sequence[Weight], biases: Sequence[Array] | None = None, residual: Array = None
) -> list[Array]:
    """`matvec.products` of one token in int8."""
    ys = [cupy_module().empty((1, len(w)), np.float32) for w in weights]
    first, last = format_of(weights[0]).kernel, format_of(weights[-1]).kernel
    args = {"matrices": matrix_arguments(weights, biases, ys), "residual": residual}
    _launch("stream_products", x, blocks(sum(map(len, weights)), WAVES), first, last, args)
    return ys


def stream_gated(
    x: PackedOperand, gate: Weight, up: Weight, biases: Sequence[Array], unit: str, result: OperandForm
) -> Array | PackedOperand:
    """`matvec.gated_product` of one token in int8."""
    out, output, elements = gated_output(1, len(gate), result)
    matrices = gated_matrices([memory_of(gate), memory_of(up)], biases, len(gate), unit)
    kernel = format_of(gate).kernel
    args = {"matrices": matrices, "out": output}
    _launch("stream_gated", x, blocks(elements, GEMV_RUN), kernel, kernel, args)
    return out


def stream_then_norm(
    x: PackedOperand, weight: Weight, bias: Array, residual: Array, norm: Array, eps: float
) -> tuple[Array, PackedOperand]:
    """`matvec.product_then_norm`."""
    rows, kernel = len(weight), format_of(weight).kernel
    y = cupy_module().empty((1, rows), np.float32)
    squares = cupy_module().empty(blocks(rows, GEMV_RUN), np.float32)
    normed = empty_operand((1, rows), OperandForm.INT8)
    normed.norm = PartialNorm(squares, eps)
    args = {"w": memory_of(weight), "bias": bias, "residual": residual, "y": y, "weight": norm}
    args |= {"quantized": normed.data, "squares": squares, "rows": rows, "out_cells": cells_of(rows)}
    _launch("stream_then_norm", x, blocks(cells_of(rows) * CELL, GEMV_RUN), kernel, kernel, args)
    return y, normed


def _launch(name: str, x: PackedOperand, most: int, first: str | None, last: str | None, args: dict[str, Any]) -> None:
    """At most so many blocks."""
    device, columns = cupy_module().cuda.runtime.getDevice(), x.shape[1]
    tuned, cells = tuning.of(device), cells_of(columns)
    grid = min(card_of(device).compute_units, most)
    squares, eps = x.norm or (None, 0.0)
    log_lanes = 4 if cells <= 16 else 5
    args["x"] = (x.data, squares, columns, eps, cells, log_lanes, grid)
    _kernel(name, first, last, tuned.stream_lds)((grid,), (32 * WAVES,), args, tuned.stream_lds)


@functools.cache
def _kernel(name: str, first: str | None, last: str | None, lds: int) -> Kernel:
    other: dict[str, Any] = {} if first == last else {"RF_QTYPE_LAST": last}
    return Kernel("stream.hip", name, RF_QTYPE=first, RF_LDS=lds, **other)
