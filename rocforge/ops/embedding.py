"""Embedding: rows of a table, by token id."""

from __future__ import annotations

from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops.arguments import check_integers, check_matrix, module_of
from rocforge.ops.device.dequantize import dequantize_device
from rocforge.quant import QuantizedArray

_FLOATS = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}
"""As a file calls them: kernels read such rows as any other format's."""


def embedding(ids: Any, table: Any) -> Any:
    """The rows of a table, unpacked.

    Args:
        ids: integers, any shape. With a table on a device they may be on the host or on that device.
        table: QuantizedArray or float array, shape (rows, columns).

    Returns:
        float32, shape (*ids.shape, columns).

    Raises:
        IndexError: an id is negative or past the last row; ids on a device are not looked at, which would wait for it.
        TypeError: ids that are no integers, or on a device with a table on the host.
    """
    of_ids, of_table = module_of("embedding", ids=ids), module_of("embedding", table=table)
    check_integers("embedding", "ids", ids)
    check_matrix("embedding", "table", table)
    rows = table.shape[0]
    if of_ids is not np:
        module_of("embedding", ids=ids, table=table)
        return _embedding_device(ids, table)
    if ids.size and (ids.min() < 0 or ids.max() >= rows):
        bad = ids[(ids < 0) | (ids >= rows)].flat[0]
        raise IndexError(f"embedding: id {bad} is outside the table's {rows} rows")
    if of_table is not np:
        return _embedding_device(of_table.asarray(ids, np.int32), table)
    picked = table[ids]
    return picked.dequantize() if isinstance(table, QuantizedArray) else picked.astype(np.float32)


def _embedding_device(ids: Any, table: Any) -> Any:
    if not isinstance(table, QuantizedArray) and table.dtype in _FLOATS:
        data = get_array_module(table).ascontiguousarray(table).view(np.uint8)
        table = QuantizedArray(data, table.shape, _FLOATS[table.dtype])
    if isinstance(table, QuantizedArray):
        return dequantize_device(table, ids=ids.astype(np.int32, copy=False))
    return table[ids].astype(np.float32)
