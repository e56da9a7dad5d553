"""EngineCache: the memory that the requests of an engine share, on all cards of its model."""

from __future__ import annotations

from collections.abc import Mapping

from rocforge.device.streams import Stream
from rocforge.engine.capacity import MAX_REQUESTS, CacheSizes, batch_tokens
from rocforge.engine.cards import CacheTypes, Cards, StepSizes
from rocforge.engine.state import StateManager
from rocforge.engine.step import StepRunner
from rocforge.nn.cache import KVCache
from rocforge.nn.module import Module
from rocforge.nn.state import Declared, blocks_for, kept_of, typed
from rocforge.nn.transformer import Transformer
from rocforge.ops.state import BLOCK_SIZE


class EngineCache:
    """The cache of an engine, as large as all cards have room for, and who has which blocks of it.

    Args:
        stream: the current one, which it is allocated on.
        model: its weights loaded.
        types: of keys and of values; None: those that the model was loaded with.
        tokens, max_batch_tokens, max_requests: as `Engine` takes them.

    Attributes:
        tokens: that it holds, of all sequences.
        max_batch_tokens: maximum tokens a step.
        limit: the longest sequence.
        step: what a StepRunner is made with, on each card; None on a CPU, and of a model that only embeds.
        arrays: this card's; None once it is closed.
        state: who has what.

    Raises:
        ValueError, DeviceError: as `Engine`.
    """

    def __init__(
        self,
        stream: Stream,
        model: Transformer,
        types: CacheTypes,
        tokens: int | None = None,
        max_batch_tokens: int | None = None,
        max_requests: int = MAX_REQUESTS,
    ):
        given = {"cache_tokens": tokens, "max_batch_tokens": max_batch_tokens, "max_requests": max_requests}
        for name, size in given.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}; allowed is 1 or more")
        self.max_batch_tokens = max_batch_tokens = max_batch_tokens or batch_tokens(model.device)
        self._cards: Cards | None = getattr(model, "cards", None)
        states, context = typed(kept_of(model), *types), model.config.context
        count = 1 if self._cards is None else self._cards.group.size
        sizes = CacheSizes(states.values(), model.device, max_batch_tokens, count)
        generates, steps = model.device != "cpu" and model.generates, 0
        if generates and tokens is None and self._cards is None:
            steps = _rehearsed(stream, model, states, sizes, (max_batch_tokens, max_requests, blocks_for(context)))
        rooms = [sizes.room(tokens, context, max_requests, steps)]
        if self._cards is not None:
            rooms += self._cards.ask("room", types, tokens, max_batch_tokens, max_requests)
        tokens, sequences = map(min, zip(*rooms, strict=True))
        self.tokens = blocks_for(tokens) * BLOCK_SIZE
        self.limit = min(context, self.tokens) if states else context
        self.step: StepSizes = None
        if generates:
            self.step = max_batch_tokens, max_requests, blocks_for(self.limit)
        blocks, slots = sizes.blocks(tokens, sequences), sizes.slots(sequences)
        self.arrays: KVCache | None = KVCache(states, blocks, slots=slots, device=model.device)
        paged = (group.state for group in self.arrays.paged)
        self.state = StateManager(paged, blocks, slots, self._copy_slot, sequences=max_requests)
        if self._cards is not None:
            self._cards.open(self.arrays, types, blocks, slots, self.step)

    def opened(self) -> KVCache:
        """The arrays.

        Raises:
            RuntimeError: it is closed.
        """
        if self.arrays is None:
            raise RuntimeError("the engine is closed")
        return self.arrays

    def close(self) -> None:
        """Drop it on all cards."""
        if self._cards is not None and self._cards.cache is self.arrays is not None:
            self._cards.close_cache()
        self.arrays = None

    @property
    def blocks(self) -> tuple[int, int]:
        """Of all groups of layers: how many there are, and how many are in use."""
        pools = [group.pool for group in self.state.groups]
        blocks = sum(pool.blocks for pool in pools)
        return blocks, blocks - sum(pool.free for pool in pools)

    def _copy_slot(self, source: int, target: int) -> None:
        if self._cards is not None:
            self._cards.post("copy_slot", source, target)
        self.opened().copy_slot(source, target)


def _rehearsed(
    stream: Stream, model: Transformer, states: Mapping[Module, Declared], sizes: CacheSizes, step: tuple[int, int, int]
) -> int:
    """What `StepRunner.rehearse` finds with the smallest cache, which goes before the real one is made."""
    cache = KVCache(states, [1] * len(sizes.blocks(1, 1)), slots=min(sizes.slots(1), 1), device=model.device)
    return StepRunner(stream, model, cache, *step).rehearse()
