"""What ops see of a layer's state: its arrays, and where in them each sequence of a batch has its part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rocforge.formats.kv_cache import PackedType
from rocforge.ops.types import Array, HostArray

BLOCK_SIZE = 32
"""Tokens of a block of a paged cache; on a device always, as its kernels have it."""


@dataclass(frozen=True)
class PackedRows:
    """Keys, or values, of one layer in a packed type: on the CPU what an array of float32 (slots, heads, dim) is.

    Attributes:
        data: uint8, shape (blocks, heads, bytes of a block).
        type: what is in them.
        dim: elements of a head.
        block_size: tokens of a block.
    """

    data: Array
    type: PackedType
    dim: int
    block_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slots, heads, dim)."""
        return len(self.data) * self.block_size, self.data.shape[1], self.dim

    def __getitem__(self, slots: slice | HostArray) -> HostArray:
        """float32 (slots, heads, dim)."""
        codes, scales = self._planes()
        place = self._place(slots)
        return self.type.decode(codes[place], scales[place] if self.type.scaled else None)

    def __setitem__(self, slots: slice | HostArray, rows: HostArray) -> None:
        """Store floats of that shape."""
        codes, scales = self._planes()
        place = self._place(slots)
        codes[place], given = self.type.encode(np.asarray(rows, np.float32))
        if given is not None:
            scales[place] = given

    def _place(self, slots: slice | HostArray) -> tuple[HostArray, slice, HostArray]:
        blocks, offsets = np.divmod(np.arange(self.shape[0])[slots], self.block_size)
        return blocks, slice(None), offsets

    def _planes(self) -> tuple[HostArray, HostArray]:
        """Views of the codes, (blocks, heads, block_size, bytes of a row), and of the scales, float16."""
        shape, row = (*self.data.shape[:2], self.block_size), self.type.row_nbytes(self.dim)
        codes, scales = np.split(self.data, [self.block_size * row], axis=2)
        return codes.reshape(*shape, row), scales.view(np.float16).reshape(*shape, self.type.runs(self.dim))


def first_seen(position: Any, window: int | None, chunked: bool) -> Any:
    """The first token that the one at a position, or at each of an array of them, sees; window and chunked as in
    PagedLayer.

    >>> [first_seen(9, window, chunked) for window, chunked in ((None, False), (4, False), (4, True))]
    [0, 6, 8]
    """
    if window is None:
        return position * 0
    first = position // window * window if chunked else position - window + 1
    return first * (first > 0)


class Span(NamedTuple):
    """A sequence as attention on the CPU sees it.

    Attributes:
        rows: its tokens in the batch, the last ones of the sequence.
        slots: cache slots of all its tokens that one of these rows can see, the last one's included.
    """

    rows: slice
    slots: slice | HostArray

    @property
    def tokens(self) -> int:
        """How many there are slots of."""
        slots = self.slots
        return slots.stop - slots.start if isinstance(slots, slice) else len(slots)


@dataclass(frozen=True)
class PagedLayer:
    """Keys and values of one layer in blocks, for a batch. Slot `block * block_size + offset` has one token.

    Attributes:
        keys: shape (slots, heads, key_dim): floats or PackedRows.
        values: shape (slots, heads, value_dim), likewise.
        window: a query sees itself and window - 1 tokens before it, and if not causal after it; None for all.
        block_size: tokens of a block.
        slots: int32, shape (tokens,): where each token's key and value go.
        queries: how many tokens there are of the sequence with the fewest, and of the one with the most.
        longest: tokens of the longest sequence, or more.
        spans: on the CPU, one Span a sequence.
        tables: on a device, int32 (sequences, blocks of the longest): blocks of each sequence, in order. What stands
            for blocks that the window has left behind is not read.
        lengths: int32 (sequences,): each sequence's tokens, those of the batch included.
        query_starts: on a device, int32 (sequences + 1,): the first row of each sequence, and the number of rows.
        counters: on a device, zeros that decode launches count in and leave as zeros.
        causal: a query sees no later token. Else the batch has all tokens of each sequence.
        chunked: a query sees, in place of a sliding window, its own run of `window` tokens up to itself; runs begin at
            multiples of that.
    """

    keys: Array | PackedRows
    values: Array | PackedRows
    window: int | None
    block_size: int
    slots: Array
    queries: tuple[int, int]
    longest: int = 0
    spans: Sequence[Span] = ()
    tables: Array = None
    lengths: Array = None
    query_starts: Array = None
    counters: Array = None
    causal: bool = True
    chunked: bool = False


@dataclass(frozen=True)
class RecurrentLayer:
    """Recurrent state of one layer, for a batch. What lies in the slot of a sequence at its start means nothing.

    Attributes:
        arrays: one for each declared shape, (slots, *shape).
        slots: int32, shape (sequences,): where each sequence has its state; -1 for none.
        positions: int32, shape (tokens,): of the batch's tokens. A sequence whose first one is 0 is at its start.
        query_starts: int32, shape (sequences + 1,): the first row of each sequence, and the number of rows.
        most: tokens of the batch that the sequence with the most has, or more.
        counters: as in PagedLayer.
    """

    arrays: tuple[Array, ...]
    slots: Array
    positions: Array
    query_starts: Array
    most: int
    counters: Array = None

    def read(self, which: int) -> HostArray:
        """One array of each sequence before the batch, on the CPU: (sequences, *shape), zeros at a sequence's start."""
        state = self.arrays[which][self.slots]
        state[self.positions[self.query_starts[:-1]] == 0] = 0
        return state

    def write(self, which: int, state: HostArray) -> None:
        """One array of each sequence after the batch, on the CPU: the shape that `read` gives."""
        self.arrays[which][self.slots] = state
