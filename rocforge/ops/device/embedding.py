"""Rows of a table on a device, by token id."""

from __future__ import annotations

import numpy as np

from rocforge.device.libraries import cupy_module
from rocforge.ops.device.dequantize import dequantize_device
from rocforge.ops.types import Array, Weight
from rocforge.quant import QuantizedArray

_FLOATS = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}
"""As a file calls them: kernels read such rows as any other format's."""


def embedding(ids: Array, table: Weight) -> Array:
    """The rows of a table, float32 (*ids.shape, columns); ids are a CuPy array of integers."""
    if not isinstance(table, QuantizedArray) and table.dtype in _FLOATS:
        data = cupy_module().ascontiguousarray(table).view(np.uint8)
        table = QuantizedArray(data, table.shape, _FLOATS[table.dtype])
    if isinstance(table, QuantizedArray):
        return dequantize_device(table, ids=ids.astype(np.int32, copy=False))
    return table[ids].astype(np.float32)
