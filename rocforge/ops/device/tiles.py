"""Products of many columns with packed weights on the matrix unit: one launch for up to three matrices."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device.arrays import cupy_module
from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.formats.planar import cells_of
from rocforge.ops.device.matvec import GATED, GATES, MATRICES, gated_outputs, laid_out, rows_in_order
from rocforge.ops.device.operands import Activations, format_of
from rocforge.ops.device.strided import blocks

THREADS = 256
"""As in tiles.hip: threads of a block."""


def tile_products(x: Activations, weights: Sequence[Any], biases: Sequence[Any] | None, residual: Any) -> list[Any]:
    """`x @ w.T + bias` for each of one to three matrices, in one launch.

    Args:
        x: units.
        weights: one to three packed matrices (rows, columns) of one format, or the last of another.
        biases: float32 (rows,) or None, for each.
        residual: float32 (n, rows of the first), added to the first; or None.

    Returns:
        float32 CuPy arrays (n, rows), one for each.
    """
    ys = [cupy_module().empty((len(x), len(w)), np.float32) for w in weights]
    height = _wave_rows(x.columns) * (waves := _row_waves(sum(map(len, weights)), x.columns))
    first, last = format_of(weights[0]), format_of(weights[-1])
    kernel = _kernel("tile_products", first, x.columns, waves, last if last != first else None)
    args = (x.data, len(x), cells_of(x.shape[1]), *laid_out(x.data, weights, biases, ys), residual)
    kernel((sum(blocks(len(w), height) for w in weights),), (THREADS,), args)
    return ys


def tile_gated(x: Activations, gate: Any, up: Any, biases: tuple[Any, Any], activation: str, rounded: bool) -> Any:
    """`activation(x @ gate.T + gate_bias, x @ up.T + up_bias)` in one launch.

    Args:
        x: units.
        gate, up: packed matrices of one shape and format.
        biases: float32 (rows,) or None, for each.
        activation: one of GATES.
        rounded: give units, for the product that follows.

    Returns:
        float32 CuPy array (n, rows), or Activations of that shape.
    """
    rows = len(gate)
    height = _wave_rows(x.columns) // 2 * (waves := _row_waves(2 * rows, x.columns))
    result, outputs, elements = gated_outputs(len(x), rows, rounded, x.columns)
    args = (x.data, len(x), cells_of(x.shape[1]), rows_in_order(gate), rows_in_order(up), *biases, *outputs)
    kernel = _kernel("tile_gated", format_of(gate), x.columns, waves, None)
    grid = min(blocks(elements, height), _resident(x.columns))
    kernel((grid,), (THREADS,), (*args, rows, GATES[activation], grid))
    return result


def _wave_rows(columns: int) -> int:
    """As in tiles.hip: rows of a wave, one tile or two."""
    return 32 if columns == 64 else 16


def _row_waves(rows: int, columns: int) -> int:
    """Runs of rows that a block's waves take, which read x once for all: as many as leave a block for each unit."""
    device = cupy_module().cuda.runtime.getDevice()
    if columns == 8:
        return 1
    most = THREADS // card_of(device).wave // 2
    return next((n for n in (4, 2) if n <= most and rows >= n * _wave_rows(columns) * card_of(device).compute_units), 1)


def _resident(columns: int) -> int:
    """Blocks that a device runs at a time, by what KERNEL_WIDE asks for in tiles.hip.

    On NVIDIA that is 512 threads a multiprocessor, for 64 columns 256; on AMD 256 a SIMD, of which a unit has four.
    """
    runtime = cupy_module().cuda.runtime
    return card_of(runtime.getDevice()).compute_units * (4 if runtime.is_hip else 1 if columns == 64 else 2)


_SIGNATURES = {"tile_products": f"void* int32 int32 {MATRICES} float32*?", "tile_gated": f"void* {GATED} int32"}


@functools.cache
def _kernel(name: str, first: str, columns: int, row_waves: int, last: str | None) -> Kernel:
    other = {} if last is None else {"RF_QTYPE_LAST": last}
    sizes = {"RF_COLUMNS": columns, "RF_ROW_WAVES": row_waves}
    return Kernel("tiles.hip", name, _SIGNATURES[name], RF_QTYPE=first, **sizes, **other)
