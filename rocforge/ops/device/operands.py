"""Activations in the form that products with packed weights take on a device.

Up to INT8_ROWS rows are rounded to int8, each 32 elements with a float32 scale, for the dot instruction. More, up to
MOST_COLUMNS, become float16 units for the matrix unit, of a card that has one; still more are the BLAS library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rocforge.device.arrays import cupy_module
from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.formats.planar import CELL, cells_of
from rocforge.ops.device.strided import ALIGNMENT, blocks, float32
from rocforge.quant import QuantizedArray

MAX_COLUMNS = 8
"""The most rows of x that kernels with the dot instruction multiply."""
INT8_ROWS = 2
"""Up to so many rows they are faster than the matrix unit."""
MOST_COLUMNS = 64
"""The most rows of x that kernels with the matrix unit multiply."""
ACTIVATION_NBYTES = 160
"""Bytes of a cell of activations: 128 int8 values, four float32 scales, eight int16 sums."""
UNIT_CELLS = 4
"""Cells that a column of units is filled up to a multiple of: the most of any target in quants.h."""

_FLOATS = {"float32": "Floats<float>", "float16": "Floats<f16>", "F32": "Floats<float>", "F16": "Floats<f16>"}
_FLOATS["BF16"] = "Floats<bf16>"


class Norm(NamedTuple):
    """Division by the root mean square of values whose squares are summed here, float32, each 32 elements."""

    squares: Any
    eps: float


class Activations:
    """Rows of activations, as `Activation`, or `unit_at`, in rawkernels/formats/quants.h lay them out.

    Args:
        data: uint8 CuPy array: (rows, bytes of a row) of int8, or (bytes,) of units.
        shape: (rows, elements of a row).
        columns: that units are laid out for; 0 for int8.
        norm: what the one row of int8 still lacks of its norm; None: nothing.
    """

    def __init__(self, data: Any, shape: tuple[int, int], columns: int = 0, norm: Norm | None = None):
        self.data, self.shape, self.ndim, self.columns, self.norm = data, shape, 2, columns, norm

    @classmethod
    def empty(cls, rows: int, size: int, columns: int = 0) -> Activations:
        """Room for that many rows, on the current device."""
        cells = cells_of(size)
        if columns:
            nbytes = blocks(cells, UNIT_CELLS) * UNIT_CELLS * 256 * columns
            return cls(cupy_module().empty(nbytes, np.uint8), (rows, size), columns)
        return cls(cupy_module().empty((rows, ACTIVATION_NBYTES * cells), np.uint8), (rows, size))

    def __len__(self) -> int:
        return self.shape[0]


_quantize = Kernel("quantize.hip", "quantize_activations", "float32* uint8* int32 int32 int32")


def quantize_activations(x: Any, columns: int = 0) -> Activations:
    """Rows of a float32 CuPy array (rows, size) in int8, or in units for that many columns."""
    rows, size = x.shape
    y = Activations.empty(rows, size, columns)
    cells = cells_of(size)
    args = (float32(x), y.data, size, cells, columns)
    _quantize((blocks(cells * CELL, 1024), rows), (256,), args)
    return y


def format_of(weight: Any) -> str | None:
    """The format of a weight as the kernels name it; None where they have none for that, or for how its rows lie."""
    if isinstance(weight, QuantizedArray) and weight.planar:
        return weight.qtype.name
    name = _FLOATS.get(weight.qtype.name if isinstance(weight, QuantizedArray) else weight.dtype.name)
    if name is None or nbytes_of_row(weight) % ALIGNMENT:
        return None
    memory = weight.data.data if isinstance(weight, QuantizedArray) else weight.data
    return None if getattr(memory, "ptr", 0) % ALIGNMENT else name


def is_packed(name: str | None) -> bool:
    """Whether weights of that format (of `format_of`) are multiplied with Activations."""
    return name is not None and name not in _FLOATS.values()


def nbytes_of_row(weight: Any) -> int:
    """Bytes from one row of a weight to the next."""
    return (weight.data if isinstance(weight, QuantizedArray) else weight).nbytes // max(len(weight), 1)


def columns_for(rows: int) -> int | None:
    """For products of that many rows with packed weights on the current device: the columns of their units.

    0 stands for int8; None says that the BLAS library multiplies.
    """
    unit = card_of(cupy_module().cuda.runtime.getDevice()).has_matrix_unit
    if 0 < rows <= (INT8_ROWS if unit else MAX_COLUMNS):
        return 0
    return max(8, 1 << (rows - 1).bit_length()) if unit and 0 < rows <= MOST_COLUMNS else None


def columns_for_weights(rows: int, weights: Sequence[Any]) -> int | None:
    """`columns_for`, or None where these weights are not all packed."""
    return columns_for(rows) if all(is_packed(format_of(weight)) for weight in weights) else None


def takes_fp16(rows: int, weights: Sequence[Any]) -> bool:
    """Whether the BLAS library multiplies that many rows with these weights, all of them in float16."""
    return rows > MAX_COLUMNS and columns_for(rows) is None and not any(map(is_single, weights))


def is_single(weight: Any) -> bool:
    """Whether a weight is multiplied in float32."""
    return not isinstance(weight, QuantizedArray) and weight.dtype != np.float16
