"""Low-rank updates on a device: launches of lora.hip. Shapes and meanings are those of rocforge.ops.low_rank."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel, source_text
from rocforge.device.libraries import cupy_module
from rocforge.device.params import dtype_of, struct_fields
from rocforge.ops.device.strided import blocks, float32, rows_of
from rocforge.ops.types import Array

MAX_RANK = 256
MAX_TARGETS = 4
"""The most products of one x that a launch updates: q, k, v and attention's gate."""
RUN = 8
"""Float16 values of a load, to a multiple of which ranks and columns are filled up."""

_shrink = Kernel("lora.hip", "lora_shrink")
_lookup = Kernel("lora.hip", "lora_lookup")
_expand = Kernel("lora.hip", "lora_expand")
_NO_TARGET = (None, None, 0, 0)


@functools.cache
def _pair() -> np.dtype[Any]:
    """An entry of a table, as the source declares it."""
    return dtype_of(struct_fields(source_text("lora.hip"), "LoraPair"))


class TableMemory:
    """The entries of a LowRankTable on the current device, and the matrices that they point to.

    Args:
        capacity: of the table.
        lookup: whether A is looked up.
    """

    def __init__(self, capacity: int, lookup: bool):
        self._pairs = np.zeros(capacity, _pair())
        self._lookup, self._matrices = lookup, dict[int, tuple[Array, ...]]()
        self.entries = cupy_module().zeros(self._pairs.nbytes, np.uint8)

    def set(self, id: int, update: Any) -> None:
        """Write an entry, at once; None for that of an adapter that does not update the matrix."""
        matrices: tuple[Array, ...] = ()
        self._pairs[id] = (0, 0, 0, 0.0)
        if update is not None:
            (a, up_a), (b, up_b) = _fp16(update.a), _fp16(update.b)
            a, b = _filled_up(a, (RUN, 1 if self._lookup else RUN)), _filled_up(b, (1, RUN))
            runs = b.reshape(len(b), -1, RUN).swapaxes(0, 1)
            matrices = _to_device(a.T if self._lookup else a), _to_device(runs)
            pointers = (matrix.data.ptr for matrix in matrices)
            self._pairs[id] = (*pointers, len(a), update.scale * 2.0 ** -(up_a + up_b))
        entry = self._pairs[id : id + 1].view(np.uint8)
        self.entries[id * len(entry) : (id + 1) * len(entry)].set(entry)
        self._matrices[id] = matrices


def _fp16(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """A matrix times a power of two, as float16, and its exponent: so that small values keep all their bits."""
    matrix = np.asarray(matrix, np.float32)
    exponent = 8 - int(np.frexp(np.abs(matrix).max(initial=0.0))[1])
    return np.ldexp(matrix, exponent).astype(np.float16), exponent


def _filled_up(matrix: np.ndarray, multiples: tuple[int, int]) -> np.ndarray:
    """With zeros, to multiples of rows and columns."""
    return np.pad(matrix, [(0, -size % multiple) for size, multiple in zip(matrix.shape, multiples, strict=True)])


def _to_device(matrix: np.ndarray) -> Array:
    return cupy_module().asarray(np.ascontiguousarray(matrix))


def add_low_rank(ys: Sequence[Array], x: Array, tables: Sequence[Any], ids: Array) -> None:
    """What `rocforge.ops.low_rank.add_low_rank` adds, of arrays on a device."""
    tokens, tuned = len(x), tuning.current()
    if not tokens:
        return
    lookup = tables[0].lookup
    rank = max(table.rank for table in tables)
    threads, together = tuned.elementwise_threads, min(tuned.lora_tokens, blocks(tokens, tuned.lora_tiles))
    targets = []
    for y, table in zip(ys, tables, strict=True):
        memory, stride = rows_of(y)
        targets.append((table.memory.entries, memory, table.rows, stride))
    args = {
        "x": None if lookup else float32(x),
        "lookup": cupy_module().asarray(x, np.int32) if lookup else None,
        "ids": ids,
        "hidden": cupy_module().empty((len(targets), tokens, rank), np.float32),
        "tokens": tokens,
        "columns": tables[0].columns,
        "rank": rank,
        "together": together,
        "targets": [*targets, *[_NO_TARGET] * (MAX_TARGETS - len(targets))],
    }
    tiles, waves = blocks(tokens, together), threads // card_of(ids.device.id).wave
    if lookup:
        _lookup((tokens, 1, len(targets)), (threads,), args)
    else:
        _shrink((tiles, blocks(rank, waves), len(targets)), (threads,), args)
    most = max(table.rows for table in tables)
    _expand((tiles, blocks(most, threads), len(targets)), (threads,), args)
