"""Weights as kernels read them: which kernels know a format, and the memory that they are given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rocforge.device.libraries import cupy_module
from rocforge.formats.blocks import QTYPES
from rocforge.formats.planar import CELL, PLANAR
from rocforge.ops.device.strided import ALIGNMENT, blocks
from rocforge.ops.types import Array, Weight
from rocforge.quant import QuantizedArray


@dataclass(frozen=True, eq=False)
class WeightFormat:
    """What of a weight decides the kernel. There is one object of each, so they compare and hash by identity.

    Attributes:
        kernel: the format's name in kernels (RF_QTYPE); None: no kernel reads it, and rows are unpacked to float16.
        planar: rows are planes of fields, multiplied with int8 or with fragments; else floats, or no kernel's.
        wide: wide.hip multiplies it, too.
        float32: the BLAS library multiplies it in float32 instead of float16.
        cell: elements that kernels count a row in: 128 of planar rows, 16 bytes of floats; 0 of no kernel's.
        copied: a float16 copy is kept beside it, for the BLAS library.
        half: numbers of 16 bits.
    """

    kernel: str | None
    planar: bool = False
    wide: bool = False
    float32: bool = False
    cell: int = 0
    copied: bool = False
    half: bool = False

    def cells(self, columns: int) -> int:
        """Cells of a row of that many elements, the last one perhaps in part."""
        return blocks(columns, self.cell)


UNPACKED = WeightFormat("Floats<f16>", cell=8, half=True)
"""Float16 values, packed as such or an array."""
NO_KERNEL, NO_KERNEL_FLOAT32 = WeightFormat(None), WeightFormat(None, float32=True)
_PLANAR = {
    (QTYPES[name], copied): WeightFormat(name, planar=True, wide=PLANAR[name].wide, cell=CELL, copied=copied)
    for name in PLANAR
    for copied in (False, True)
}
_PACKED_FLOATS = {
    QTYPES["F32"]: WeightFormat("Floats<float>", cell=4),
    QTYPES["F16"]: UNPACKED,
    QTYPES["BF16"]: WeightFormat("Floats<bf16>", cell=8, half=True),
}
_ARRAYS = {
    np.dtype(np.float32): WeightFormat("Floats<float>", float32=True, cell=4),
    np.dtype(np.float16): UNPACKED,
}


def format_of(weight: Weight) -> WeightFormat:
    """The format of a weight (..., rows, columns), as far as kernels know it and how its rows lie."""
    if isinstance(weight, QuantizedArray):
        if weight.planar:
            return _PLANAR[weight.qtype, weight.fp16 is not None]
        data, known = weight.data, _PACKED_FLOATS.get(weight.qtype, NO_KERNEL)
    else:
        data, known = weight, _ARRAYS.get(weight.dtype, NO_KERNEL_FLOAT32)
    aligned = data.shape[-1] * data.itemsize % ALIGNMENT == 0 and getattr(data.data, "ptr", 0) % ALIGNMENT == 0
    return known if aligned else NO_KERNEL_FLOAT32 if known.float32 else NO_KERNEL


def with_last(many: Weight, one: Weight) -> Weight | None:
    """Both as one array (n + 1, ...), of many (n, ...) and one (...) that lies right behind them; else None.

    rf.load places experts' matrices so, and behind them that of the expert that every token takes.
    """
    packed = isinstance(many, QuantizedArray)
    if packed != isinstance(one, QuantizedArray):
        return None
    if packed and (many.qtype, many.planar) != (one.qtype, one.planar):
        return None
    first, last = (many.data, one.data) if packed else (many, one)
    if isinstance(first, np.ndarray) or first.dtype != last.dtype or first.shape[1:] != last.shape:
        return None
    contiguous = first.flags.c_contiguous and last.flags.c_contiguous and last.data.mem is first.data.mem
    if not contiguous or last.data.ptr != first.data.ptr + first.nbytes:
        return None
    whole = cupy_module().ndarray((len(first) + 1, *last.shape), first.dtype, memptr=first.data)
    return many.with_data(whole, many.planar) if packed else whole


def memory_of(weight: Weight) -> Array:
    """The array that holds a weight, C-contiguous."""
    return cupy_module().ascontiguousarray(weight.data if isinstance(weight, QuantizedArray) else weight)
