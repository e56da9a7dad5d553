"""Values of a QuantizedArray at an index that takes parts of rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.formats.blocks import block_elements, block_nbytes
from rocforge.ops.row_tiles import row_tiles, values_of
from rocforge.ops.types import Array
from rocforge.quant import QuantizedArray, operator
from rocforge.row_index import expanded


@operator
def values_at(weight: QuantizedArray, index: Any) -> Array | QuantizedArray:
    """`weight[index]` where that takes parts of rows, or of a transpose: the values, but of whole rows of a transpose.

    Raises:
        IndexError: as NumPy's arrays raise it.
    """
    entries = expanded(index, weight.ndim)
    if weight.transposed:
        return _of_transpose(weight, entries)
    if getattr(entries[0], "dtype", None) == np.bool_ and entries[0].ndim == weight.ndim:
        return _of_mask(weight, entries[0])
    if len(entries) == weight.ndim and all(map(_is_basic, entries)):
        return _of_columns(weight[entries[:-1]], entries[-1])
    return _of_elements(weight, entries)


def _is_basic(entry: Any) -> bool:
    return isinstance(entry, (int, np.integer, slice)) and not isinstance(entry, bool)


def _of_transpose(weight: QuantizedArray, entries: tuple[Any, ...]) -> Array | QuantizedArray:
    rows = weight.T
    if len(entries) == 2 and all(map(_is_basic, entries)):
        part = rows[entries[::-1]]
        return part.T if part.ndim == 2 else part
    return weight.dequantize()[entries]


def _of_mask(weight: QuantizedArray, mask: Array) -> Array:
    """The elements that a mask of all axes marks."""
    if mask.shape != weight.shape:
        raise IndexError(f"a mask of shape {mask.shape} does not fit an array of shape {weight.shape}")
    xp = get_array_module(weight.data)
    return xp.concatenate([values_of(weight, tile)[mask[tile]] for tile in row_tiles(weight.shape)])


def _of_columns(rows: QuantizedArray, column: Any) -> Array:
    """The same column, or slice of columns, of all rows. On the host the blocks that have some are unpacked alone."""
    taken: Any = np.arange(rows.shape[-1])[column]
    if not rows.planar and np.size(taken):
        rows, first = _blocks_around(rows, int(np.min(taken)), int(np.max(taken)))
        taken = taken - first
    xp = get_array_module(rows.data)
    part = xp.empty((*rows.shape[:-1], *np.shape(taken)), np.float32)
    for tile in row_tiles(rows.shape):
        part[tile] = values_of(rows, tile)[..., taken]
    return part[()]


def _blocks_around(rows: QuantizedArray, first: int, last: int) -> tuple[QuantizedArray, int]:
    """Rows of the blocks alone that hold the columns from first to last; and the column with which they begin."""
    elements, nbytes = block_elements(rows.qtype), block_nbytes(rows.qtype)
    start, stop = first // elements, last // elements + 1
    data = rows.data[..., start * nbytes : stop * nbytes]
    return QuantizedArray(data, (*rows.shape[:-1], (stop - start) * elements), rows.qtype), start * elements


def _of_elements(weight: QuantizedArray, entries: tuple[Any, ...]) -> Array:
    """Elements at arrays of indices, by NumPy's rules for what has a row's number, and a column's, as its elements."""
    xp = get_array_module(weight.data)
    leading, columns = weight.shape[:-1], weight.shape[-1]
    count = weight.size // max(columns, 1)
    row = xp.broadcast_to(xp.arange(count).reshape(*leading, 1), weight.shape)[entries]
    column = xp.broadcast_to(xp.arange(columns), weight.shape)[entries]
    needed = xp.zeros(count, bool)
    needed[row] = True
    values = weight.reshape(-1, columns)[needed].dequantize()
    return values[xp.cumsum(needed)[row] - 1, column]
