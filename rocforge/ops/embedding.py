"""Embedding: rows of a table, by token id."""

from __future__ import annotations

from typing import Any

import numpy as np

from rocforge.quant import QuantizedArray


def embedding(ids: Any, table: Any) -> Any:
    """The rows of a table, unpacked.

    Args:
        ids: integers, any shape.
        table: QuantizedArray or float array, shape (rows, columns).

    Returns:
        float32, shape (*ids.shape, columns).

    Raises:
        IndexError: an id is negative or past the last row.
    """
    rows = table.shape[0]
    if ids.size and (ids.min() < 0 or ids.max() >= rows):
        bad = ids[(ids < 0) | (ids >= rows)].flat[0]
        raise IndexError(f"embedding: id {bad} is outside the table's {rows} rows")
    picked = table[ids]
    return picked.dequantize() if isinstance(table, QuantizedArray) else picked.astype(np.float32)
