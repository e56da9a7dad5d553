"""Low-rank updates of products: y += scale * B (A x), each token with the adapter of its own, or none.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops.device import low_rank as device
from rocforge.ops.types import Array, Floats, HostArray

MAX_RANK = device.MAX_RANK
MAX_TABLES = device.MAX_TARGETS
"""The most products of one x that a launch updates."""


class LowRank(NamedTuple):
    """What an adapter adds to a matrix: `scale * b @ a`.

    Attributes:
        a: NumPy array (rank, columns).
        b: NumPy array (rows, rank).
        scale: factor on the product.
    """

    a: HostArray
    b: HostArray
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


class LowRankTable:
    """What adapters add to one matrix, by their ids, in the form that `add_low_rank` takes on a device.

    Args:
        rows, columns: of the matrix.
        capacity: how many ids there are.
        rank: the highest that it has room for.
        on_device: whether it is for the current GPU, or for NumPy.
        lookup: the matrix is the transpose of an embedding's, whose columns are looked up.
    """

    def __init__(self, rows: int, columns: int, capacity: int, rank: int, on_device: bool, lookup: bool = False):
        self.rows, self.columns, self.capacity, self.rank, self.lookup = rows, columns, capacity, rank, lookup
        self._updates: dict[int, LowRank] = {}
        self._host: dict[int, tuple[Floats, Floats]] = {}
        self.memory = device.TableMemory(capacity, lookup) if on_device else None

    def fill(self, updates: Mapping[int, LowRank | None]) -> None:
        """Hold these updates, by id, and no others. What no launch in progress uses may change."""
        for id in self._updates.keys() | updates.keys():
            update = updates.get(id)
            if update is self._updates.get(id):
                continue
            if self.memory is not None:
                self.memory.set(id, update)
            elif update is None:
                del self._host[id]
            else:
                self._host[id] = _floats(update.a), _floats(update.b) * np.float32(update.scale)
        self._updates = {id: update for id, update in updates.items() if update is not None}

    def on_host(self, id: int) -> tuple[Floats, Floats] | None:
        """a and b, times the scale, of an id; None where it adds nothing."""
        return self._host.get(id)


def _floats(matrix: HostArray) -> Floats:
    return np.ascontiguousarray(matrix, np.float32)


@functools.lru_cache(64)
def _groups(ids: bytes) -> list[tuple[int, slice | HostArray]]:
    """Each adapter of tokens, and its tokens; every layer of a model asks for them."""
    tokens = np.frombuffer(ids, np.int32)
    found = [(int(id), np.flatnonzero(tokens == id)) for id in np.unique(tokens) if id >= 0]
    return [(id, slice(None) if len(rows) == len(tokens) else rows) for id, rows in found]


def add_low_rank(ys: Sequence[Array], x: Array, tables: Sequence[LowRankTable], ids: Array) -> None:
    """Add to each token's products what its adapter adds to them, in place.

    Args:
        ys: float32 (tokens, rows) of each table; up to MAX_TABLES.
        x: what was multiplied: floats (tokens, columns); of an embedding's table, alone, token ids (tokens,).
        tables: of the matrices.
        ids: int32 (tokens,): of the tokens' adapters, -1 for none.
    """
    if get_array_module(*ys) is not np:
        device.add_low_rank(ys, x, tables, ids)
        return
    for id, rows in _groups(ids.tobytes()):
        for y, table in zip(ys, tables, strict=True):
            if (update := table.on_host(id)) is not None:
                a, b = update
                hidden = a.T[x[rows]] if table.lookup else x[rows] @ a.T
                y[rows] += hidden @ b.T
