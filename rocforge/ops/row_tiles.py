"""Packed weights a tile of rows at a time, so that their values need no memory for all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from rocforge.device.arrays import get_array_module
from rocforge.ops.types import Array
from rocforge.quant import QuantizedArray

TILE_ELEMENTS = 1 << 22
"""Elements of a packed weight that are unpacked at a time: 16 MiB of float32, about what the last cache level holds."""

Tile = tuple[slice, ...]
"""An index along the leading axes, so that it takes whole rows and keeps all axes."""


def row_tiles(shape: tuple[int, ...]) -> Iterator[Tile]:
    """Tiles of an array of that shape, in C order: of at most TILE_ELEMENTS elements, or of one row."""
    if len(shape) == 1 or math.prod(shape) <= TILE_ELEMENTS:
        yield ()
        return
    each = math.prod(shape[1:])
    if each <= TILE_ELEMENTS or len(shape) == 2:
        step = max(1, TILE_ELEMENTS // each)
        yield from ((slice(start, start + step),) for start in range(0, shape[0], step))
        return
    for i in range(shape[0]):
        yield from ((slice(i, i + 1), *below) for below in row_tiles(shape[1:]))


def elementwise(function: Callable[..., Array], operands: list[Any], shape: tuple[int, ...]) -> Array:
    """`function(*operands)` by tiles, for a function of elements.

    Args:
        operands: QuantizedArrays of this shape, arrays that broadcast to it, and scalars.
        shape: of the result.
    """
    xp = get_array_module(*operands)
    wide = [xp.broadcast_to(x, shape) if getattr(x, "ndim", 0) and not _packed(x) else x for x in operands]
    result = None
    for tile in row_tiles(shape):
        part = function(*(values_of(x, tile) if getattr(x, "ndim", 0) else x for x in wide))
        if not tile:
            return part
        if result is None:
            result = xp.empty(shape, part.dtype)
        result[tile] = part
    return result


def values_of(array: Array | QuantizedArray, tile: Tile) -> Array:
    """The values of a tile, which are not to be written to."""
    part = array[tile]
    return part.float32() if _packed(part) else part


def _packed(array: Any) -> bool:
    return isinstance(array, QuantizedArray)
