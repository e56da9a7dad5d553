"""Products of up to 64 tokens with planar weights on the matrix unit: one launch for up to three matrices."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from rocforge.device.arrays import cupy_module
from rocforge.device.kernels import Kernel
from rocforge.formats.planar import cells_of
from rocforge.ops.device.matvec import GATED, GATES, MATRICES, gated_outputs, matrix_arguments
from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.device.plan import OperandForm, current_card
from rocforge.ops.device.strided import blocks
from rocforge.ops.device.weights import format_of, memory_of
from rocforge.ops.types import Array, Weight

THREADS = 256
"""As in tiles.hip: threads of a block."""


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
    (tokens, columns), width = x.shape, x.form.width
    ys = [cupy_module().empty((tokens, len(w)), np.float32) for w in weights]
    height = _wave_rows(width) * (waves := _row_waves(sum(map(len, weights)), width))
    first, last = format_of(weights[0]).kernel, format_of(weights[-1]).kernel
    kernel = _kernel("tile_products", first, width, waves, last if last != first else None)
    args = (x.data, tokens, cells_of(columns), *matrix_arguments(x.data, weights, biases, ys), residual)
    kernel((sum(blocks(len(w), height) for w in weights),), (THREADS,), args)
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
    (tokens, columns), rows, width = x.shape, len(gate), x.form.width
    height = _wave_rows(width) // 2 * (waves := _row_waves(2 * rows, width))
    out, outputs, elements = gated_outputs(tokens, rows, result)
    args = (x.data, tokens, cells_of(columns), memory_of(gate), memory_of(up), *biases, *outputs)
    kernel = _kernel("tile_gated", format_of(gate).kernel, width, waves, None)
    grid = min(blocks(elements, height), _resident(width))
    kernel((grid,), (THREADS,), (*args, rows, GATES[unit], grid))
    return out


def _wave_rows(width: int) -> int:
    """As in tiles.hip: rows of a wave, one tile or two."""
    return 32 if width == 64 else 16


def _row_waves(rows: int, width: int) -> int:
    """Runs of rows that a block's waves take, which read x once for all: as many as leave a block for each unit."""
    if width == 8:
        return 1
    card = current_card()
    most = THREADS // card.wave // 2
    return next((n for n in (4, 2) if n <= most and rows >= n * _wave_rows(width) * card.compute_units), 1)


def _resident(width: int) -> int:
    """Blocks that a device runs at a time, by what KERNEL_WIDE asks for in tiles.hip.

    On NVIDIA that is 512 threads a multiprocessor, for a width of 64 it is 256; on AMD 256 a SIMD, of which a unit has
    four.
    """
    card = current_card()
    return card.compute_units * (4 if card.is_amd else 1 if width == 64 else 2)


_SIGNATURES = {"tile_products": f"void* int32 int32 {MATRICES} float32*?", "tile_gated": f"void* {GATED} int32"}


@functools.cache
def _kernel(name: str, first: str, width: int, row_waves: int, last: str | None) -> Kernel:
    other = {} if last is None else {"RF_QTYPE_LAST": last}
    sizes = {"RF_COLUMNS": width, "RF_ROW_WAVES": row_waves}
    return Kernel("tiles.hip", name, _SIGNATURES[name], RF_QTYPE=first, **sizes, **other)
