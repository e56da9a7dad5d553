"""A card's part of tables and experts: the launches of parts.hip. Meanings are those of rocforge.ops.parts."""

from __future__ import annotations

import numpy as np

from rocforge.device import tuning
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.embedding import embedding
from rocforge.ops.device.strided import a_thread_each, blocks, float32
from rocforge.ops.types import Array, Part, Weight

_rows_of_part = Kernel("parts.hip", "rows_of_part", "int32* int32* int32 int32 int32 uint32")
_keep_part = Kernel("parts.hip", "keep_part", "float32* int32* int32 int32 uint32")
_experts_of_part = Kernel("parts.hip", "experts_of_part", "int32* float32* int32* float32* int32 int32 uint32 uint32")
_join_parts = Kernel("parts.hip", "join_parts", "float32* float32* uint32 uint32 uint32")


def embedding_part(ids: Array, table: Weight, part: Part) -> Array:
    """A card's rows; zeros for the ids of others."""
    cupy = cupy_module()
    ids = cupy.ascontiguousarray(ids, dtype=np.int32)
    rows = cupy.empty(ids.shape, np.int32)
    _rows_of_part(*a_thread_each(ids.size), (rows, ids, part.base, part.first, part.end, ids.size))
    x = embedding(rows, table)
    _rowwise(_keep_part, ids.size, x.shape[-1], (x, ids, part.first, part.end, x.shape[-1]))
    return x


def experts_part(ids: Array, weights: Array, part: Part) -> tuple[Array, Array]:
    """The pairs with a card's experts."""
    cupy, (tokens, used) = cupy_module(), ids.shape
    own, weighed = cupy.empty(ids.shape, np.int32), cupy.empty(ids.shape, np.float32)
    arrays = own, weighed, ids, float32(weights)
    _experts_of_part(*a_thread_each(tokens), (*arrays, part.first, part.end - part.first, used, tokens))
    return own, weighed


def joined(parts: Array, columns: int) -> Array:
    """All columns."""
    _, rows, part = parts.shape
    out = cupy_module().empty((rows, columns), np.float32)
    _rowwise(_join_parts, rows, columns, (out, parts, part, columns, rows))
    return out


def _rowwise(kernel: Kernel, rows: int, columns: int, args: tuple[object, ...]) -> None:
    threads = tuning.current().elementwise_threads
    if rows:
        kernel((rows, blocks(columns, threads)), (threads,), args)
