"""A card's part of what several cards hold together, and the whole of all parts."""

from __future__ import annotations

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops.device import parts as device
from rocforge.ops.embedding import embedding
from rocforge.ops.types import Array, Part, Weight


def embedding_part(ids: Array, table: Weight, part: Part) -> Array:
    """`embedding` of a card that has a part of the table: the sum over all cards is the embedding.

    Args:
        ids: integers, of the whole table.
        table: the rows that the card has, those from `part.base` on.
        part: the card owns the rows `part.first` to `part.end`.

    Returns:
        float32, shape (*ids.shape, columns): zeros for ids that another card owns.
    """
    module = get_array_module(table)
    if module is not np:
        return device.embedding_part(module.asarray(ids, np.int32), table, part)
    own = (ids >= part.first) & (ids < part.end)
    return embedding(np.where(own, ids - part.base, 0), table) * own[..., None].astype(np.float32)


def experts_part(ids: Array, weights: Array, part: Part) -> tuple[Array, Array]:
    """Token-expert pairs as a card takes them that has some of the experts, numbered from 0.

    Args:
        ids, weights: shape (tokens, used), from `route`.
        part: the card has the experts `part.first` to `part.end`.

    Returns:
        Of the same shapes. A pair with another card's expert weighs nothing.
    """
    if get_array_module(ids) is not np:
        return device.experts_part(ids, weights, part)
    own = (ids >= part.first) & (ids < part.end)
    local = ids - part.first
    stand_in = np.max(np.where(own, local, 0), axis=-1, keepdims=True)
    return np.where(own, local, stand_in), np.where(own, weights, 0).astype(np.float32)


def joined(parts: Array, columns: int) -> Array:
    """The whole of rows of which each card has some columns, equally many.

    Args:
        parts: float32, shape (cards, rows, part): card c has `part` columns from `c * part` on; the last card the last
            ones, some of which are then others' too.
        columns: of the whole.

    Returns:
        float32, shape (rows, columns).
    """
    if get_array_module(parts) is not np:
        return device.joined(parts, columns)
    cards, _, part = parts.shape
    last = columns - (cards - 1) * part
    return np.concatenate([*parts[:-1], parts[-1][:, part - last :]], axis=-1)
