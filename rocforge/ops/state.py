"""What ops see of a layer's state: its arrays, and where in them each sequence of a batch has its part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rocforge.ops.types import Array, HostArray

BLOCK_SIZE = 32
"""Tokens of a block of a paged cache; on a device always, as its kernels have it."""


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
        keys: shape (slots, heads, key_dim).
        values: shape (slots, heads, value_dim).
        window: a query sees itself and window - 1 tokens before it; None for all.
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
    """

    keys: Array
    values: Array
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


@dataclass(frozen=True)
class RecurrentLayer:
    """Recurrent state of one layer, for a batch. What lies in the slot of a sequence at its start means nothing.

    Attributes:
        arrays: one for each declared shape, (slots, *shape).
        slots: int32, shape (sequences,): where each sequence has its state; -1 for none.
        positions: int32, shape (tokens,): of the batch's tokens. A sequence whose first one is 0 is at its start.
        query_starts: int32, shape (sequences + 1,): the first row of each sequence, and the number of rows.
    """

    arrays: tuple[Array, ...]
    slots: Array
    positions: Array
    query_starts: Array

    def read(self, which: int) -> HostArray:
        """One array of each sequence before the batch, on the CPU: (sequences, *shape), zeros at a sequence's start."""
        state = self.arrays[which][self.slots]
        state[self.positions[self.query_starts[:-1]] == 0] = 0
        return state

    def write(self, which: int, state: HostArray) -> None:
        """One array of each sequence after the batch, on the CPU: the shape that `read` gives."""
        self.arrays[which][self.slots] = state
