"""Batch: which token of a flat batch belongs to which sequence, and where its key and value go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rocforge.cache import KVCache
from rocforge.ops.rope import RopeFrequencies


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence: `count` of them from position `start`, its cache blocks in `table`."""

    start: int
    count: int
    table: Sequence[int]
    wants_logits: bool = True


class Span(NamedTuple):
    """A sequence as attention sees it: its rows in the batch, its length with them, its tokens' cache slots."""

    rows: slice
    length: int
    slots: slice | np.ndarray


@dataclass
class Batch:
    """Tokens of any number of sequences, one after another: prefill, decode and mixtures alike.

    Attributes:
        cache: the KVCache that attention reads and writes.
        positions: int32, shape (tokens,): each token's position in its sequence.
        slots: int32, shape (tokens,): the cache slot that each token's key and value go to.
        spans: one Span a sequence.
        logits_rows: int32: the rows whose logits are wanted, or None for all.
    """

    cache: KVCache
    positions: np.ndarray
    slots: np.ndarray
    spans: list[Span]
    logits_rows: np.ndarray | None = None
    _angles: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, cache: KVCache, chunks: Sequence[Chunk], all_logits: bool = False) -> Batch:
        """The batch of the chunks' tokens, in order.

        Args:
            cache: has the blocks that the tables name.
            chunks: at most one for a sequence.
            all_logits: logits for every row, instead of the last row of each chunk that wants them.
        """
        positions, slots, spans, rows = [], [], [], []
        row = 0
        for chunk in chunks:
            length = chunk.start + chunk.count
            every = _slots(chunk.table, length, cache.block_size)
            positions.append(np.arange(chunk.start, length, dtype=np.int32))
            first = every.start + chunk.start if isinstance(every, slice) else 0
            slots.append(np.arange(first, every.stop) if isinstance(every, slice) else every[chunk.start :])
            spans.append(Span(slice(row, row + chunk.count), length, every))
            row += chunk.count
            if chunk.wants_logits:
                rows.append(row - 1)
        return cls(
            cache,
            np.concatenate(positions),
            np.concatenate(slots).astype(np.int32),
            spans,
            None if all_logits else np.array(rows, np.int32),
        )

    def cos_sin(self, frequencies: RopeFrequencies) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines of the positions, computed once for all layers that share the frequencies."""
        key = id(frequencies)
        if key not in self._angles:
            self._angles[key] = frequencies.cos_sin(self.positions)
        return self._angles[key]


def _slots(table: Sequence[int], length: int, block_size: int) -> slice | np.ndarray:
    """Cache slots of a sequence's tokens; a slice where its blocks follow each other, which needs no copy to read."""
    blocks = np.asarray(table[: -(-length // block_size)], np.int64)
    if len(blocks) and (np.diff(blocks) == 1).all():
        first = int(blocks[0]) * block_size
        return slice(first, first + length)
    return (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)[:length]
