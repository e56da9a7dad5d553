"""Batch: which token of a flat batch belongs to which sequence, and where in the cache its state is."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from rocforge.device.libraries import cupy_module
from rocforge.nn.cache import KVCache, PagedGroup, RecurrentGroup
from rocforge.nn.expansion import expanded_blocks, expansion_room
from rocforge.nn.low_rank import PlacedLoRA, TokenAdapters
from rocforge.nn.state import blocks_for
from rocforge.ops.latent_attention import Expansion, plan_expansion
from rocforge.ops.rope import RopeFrequencies, Rotation
from rocforge.ops.state import PagedLayer, RecurrentLayer, Span
from rocforge.ops.temperature import Temperature


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence.

    Attributes:
        start: position of the first.
        count: how many.
        table: the sequence's cache blocks, in order: one table for all paged groups of the cache, or one for each. A
            block that a group's window has left behind may be -1.
        wants_logits: whether logits of the last token are wanted.
        slot: of the sequence's recurrent state.
        lora: the adapter that the tokens have, from `model.adapters.placed(name)`; None for none.

    >>> rf.Chunk(start=64, count=1, table=[0, 1, 2]).length
    65
    """

    start: int
    count: int
    table: Sequence[int] | Sequence[Sequence[int]]
    wants_logits: bool = True
    slot: int = 0
    lora: PlacedLoRA | None = None

    @property
    def length(self) -> int:
        """Of the sequence with these tokens."""
        return self.start + self.count

    def table_of(self, group: int) -> Sequence[int]:
        """The blocks of that paged group.

        >>> rf.Chunk(0, 40, table=[[0, 1], [7, 8]]).table_of(1)
        [7, 8]
        """
        table: Sequence[Any] = self.table
        return table if len(table) and isinstance(table[0], Integral) else table[group]


class Paging(NamedTuple):
    """Where a batch's tokens, and those before them, are in one paged group; as in PagedLayer."""

    slots: Any
    tables: Any = None
    spans: Sequence[Span] = ()


@dataclass
class Batch:
    """Tokens of any number of sequences, one after another: prefill, decode and mixtures alike.

    Attributes:
        cache: the KVCache that layers read and write.
        positions: int32, shape (tokens,): each token's position in its sequence.
        query_starts: int32, shape (sequences + 1,): each sequence's first row, and the number of rows.
        lengths: int32, shape (sequences,): each sequence's tokens, those of the batch included.
        queries: how many tokens there are of the sequence with the fewest, and of the one with the most.
        longest: tokens of the longest sequence, or more: so many keys an attention pattern has.
        paging: for each paged group of the cache.
        state_slots: int32, shape (sequences,): the slots of recurrent state.
        logits_rows: int32: the rows whose logits are wanted, on the host or where the cache is; or None for all.
        adapters: which adapters the tokens have; None: none of them has one.
        expanded: where sequences with several tokens make keys and values of latents, blocks that there is room for; 0:
            none does.
        layer_inputs: what layers of a model that is running take beside the stream: what it has made for each, (tokens,
            layers, ...), or the first one's values, (tokens, dim).

    With a cache on a device, all other arrays are there. A launch reads them when it runs, so a captured one
    can be replayed after their contents have changed.

    >>> batch = rf.Batch.of(model.new_cache(4), [rf.Chunk(0, 3, [0]), rf.Chunk(0, 2, [1])])
    >>> batch.positions, batch.query_starts
    (array([0, 1, 2, 0, 1], dtype=int32), array([0, 3, 5], dtype=int32))
    >>> model([5, 6, 7, 5, 6], batch).shape
    (2, 4096)
    """

    cache: KVCache
    positions: Any
    query_starts: Any
    lengths: Any
    queries: tuple[int, int]
    longest: int
    paging: list[Paging]
    state_slots: Any
    logits_rows: Any = None
    adapters: TokenAdapters | None = None
    expanded: int = 0
    layer_inputs: Any = None
    _rotations: dict[int, Rotation] = field(default_factory=dict, repr=False)
    _temperatures: dict[Temperature, Any] = field(default_factory=dict, repr=False)
    _expansions: dict[int, Expansion] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"Batch({len(self.positions)} tokens, {len(self.lengths)} sequences, {self.cache!r})"

    @classmethod
    def of(cls, cache: KVCache, chunks: Sequence[Chunk], all_logits: bool = False) -> Batch:
        """The batch of the chunks' tokens, in order.

        Args:
            cache: has the blocks that the tables name, and the slots.
            chunks: at least one, and at most one for a sequence.
            all_logits: logits for every row, instead of the last row of each chunk that wants them.

        Raises:
            ValueError: no chunks, or one without tokens, or whose table has too few blocks or names others than the
                cache's, or recurrent state of two sequences in one slot, or a part of a sequence whose tokens see
                those after them.

        >>> cache = model.new_cache(blocks=4)
        >>> tokens = tokenizer.encode("import numpy as")
        >>> logits = model(tokens, rf.Batch.of(cache, [rf.Chunk(0, len(tokens), [0])]))
        >>> next_token = int(logits[-1].argmax())
        >>> logits = model([next_token], rf.Batch.of(cache, [rf.Chunk(len(tokens), 1, [0])]))
        >>> tokenizer.to_str_tokens([next_token])
        [' np']
        """
        if not chunks:
            raise ValueError("Batch.of: chunks are empty; allowed is at least one")
        for chunk in chunks:
            if chunk.start < 0 or chunk.count < 1:
                raise ValueError(f"Batch.of: {chunk.count} tokens from {chunk.start}; allowed are 1 or more from 0 on")
        if any(chunk.start for chunk in chunks) and not all(group.state.causal for group in cache.paged):
            raise ValueError(
                "Batch.of: a chunk starts behind 0; allowed are whole sequences: tokens see those after them"
            )
        counts = [chunk.count for chunk in chunks]
        starts = np.cumsum([0, *counts], dtype=np.int32)
        rows = None if all_logits else starts[1:][[chunk.wants_logits for chunk in chunks]] - 1
        batch = cls(
            cache,
            np.concatenate([np.arange(chunk.start, chunk.length, dtype=np.int32) for chunk in chunks]),
            starts,
            np.array([chunk.length for chunk in chunks], np.int32),
            (min(counts), max(counts)),
            max(chunk.length for chunk in chunks),
            [_paging(group, chunks, index, cache.device) for index, group in enumerate(cache.paged)],
            _state_slots(cache, chunks),
            rows,
            _adapters(chunks, rows),
        )
        if cache.device != "cpu":
            batch._move_to_device()
            needed = expanded_blocks(cache, [(chunk.start, chunk.length) for chunk in chunks])
            batch.expanded = needed if needed <= expansion_room(cache, int(starts[-1])) else 0
        return batch

    def _move_to_device(self) -> None:
        """One copy for all, on the current stream."""
        names = ("positions", "query_starts", "lengths", "state_slots")
        parts = [getattr(self, name) for name in names]
        parts += [array for paging in self.paging for array in (paging.slots, paging.tables)]
        joined = cupy_module().asarray(np.concatenate([part.reshape(-1) for part in parts]))
        ends = np.cumsum([part.size for part in parts])
        views = [joined[end - part.size : end].reshape(part.shape) for part, end in zip(parts, ends, strict=True)]
        for name, view in zip(names, views, strict=False):
            setattr(self, name, view)
        if self.adapters is not None:
            self.adapters = TokenAdapters(*map(cupy_module().asarray, (self.adapters.tokens, self.adapters.rows)))
        rest = views[len(names) :]
        self.paging = [Paging(*pair) for pair in zip(rest[::2], rest[1::2], strict=True)]

    def state_of(self, layer: Hashable) -> Any:
        """A layer's state: of a model's layer by the module itself, else by its index.

        Returns:
            A PagedLayer or a RecurrentLayer, as the layer declares.

        Raises:
            KeyError: the cache was made without that layer.

        >>> batch = rf.Batch.of(model.new_cache(1), [rf.Chunk(0, 3, [0])])
        >>> batch.state_of(model.blk[0].attn).keys.shape
        (32, 2, 64)
        """
        group, index = self.cache.group_of(layer)
        if isinstance(group, RecurrentGroup):
            places = self.state_slots, self.positions, self.query_starts
            return RecurrentLayer(group.layers[index], *places, self.queries[1], self.cache.counters)
        paging = self.paging[self.cache.paged.index(group)]
        return PagedLayer(
            *group.layers[index],
            group.state.window,
            group.block_size,
            paging.slots,
            self.queries,
            self.longest,
            paging.spans,
            paging.tables,
            self.lengths,
            self.query_starts,
            self.cache.counters,
            group.state.causal,
            group.state.chunked,
        )

    def rotation(self, frequencies: RopeFrequencies) -> Rotation:
        """The angles of the positions, computed once for all layers that share the frequencies.

        >>> batch = rf.Batch.of(model.new_cache(1), [rf.Chunk(0, 3, [0])])
        >>> batch.rotation(model.blk[0].attn.rope).cos.shape
        (3, 32)
        """
        key = id(frequencies)
        if key not in self._rotations:
            self._rotations[key] = Rotation(*frequencies.cos_sin(self.positions), frequencies.neox)
        return self._rotations[key]

    def temperatures(self, temperature: Temperature) -> Any:
        """The factors of the queries, float32 (tokens,), computed once for all layers that have that temperature.

        >>> from rocforge.ops.temperature import Temperature
        >>> rf.Batch.of(model.new_cache(1), [rf.Chunk(0, 3, [0])]).temperatures(Temperature(0.1, 2))
        array([1.       , 1.       , 1.0693147], dtype=float32)
        """
        if temperature not in self._temperatures:
            self._temperatures[temperature] = temperature.factors(self.positions)
        return self._temperatures[temperature]

    def expansion(self, layer: Hashable) -> Expansion | None:
        """Where keys and values of a layer's latents go, computed once for all layers of its group; None: nowhere.

        >>> rf.Batch.of(model.new_cache(1), [rf.Chunk(0, 3, [0])]).expansion(model.blk[0].attn) is None
        True
        """
        group, _ = self.cache.group_of(layer)
        if not self.expanded or not isinstance(group, PagedGroup) or not group.state.expanded:
            return None
        if id(group) not in self._expansions:
            self._expansions[id(group)] = plan_expansion(self.state_of(layer), self.expanded)
        return self._expansions[id(group)]


def _paging(group: PagedGroup, chunks: Sequence[Chunk], index: int, device: str) -> Paging:
    tables = [chunk.table_of(index) for chunk in chunks]
    pairs = list(zip(chunks, tables, strict=True))
    slots = [_as_array(_slots(group, table, chunk.start, chunk.length)) for chunk, table in pairs]
    if device == "cpu":
        visible = [_slots(group, table, group.state.first_visible(chunk.start), chunk.length) for chunk, table in pairs]
        return Paging(np.concatenate(slots), spans=_spans(chunks, visible))
    padded = np.zeros((len(tables), max(map(len, tables))), np.int32)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    return Paging(np.concatenate(slots), np.maximum(padded, 0))


def _spans(chunks: Sequence[Chunk], visible: Sequence[slice | np.ndarray]) -> list[Span]:
    stops = itertools.accumulate(chunk.count for chunk in chunks)
    rows = [slice(stop - chunk.count, stop) for chunk, stop in zip(chunks, stops, strict=True)]
    return [Span(*pair) for pair in zip(rows, visible, strict=True)]


def _slots(group: PagedGroup, table: Sequence[int], start: int, stop: int) -> slice | np.ndarray:
    """Cache slots of a sequence's tokens; a slice where its blocks follow each other, which needs no copy to read."""
    size = group.block_size
    blocks = np.array(table[start // size : blocks_for(stop, size)], np.int64)
    if len(table) * size < stop:
        raise ValueError(f"Batch.of: a table of {len(table)} blocks of {size} tokens for {stop} tokens")
    if blocks.min() < 0 or blocks.max() >= group.blocks:
        raise ValueError(f"Batch.of: a table names blocks {blocks.min()} to {blocks.max()}; there are {group.blocks}")
    offset = start % size
    if (np.diff(blocks) == 1).all():
        first = int(blocks[0]) * size + offset
        return slice(first, first + stop - start)
    return (blocks[:, None] * size + np.arange(size)).reshape(-1)[offset : offset + stop - start]


def _as_array(slots: slice | np.ndarray) -> np.ndarray:
    array = np.arange(slots.start, slots.stop) if isinstance(slots, slice) else slots
    return array.astype(np.int32)


def _adapters(chunks: Sequence[Chunk], rows: np.ndarray | None) -> TokenAdapters | None:
    if all(chunk.lora is None for chunk in chunks):
        return None
    ids = [-1 if chunk.lora is None else chunk.lora.id for chunk in chunks]
    tokens = np.repeat(np.array(ids, np.int32), [chunk.count for chunk in chunks])
    return TokenAdapters(tokens, tokens if rows is None else tokens[rows])


def _state_slots(cache: KVCache, chunks: Sequence[Chunk]) -> np.ndarray:
    slots = [chunk.slot for chunk in chunks]
    if cache.recurrent and (len(set(slots)) < len(slots) or min(slots) < 0 or max(slots) >= cache.slots):
        raise ValueError(f"Batch.of: slots of recurrent state are {slots}; allowed are different ones of {cache.slots}")
    return np.array(slots, np.int32)
