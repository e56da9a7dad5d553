"""Batch: which token of a flat batch belongs to which sequence, and where its key and value go."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rocforge.device.arrays import cupy_module, get_array_module
from rocforge.nn.cache import KVCache, blocks_for
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
        tables, lengths, query_starts: of a cache on a device, there, what attention reads instead of the spans, int32:
            blocks of each sequence (sequences, most blocks of any), its length with its tokens (sequences,), and its
            first row, with the number of rows as last (sequences + 1,).

    With a cache on a device, positions and slots are there as well. A launch reads all of these when it runs, so a
    captured one can be replayed after their contents have changed.
    """

    cache: KVCache
    positions: Any
    slots: Any
    spans: list[Span]
    logits_rows: np.ndarray | None = None
    tables: Any = None
    lengths: Any = None
    query_starts: Any = None
    _angles: dict[int, tuple[Any, Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, cache: KVCache, chunks: Sequence[Chunk], all_logits: bool = False) -> Batch:
        """The batch of the chunks' tokens, in order.

        Args:
            cache: has the blocks that the tables name.
            chunks: at least one, and at most one for a sequence.
            all_logits: logits for every row, instead of the last row of each chunk that wants them.

        Raises:
            ValueError: no chunks, or one without tokens, or whose table has too few blocks or names others than the
                cache's.
        """
        if not chunks:
            raise ValueError("Batch.of: chunks are empty; allowed is at least one")
        positions, slots, spans, rows = [], [], [], []
        row = 0
        for chunk in chunks:
            length = chunk.start + chunk.count
            if chunk.start < 0 or chunk.count < 1:
                raise ValueError(f"Batch.of: {chunk.count} tokens from {chunk.start}; allowed are 1 or more from 0 on")
            every = _slots(chunk.table, length, cache)
            positions.append(np.arange(chunk.start, length, dtype=np.int32))
            first = every.start + chunk.start if isinstance(every, slice) else 0
            slots.append(np.arange(first, every.stop) if isinstance(every, slice) else every[chunk.start :])
            spans.append(Span(slice(row, row + chunk.count), length, every))
            row += chunk.count
            if chunk.wants_logits:
                rows.append(row - 1)
        batch = cls(
            cache,
            np.concatenate(positions),
            np.concatenate(slots).astype(np.int32),
            spans,
            None if all_logits else np.array(rows, np.int32),
        )
        if get_array_module(cache.keys) is not np:
            batch._move_to_device([chunk.table for chunk in chunks])
        return batch

    def _move_to_device(self, tables: Sequence[Sequence[int]]) -> None:
        """One copy for all, on the current stream."""
        width = max(len(table) for table in tables)
        padded = np.array([[*table, *[0] * (width - len(table))] for table in tables], np.int32)
        lengths = np.array([span.length for span in self.spans], np.int32)
        starts = np.array([0, *[span.rows.stop for span in self.spans]], np.int32)
        parts = [self.positions, self.slots, padded, lengths, starts]
        joined = cupy_module().asarray(np.concatenate([part.reshape(-1) for part in parts]))
        ends = np.cumsum([part.size for part in parts])
        views = [joined[end - part.size : end].reshape(part.shape) for part, end in zip(parts, ends, strict=True)]
        self.positions, self.slots, self.tables, self.lengths, self.query_starts = views

    @functools.cached_property
    def queries(self) -> tuple[int, int]:
        """How many tokens there are of the sequence with the fewest, and of the one with the most."""
        counts = [span.rows.stop - span.rows.start for span in self.spans]
        return min(counts), max(counts)

    def cos_sin(self, frequencies: RopeFrequencies) -> tuple[Any, Any]:
        """Cosines and sines of the positions, computed once for all layers that share the frequencies."""
        key = id(frequencies)
        if key not in self._angles:
            self._angles[key] = frequencies.cos_sin(self.positions)
        return self._angles[key]


def _slots(table: Sequence[int], length: int, cache: KVCache) -> slice | np.ndarray:
    """Cache slots of a sequence's tokens; a slice where its blocks follow each other, which needs no copy to read."""
    block_size = cache.block_size
    blocks = list(table[: blocks_for(length, block_size)])
    if len(blocks) * block_size < length:
        raise ValueError(f"Batch.of: a table of {len(blocks)} blocks of {block_size} tokens for {length} tokens")
    if min(blocks) < 0 or max(blocks) >= cache.blocks:
        raise ValueError(f"Batch.of: a table names blocks {min(blocks)} to {max(blocks)}; there are {cache.blocks}")
    if blocks == list(range(blocks[0], blocks[0] + len(blocks))):
        first = blocks[0] * block_size
        return slice(first, first + length)
    return (np.array(blocks, np.int64)[:, None] * block_size + np.arange(block_size)).reshape(-1)[:length]
