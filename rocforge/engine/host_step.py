"""Steps on the CPU: each has run, and its tokens are sampled, when it is returned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rocforge.engine.cards import Cards
from rocforge.engine.request import Request
from rocforge.engine.sampler import SampledToken, sample_tokens
from rocforge.engine.scheduler import ScheduledChunk
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.transformer import Transformer


@dataclass(frozen=True)
class HostStep:
    """A step that has run on the CPU; as PendingStep."""

    chunks: Sequence[ScheduledChunk]
    requests: list[Request]
    sampled: list[SampledToken]
    seconds: float

    def tokens(self) -> list[SampledToken]:
        """The token of each request."""
        return self.sampled


class HostRunner:
    """Runs steps on the CPU; as StepRunner.

    Args:
        model: on the CPU.
        cache: its cache, there.
    """

    sizes: Sequence[int] = ()
    memory_reserved = 0

    def __init__(self, model: Transformer, cache: KVCache):
        self._model, self._cache = model, cache
        self._cards: Cards | None = getattr(model, "cards", None)

    def launch(self, chunks: Sequence[ScheduledChunk]) -> HostStep:
        """Run a step; the chunks are scheduled, with the blocks for their tokens."""
        start = time.perf_counter()
        parts = [
            Chunk(chunk.start, chunk.tokens, state.tables, chunk.needs_logits, state.slot, chunk.request.lora)
            for chunk in chunks
            for state in (chunk.request.state,)
        ]
        ids = np.concatenate([chunk.request.tokens(chunk.start, chunk.stop) for chunk in chunks]).astype(np.int32)
        if self._cards is not None:
            self._cards.post("run", ids, parts)
        logits = self._model(ids, Batch.of(self._cache, parts))
        requests = [chunk.request for chunk in chunks if chunk.needs_logits]
        sampled = sample_tokens(logits, requests)
        return HostStep(chunks, requests, sampled, time.perf_counter() - start)

    def prepare(self, progress: Callable[[str], Any]) -> None:
        """Nothing is compiled."""

    def trim(self) -> None:
        """Nothing is kept."""
