"""Products with float16 and bfloat16 weights on the matrix unit, of float_tiles.hip: a launch for up to three matrices.

Values of bfloat16 become float16 on the way, as they do for the BLAS library.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.cards import card_of
from rocforge.device.geometry import FloatTile, float_tile
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.matvec import gated_matrices, matrix_arguments
from rocforge.ops.device.operands import empty_operand
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.device.strided import blocks
from rocforge.ops.device.weights import format_of, memory_of
from rocforge.ops.types import Array, Weight


def float_tile_products(
    x: Array, weights: Sequence[Weight], biases: Sequence[Array] | None = None, residual: Array = None
) -> list[Array]:
    """`x @ w.T + bias` for each of one to three matrices, in one launch.

    Args:
        x: float16 (tokens, columns), 1 to MAX_TILE_TOKENS tokens.
        weights: one to three matrices (rows, columns) of one format, or the last of the other.
        biases: float32 (rows,) or None, for each.
        residual: float32 (tokens, rows of the first), added to the first; or None.

    Returns:
        float32 CuPy arrays (tokens, rows), one for each.
    """
    ys = [cupy_module().empty((len(x), len(w)), np.float32) for w in weights]
    cut, first, last = _cut(len(x), sum(map(len, weights))), format_of(weights[0]).kernel, format_of(weights[-1]).kernel
    args = {"matrices": matrix_arguments(weights, biases, ys), "residual": residual}
    _launch("float_tile_products", cut, first, last, x, sum(blocks(len(w), cut.rows) for w in weights), args)
    return ys


def float_tile_gated(
    x: Array, gate: Weight, up: Weight, biases: Sequence[Array], unit: str, result: OperandForm
) -> Array:
    """`unit(x @ gate.T + gate_bias, x @ up.T + up_bias)` in one launch.

    Args:
        x: float16 (tokens, columns), 1 to MAX_TILE_TOKENS tokens.
        gate, up: matrices of one shape and format.
        biases: float32 (rows,) or None, for each.
        unit: one of GATES.
        result: FLOAT32, or FP16, cut to ±65504.

    Returns:
        (tokens, rows) in that form.
    """
    rows, cut, kernel = len(gate), _cut(len(x), 2 * len(gate)), format_of(gate).kernel
    out = empty_operand((len(x), rows), result)
    to = {"y": None, "fp16": out} if result is OperandForm.FP16 else {"y": out, "fp16": None}
    matrices = gated_matrices([memory_of(gate), memory_of(up)], biases, rows, unit)
    _launch("float_tile_gated", cut, kernel, kernel, x, blocks(2 * rows, cut.rows), {"matrices": matrices, **to})
    return out


def _launch(
    name: str, cut: FloatTile, first: str | None, last: str | None, x: Array, count: int, args: dict[str, Any]
) -> None:
    """Of so many blocks of work."""
    grid = min(count, cut.resident)
    kernel, threads = _kernel(name, cut.width, cut.row_waves, first, last), tuning.current().tile_threads
    kernel((grid,), (threads,), {"x": (x, *x.shape, count, grid), **args})


def _cut(tokens: int, rows: int) -> FloatTile:
    device = cupy_module().cuda.runtime.getDevice()
    return float_tile(tuning.of(device), tokens, rows, card_of(device))


@functools.cache
def _kernel(name: str, width: int, row_waves: int, first: str | None, last: str | None) -> Kernel:
    other: dict[str, Any] = {} if first == last else {"RF_QTYPE_LAST": last}
    sizes: dict[str, Any] = {"RF_TOKENS": width, "RF_ROW_WAVES": row_waves}
    return Kernel("float_tiles.hip", name, RF_QTYPE=first, **sizes, **other)
