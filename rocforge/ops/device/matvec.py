"""Products of one to eight columns with weights on a device: one launch for up to three matrices.

The activations are int8 (`rocforge.ops.device.operands`), unless the weights are floats.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device.arrays import cupy_module
from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.formats.planar import CELL, cells_of
from rocforge.ops.device.operands import Activations, Norm, format_of, is_packed, nbytes_of_row, quantize_activations
from rocforge.ops.device.strided import blocks
from rocforge.quant import QuantizedArray

THREADS, GATED_THREADS = 128, 256
"""As in matvec.hip: threads of a block."""

MATRICES = " ".join(["void* float32*? float32*? int32"] * 3)
"""The signature of what `laid_out` gives."""
GATED = "int32 int32 void* void* float32*? float32*? float32*? uint8*? int32 int32 int32"
"""The signature of a gated kernel, after its activations."""
RUN = 32
"""As in matvec.hip: rows of a block that are rounded together."""
WIDE_BLOCKS = ("gfx90a", "gfx942", "gfx950")
"""Architectures for which matvec.hip allows `product_then_norm` blocks of 1,024 threads."""


def rows_in_order(weight: Any) -> Any:
    """The array of a weight, C-contiguous."""
    return cupy_module().ascontiguousarray(weight.data if isinstance(weight, QuantizedArray) else weight)


_X = "void* float32*? int32 float32"
"""The signature of what `_columns` gives first."""


def _columns(x: Any, weight: Any) -> tuple[tuple[Any, Any, int, float], int]:
    """x as the kernel for that weight takes it, with the norm that it lacks, and the cells of a row."""
    if not is_packed(format_of(weight)):
        return (cupy_module().ascontiguousarray(x, dtype=np.float32), None, 0, 0.0), nbytes_of_row(weight) // 16
    x = x if isinstance(x, Activations) else quantize_activations(x)
    squares, eps = x.norm or (None, 0.0)
    return (x.data, squares, x.shape[1], eps), cells_of(weight.shape[1])


def _rows_together(n: int) -> int:
    """Rows that a group of lanes computes together, to read the columns once for all of them."""
    return 1 if n == 1 else 2 if n <= 4 else 4


def log_lanes_of(n: int, rows: int, cells: int) -> int:
    """Lanes that share a row, as a power of two.

    For one column 16, or 32 of few rows, to make enough threads for the card, but no more than there are cells; for
    more columns as few as make enough.
    """
    if n == 1:
        return 3 if cells <= 8 else 4 if cells <= 16 or rows >= 4096 else 5
    enough = 300_000 // n
    return next((log for log in (3, 4) if rows // _rows_together(n) << log >= enough), 5)


def products(x: Any, weights: Sequence[Any], biases: Sequence[Any] | None = None, residual: Any = None) -> list[Any]:
    """`x @ w.T + bias` for each of one to three matrices, in one launch.

    Args:
        x: float32 CuPy array (n, columns), n from 1 to MAX_COLUMNS; or Activations, where the weights are not floats.
        weights: one to three matrices (rows, columns) of one format, or the last of another; all packed or all floats.
        biases: float32 (rows,) or None, for each.
        residual: float32 (n, rows of the first), added to the first; or None.

    Returns:
        float32 CuPy arrays (n, rows), one for each.
    """
    cupy, n = cupy_module(), x.shape[0]
    columns, cells = _columns(x, weights[0])
    ys = [cupy.empty((n, len(w)), np.float32) for w in weights]
    log_lanes = log_lanes_of(n, sum(map(len, weights)), cells)
    args = (*columns, n, cells, log_lanes, *laid_out(columns[0], weights, biases, ys), residual)
    grid = sum(blocks(blocks(len(w), _rows_together(n)) << log_lanes, THREADS) for w in weights)
    _product_kernel(n, format_of(weights[0]), format_of(weights[-1]))((grid,), (THREADS,), args)
    return ys


def product_then_norm(x: Any, weight: Any, bias: Any, residual: Any, norm: Any, eps: float) -> tuple[Any, Activations]:
    """`x @ weight.T + bias + residual`, and its rms_norm for the product that follows, of one launch.

    The norm's factor, for which all elements have to be there, is left to that product.

    Args:
        x: as in `products`, one row, no norm lacking.
        weight: packed matrix (rows, columns).
        bias: float32 (rows,), or None.
        residual: float32 (1, rows), or None.
        norm: float32 (rows,), the norm's weight.
        eps: of the norm.

    Returns:
        float32 CuPy array (1, rows), and Activations of that shape.
    """
    (data, *_), cells = _columns(x, weight)
    rows, cupy = len(weight), cupy_module()
    y, squares = cupy.empty((1, rows), np.float32), cupy.empty(blocks(rows, RUN), np.float32)
    rounded = Activations.empty(1, rows)
    rounded.norm = Norm(squares, eps)
    out_cells, card = cells_of(rows), card_of(cupy.cuda.runtime.getDevice())
    log_lanes = log_lanes_then_norm(rows, cells, card.family, card.compute_units)
    args = (data, cells, log_lanes, rows_in_order(weight), bias, residual, y, rows)
    args = (*args, norm, rounded.data, out_cells, squares)
    _then_norm_kernel(format_of(weight))((out_cells * CELL // RUN,), (RUN << log_lanes,), args)
    return y, rounded


def log_lanes_then_norm(rows: int, cells: int, arch: str, units: int) -> int:
    """Lanes that share a row of `product_then_norm`, as a power of two: 16, but no more than there are cells.

    On a card of WIDE_BLOCKS with twice as many units as blocks it is 32, since the few waves of a block would wait for
    one cell after another.
    """
    most = 5 if arch in WIDE_BLOCKS and 2 * blocks(rows, RUN) <= units else 4
    return next(log for log in (3, 4, 5) if cells <= 1 << log or log == most)


def fills_device(rows: int) -> bool:
    """Whether `fills_units` says so of the current device."""
    return fills_units(rows, card_of(cupy_module().cuda.runtime.getDevice()).compute_units)


def fills_units(rows: int, units: int) -> bool:
    """Whether the blocks of `product_then_norm` for that many rows, one a multiprocessor, leave few of them idle at the
    end: where most would be, a product in smaller blocks, and a launch for the norm, is faster."""
    count = blocks(rows, RUN)
    return count <= units or count >= 0.8 * units * blocks(count, units)


@functools.cache
def _then_norm_kernel(name: str) -> Kernel:
    signature = "void* int32 int32 void* float32*? float32*? float32* int32 float32* uint8* int32 float32*"
    return Kernel("matvec.hip", "matvec_then_norm", signature, RF_QTYPE=name, RF_COLUMNS=1, RF_ROWS=1)


def laid_out(nothing: Any, weights: Sequence[Any], biases: Sequence[Any] | None, ys: Sequence[Any]) -> list[Any]:
    """The arguments for the three matrices of a launch: rows, bias, result and number of rows of each.

    Of fewer than three the first comes first and the last goes last, since that may be of another format.

    Args:
        nothing: an array that stands in for a matrix that is not there.
        weights, biases, ys: of one to three matrices.
    """
    args, last = [], len(weights) - 1
    for i in (0, 1, 2):
        at = i if i < last else last if i == 2 and last else 0 if i == 0 else None
        if at is None:
            args += [nothing, None, None, 0]
        else:
            args += [rows_in_order(weights[at]), None if biases is None else biases[at], ys[at], len(weights[at])]
    return args


@functools.cache
def _product_kernel(n: int, first: str, last: str) -> Kernel:
    signature = f"{_X} int32 int32 int32 {MATRICES} float32*?"
    other = {} if first == last else {"RF_QTYPE_LAST": last}
    return Kernel("matvec.hip", "matvec", signature, RF_QTYPE=first, **_shape(n), **other)


def _shape(n: int) -> dict[str, int]:
    """The kernel for that many columns: there is one for 1, for 2, for up to 4 and for up to 8."""
    return {"RF_COLUMNS": 1 << (n - 1).bit_length(), "RF_ROWS": _rows_together(n)}


GATES = {"swiglu": 0, "geglu": 1, "swiglu_oai": 2}


def gated_product(
    x: Any,
    gate: Any,
    up: Any,
    gate_bias: Any = None,
    up_bias: Any = None,
    activation: str = "swiglu",
    rounded: bool = False,
) -> Any:
    """`activation(x @ gate.T + gate_bias, x @ up.T + up_bias)` in one launch.

    Args:
        x: as in `products`.
        gate, up: matrices of equal shape and format.
        gate_bias, up_bias: float32 (rows,), or None.
        activation: one of GATES; functions of that name are in rocforge.ops.activation.
        rounded: give Activations, for the product that follows.

    Returns:
        float32 CuPy array (n, rows), or Activations of that shape.
    """
    n, rows = x.shape[0], len(gate)
    columns, cells = _columns(x, gate)
    result, outputs, elements = gated_outputs(n, rows, rounded)
    args = (
        *columns,
        n,
        cells,
        rows_in_order(gate),
        rows_in_order(up),
        gate_bias,
        up_bias,
        *outputs,
        rows,
        GATES[activation],
    )
    block_rows = 64 if _rows_together(n) == 4 else 32
    _gated_kernel(n, format_of(gate))((blocks(elements, block_rows),), (GATED_THREADS,), args)
    return result


def gated_outputs(n: int, rows: int, rounded: bool, columns: int = 0) -> tuple[Any, tuple[Any, Any, int], int]:
    """Room for the result of a gated product: Activations, of units for that many columns, or floats.

    Returns:
        The result; the kernel's arguments for it; and the elements of a row of it, as far as they are filled up.
    """
    if rounded:
        result, cells = Activations.empty(n, rows, columns), cells_of(rows)
        return result, (None, result.data, cells), CELL * cells
    result = cupy_module().empty((n, rows), np.float32)
    return result, (result, None, 0), rows


@functools.cache
def _gated_kernel(n: int, name: str) -> Kernel:
    return Kernel("matvec.hip", "matvec_gated", f"{_X} {GATED}", RF_QTYPE=name, **_shape(n))
