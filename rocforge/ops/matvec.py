"""Products of one to eight columns with weights on a device: one launch for up to three matrices.

The activations are rounded to int8, each 32 elements with a float32 scale, unless the weights are floats.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.arrays import cupy_module
from rocforge.kernels import Kernel
from rocforge.ops.dequantize import cells_of
from rocforge.quant import QuantizedArray

MAX_COLUMNS = 8
THREADS, GATED_THREADS = 128, 256
"""As in matvec.hip: threads of a block."""
ACTIVATION_NBYTES = 160
"""Bytes of a cell of activations: 128 int8 values, four float32 scales, eight int16 sums."""

_FLOATS = {"float32": "Floats<float>", "float16": "Floats<f16>", "F32": "Floats<float>", "F16": "Floats<f16>"}
_FLOATS["BF16"] = "Floats<bf16>"
_MATRIX = "void* float32*? float32*? int32"


class Activations:
    """Rows of activations in int8, as `Activation` in rawkernels/quants.h lays them out.

    Args:
        data: uint8 CuPy array (rows, bytes of a row).
        size: elements of a row; shape is (rows, size).
    """

    def __init__(self, data: Any, size: int):
        self.data, self.shape, self.ndim = data, (len(data), size), 2

    @classmethod
    def empty(cls, rows: int, size: int) -> Activations:
        """Room for that many rows, on the current device."""
        nbytes = ACTIVATION_NBYTES * cells_of(size)
        return cls(cupy_module().empty((rows, nbytes), np.uint8), size)


_quantize = Kernel("quantize.hip", "quantize_activations", "float32* uint8* int32 int32")


def quantize_activations(x: Any) -> Activations:
    """Rows of a float32 CuPy array (rows, size) in int8."""
    rows, size = x.shape
    y = Activations.empty(rows, size)
    cells = cells_of(size)
    _quantize((-(-cells * 128 // 1024), rows), (256,), (cupy_module().ascontiguousarray(x), y.data, size, cells))
    return y


def format_of(weight: Any) -> str | None:
    """The format of a weight as matvec.hip names it, or None where it has no kernel for that or for its row length."""
    if isinstance(weight, QuantizedArray) and weight.planar:
        return weight.qtype.name
    name = _FLOATS.get(weight.qtype.name if isinstance(weight, QuantizedArray) else weight.dtype.name)
    return name if _nbytes_of_row(weight) % 16 == 0 else None


def is_packed(name: str | None) -> bool:
    """Whether weights of that format (of `format_of`) are multiplied with int8 activations."""
    return name is not None and name not in _FLOATS.values()


def takes_int8(rows: int, weights: Sequence[Any]) -> bool:
    """Whether products of that many rows with these weights all take int8 activations."""
    return 0 < rows <= MAX_COLUMNS and all(is_packed(format_of(weight)) for weight in weights)


def _nbytes_of_row(weight: Any) -> int:
    return (weight.data if isinstance(weight, QuantizedArray) else weight).nbytes // max(len(weight), 1)


def _rows(weight: Any) -> Any:
    """The array of a weight, C-contiguous."""
    return cupy_module().ascontiguousarray(weight.data if isinstance(weight, QuantizedArray) else weight)


def _column(x: Any, weight: Any) -> tuple[Any, int]:
    """x as the kernel for that weight takes it, and the cells of a row."""
    if not is_packed(format_of(weight)):
        return cupy_module().ascontiguousarray(x, dtype=np.float32), _nbytes_of_row(weight) // 16
    return (x if isinstance(x, Activations) else quantize_activations(x)).data, cells_of(weight.shape[1])


def _rows_together(n: int) -> int:
    """Rows that a group of lanes computes together, to read the columns once for all of them."""
    return 1 if n == 1 else 2 if n <= 4 else 4


def _log_lanes(n: int, rows: int, cells: int) -> int:
    """Lanes that share a row, as a power of two.

    For one column as many as are busy all the time; for more, as few as make enough threads for the card.
    """
    if n == 1:
        return min((5, 4, 3), key=lambda log: -(-cells // (1 << log)) << log)
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
    data, cells = _column(x, weights[0])
    ys = [cupy.empty((n, len(w)), np.float32) for w in weights]
    log_lanes, last = _log_lanes(n, sum(map(len, weights)), cells), len(weights) - 1
    args = [data, n, cells, log_lanes]
    for i in (0, 1, 2):
        # a matrix of another format goes last; the others come first
        at = i if i < last else last if i == 2 and last else 0 if i == 0 else None
        if at is None:
            args += [data, None, None, 0]
        else:
            args += [_rows(weights[at]), None if biases is None else biases[at], ys[at], len(weights[at])]
    blocks = sum(-(-(-(-len(w) // _rows_together(n)) << log_lanes) // THREADS) for w in weights)
    _product_kernel(n, format_of(weights[0]), format_of(weights[-1]))((blocks,), (THREADS,), (*args, residual))
    return ys


@functools.cache
def _product_kernel(n: int, first: str, last: str) -> Kernel:
    signature = f"void* int32 int32 int32 {_MATRIX} {_MATRIX} {_MATRIX} float32*?"
    other = {} if first == last else {"QTYPE_LAST": last}
    return Kernel("matvec.hip", "matvec", signature, QTYPE=first, **_shape(n), **other)


def _shape(n: int) -> dict[str, int]:
    """The kernel for that many columns: there is one for 1, for 2, for up to 4 and for up to 8."""
    return {"COLUMNS": 1 << (n - 1).bit_length(), "ROWS": _rows_together(n)}


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
    data, cells = _column(x, gate)
    if rounded:
        result = Activations.empty(n, rows)
        outputs = (None, result.data, cells_of(rows))
    else:
        result = cupy_module().empty((n, rows), np.float32)
        outputs = (result, None, 0)
    block_rows = 64 if _rows_together(n) == 4 else 32
    blocks = -(-(128 * cells_of(rows) if rounded else rows) // block_rows)
    args = (data, n, cells, _rows(gate), _rows(up), gate_bias, up_bias, *outputs, rows, GATES[activation])
    _gated_kernel(n, format_of(gate))((blocks,), (GATED_THREADS,), args)
    return result


@functools.cache
def _gated_kernel(n: int, name: str) -> Kernel:
    signature = "void* int32 int32 void* void* float32*? float32*? float32*? uint8*? int32 int32 int32"
    return Kernel("matvec.hip", "matvec_gated", signature, QTYPE=name, **_shape(n))
