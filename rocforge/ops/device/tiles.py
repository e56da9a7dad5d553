"""Products with planar weights on the matrix unit, of tiles.hip: one launch for up to three matrices."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.cards import card_of
from rocforge.device.geometry import tile_blocks, tile_row_tiles, tile_row_waves
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.planar import cells_of
from rocforge.ops.device.matvec import gated_matrices, gated_output, matrix_arguments
from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.device.strided import blocks
from rocforge.ops.device.weights import format_of, memory_of
from rocforge.ops.types import Array, Weight


def tile_products(
    x: PackedOperand, weights: Sequence[Weight], biases: Sequence[Array] | None = None, residual: Array = None
) -> list[Array]:
    """`x @ w.T + bias` for each of one to three matrices, in one launch.

    Args:
        x: fragments.
        weights: one to three planar matrices (rows, columns) of one format, or the last of another.
        biases: float32 (rows,) or None, for each.
        residual: float32 (tokens, rows of the first), added to the first; or None.

    Returns:
        float32 CuPy arrays (tokens, rows), one for each.
    """
    (tokens, columns), width, device = x.shape, x.width, cupy_module().cuda.runtime.getDevice()
    ys = [cupy_module().empty((tokens, len(w)), np.float32) for w in weights]
    card, tuned = card_of(device), tuning.of(device)
    waves = tile_row_waves(tuned, width, sum(map(len, weights)), card)
    height = 16 * tile_row_tiles(tuned, width) * waves
    first, last = format_of(weights[0]).kernel, format_of(weights[-1]).kernel
    kernel = _kernel("tile_products", first, width, waves, last if last != first else None)
    matrices = matrix_arguments(weights, biases, ys)
    args = {"x": x.data, "tokens": tokens, "cells": cells_of(columns), "matrices": matrices, "residual": residual}
    kernel((sum(blocks(len(w), height) for w in weights), blocks(tokens, width)), (tuned.tile_threads,), args)
    return ys


def tile_gated(
    x: PackedOperand, gate: Weight, up: Weight, biases: Sequence[Array], unit: str, result: OperandForm
) -> Array | PackedOperand:
    """`unit(x @ gate.T + gate_bias, x @ up.T + up_bias)` in one launch.

    Args:
        x: fragments.
        gate, up: planar matrices of one shape and format.
        biases: float32 (rows,) or None, for each.
        unit: one of GATES.
        result: FLOAT32, or the form of x, for the product that follows.

    Returns:
        (tokens, rows) in that form.
    """
    (tokens, columns), rows, width, device = x.shape, len(gate), x.width, cupy_module().cuda.runtime.getDevice()
    card, tuned = card_of(device), tuning.of(device)
    waves = tile_row_waves(tuned, width, 2 * rows, card)
    height = 8 * tile_row_tiles(tuned, width) * waves
    out, output, elements = gated_output(tokens, rows, result)
    matrices = gated_matrices([memory_of(gate), memory_of(up)], biases, rows, unit)
    kernel = _kernel("tile_gated", format_of(gate).kernel, width, waves, None)
    grid = min(blocks(elements, height), tile_blocks(tuned, width, card))
    args = {"x": x.data, "tokens": tokens, "cells": cells_of(columns), "matrices": matrices, "out": output}
    kernel((grid, blocks(tokens, width)), (tuned.tile_threads,), {**args, "grid": grid})
    return out


@functools.cache
def _kernel(name: str, first: str, width: int, row_waves: int, last: str | None) -> Kernel:
    other = {} if last is None else {"RF_QTYPE_LAST": last}
    sizes: dict[str, Any] = {"RF_TOKENS": width, "RF_ROW_WAVES": row_waves}
    return Kernel("tiles.hip", name, RF_QTYPE=first, **sizes, **other)
