"""Products of 64 and more tokens with planar weights on Hopper's matrix unit: one launch for up to three matrices."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device import geometry
from rocforge.device.cards import card_of
from rocforge.device.geometry import WIDE_LDS
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.planar import cells_of
from rocforge.ops.device.matvec import gated_matrices, gated_output, matrix_arguments
from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.device.strided import blocks
from rocforge.ops.device.weights import format_of, memory_of
from rocforge.ops.types import Array, Weight


def wide_products(
    x: PackedOperand, weights: Sequence[Weight], biases: Sequence[Array] | None = None, residual: Array = None
) -> list[Array]:
    """`x @ w.T + bias` for each of one to three matrices, in one launch.

    Args:
        x: swizzled.
        weights: one to three planar matrices (rows, columns) of one format, or the last of another.
        biases: float32 (rows,) or None, for each.
        residual: float32 (tokens, rows of the first), added to the first; or None.

    Returns:
        float32 CuPy arrays (tokens, rows), one for each.
    """
    ys = [cupy_module().empty((len(x), len(w)), np.float32) for w in weights]
    first, last = format_of(weights[0]).kernel, format_of(weights[-1]).kernel
    other = None if first == last else last
    args = {"matrices": matrix_arguments(weights, biases, ys), "residual": residual}
    _launch("wide_products", x, [len(w) for w in weights], first, other, args)
    return ys


def wide_gated(
    x: PackedOperand, gate: Weight, up: Weight, biases: Sequence[Array], unit: str, result: OperandForm
) -> Array | PackedOperand:
    """`unit(x @ gate.T + gate_bias, x @ up.T + up_bias)` in one launch.

    Args:
        x: swizzled.
        gate, up: planar matrices of one shape and format.
        biases: float32 (rows,) or None, for each.
        unit: one of GATES.
        result: FLOAT32, or SWIZZLED, for the product that follows.

    Returns:
        (tokens, rows) in that form.
    """
    out, output, elements = gated_output(len(x), len(gate), result)
    matrices = gated_matrices([memory_of(gate), memory_of(up)], biases, len(gate), unit)
    args = {"matrices": matrices, "out": output}
    _launch("wide_gated", x, [2 * elements], format_of(gate).kernel, None, args)
    return out


def _launch(
    name: str, x: PackedOperand, matrices: Sequence[int], first: str | None, last: str | None, args: dict[str, Any]
) -> None:
    (tokens, columns), units = x.shape, card_of(cupy_module().cuda.runtime.getDevice()).compute_units
    cut = geometry.wide(tokens, matrices, units)
    token_blocks, row_blocks = blocks(tokens, cut.tokens), sum(blocks(rows, cut.rows) for rows in matrices)
    sizes = {"tokens": tokens, "width": x.width, "cells": cells_of(columns)}
    sizes |= {"token_blocks": token_blocks, "row_blocks": row_blocks}
    grid = (cut.split * cut.share * token_blocks * blocks(row_blocks, cut.share),)
    _kernel(name, first, last, cut)(grid, (cut.threads,), {"x": x.data, **sizes, **args}, WIDE_LDS)


@functools.cache
def _kernel(name: str, first: str | None, last: str | None, cut: geometry.Wide) -> Kernel:
    other = {} if last is None else {"RF_QTYPE_LAST": last}
    sizes: dict[str, Any] = {"RF_TOKENS": cut.tokens, "RF_SPLIT": cut.split, "RF_SHARE": cut.share, "RF_LDS": WIDE_LDS}
    return Kernel("wide.hip", name, RF_QTYPE=first, **sizes, **other)
