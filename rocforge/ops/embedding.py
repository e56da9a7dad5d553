"""Embedding: rows of a table, by token id."""

from __future__ import annotations

import numpy as np

from rocforge.ops.arguments import check_integers, check_matrix, operands
from rocforge.ops.device import embedding as device
from rocforge.ops.types import Array, Weight
from rocforge.quant import QuantizedArray


def embedding(ids: Array, table: Weight) -> Array:
    """The rows of a table, unpacked.

    Args:
        ids: integers, any shape, or lists of them. With a table on a device they may be on the host or on that device.
        table: QuantizedArray or float array, shape (rows, columns).

    Returns:
        float32, shape (*ids.shape, columns).

    Raises:
        IndexError: an id is negative or past the last row; ids on a device are not looked at, which would wait for it.
        TypeError: ids that are no integers, or on a device with a table on the host.

    >>> rf.embedding(np.array([3, 1]), model.token_embd.weight).shape
    (2, 512)
    """
    (of_ids, ids), (of_table, table) = operands("embedding", ids=ids), operands("embedding", "table", table=table)
    check_integers("embedding", "ids", ids)
    check_matrix("embedding", "table", table)
    rows = table.shape[0]
    if of_ids is not np:
        operands("embedding", "table", ids=ids, table=table)  # of one side
        return device.embedding(ids, table)
    if ids.size and (ids.min() < 0 or ids.max() >= rows):
        bad = ids[(ids < 0) | (ids >= rows)].flat[0]
        raise IndexError(f"embedding: id {bad} is outside the table's {rows} rows")
    if of_table is not np:
        return device.embedding(of_table.asarray(ids, np.int32), table)
    picked = table[ids]
    return picked.dequantize() if isinstance(table, QuantizedArray) else picked.astype(np.float32)
