"""Embedder: vectors of prompts and scores of their tokens, by passes of the model between an engine's steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rocforge.device.memory import out_of_memory_explained
from rocforge.device.streams import Stream
from rocforge.engine.admission import Admission
from rocforge.engine.capacity import batch_tokens
from rocforge.nn.pooling import empty, pool_into, pooling_of
from rocforge.nn.scoring import score_into, scores_of
from rocforge.nn.transformer import Transformer, check_generates


class Embedding(NamedTuple):
    """Vectors of prompts, or of their tokens.

    Attributes:
        vectors: float32 NumPy array (prompts, dim), or (prompts, labels) of a model that ranks, or as `Engine.score`
            has it; complete once the passes have ended.
        passes: computes them; at most a pass of the model for each item.
    """

    vectors: np.ndarray
    passes: Iterator[None]


class Embedder:
    """Runs prompts without a reply, with a cache of their own.

    Args:
        model: its weights loaded.
        stream: that the passes run on.
        admission: checks the prompts.
    """

    def __init__(self, model: Transformer, stream: Stream, admission: Admission):
        self._model, self._stream, self._admission = model, stream, admission

    @property
    def pooling(self) -> str:
        """As `Engine.pooling`."""
        return pooling_of(self._model)

    def embed(self, prompts: Sequence[Sequence[int]], lora: str | None) -> Embedding:
        """As `Engine.embed`."""
        self._check(prompts, lora)
        vectors = empty(self._model, len(prompts), self.pooling)
        tokens = batch_tokens(self._model.device)
        return Embedding(vectors, self._run(pool_into(vectors, self._model, prompts, self.pooling, True, lora, tokens)))

    def score(self, prompts: Sequence[Sequence[int]], top: int, lora: str | None) -> Embedding:
        """As `Engine.score`."""
        check_generates(self._model)
        self._check(prompts, lora)
        scores = scores_of(prompts, top)
        tokens = batch_tokens(self._model.device)
        return Embedding(scores, self._run(score_into(scores, self._model, prompts, top, lora, tokens)))

    def _check(self, prompts: Sequence[Sequence[int]], lora: str | None) -> None:
        if getattr(self._model, "cards", None) is not None:
            raise ValueError("embeddings and scores are of a model on one card; this one is on several")
        self._admission.check_prompts(prompts, lora)

    def _run(self, passes: Iterator[None]) -> Iterator[None]:
        """The passes, on the stream."""
        while True:
            with self._stream, out_of_memory_explained(self._model.device, "pass"):
                if next(passes, self) is self:
                    return
            yield
