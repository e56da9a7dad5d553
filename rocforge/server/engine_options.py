"""EngineOptions: how a server's engines are made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from rocforge.engine.capacity import MAX_REQUESTS, CacheSizes
from rocforge.engine.cards import Machines
from rocforge.engine.core import StepEngine
from rocforge.engine.engine import Engine
from rocforge.load import load, load_on_cards
from rocforge.nn.state import kept_of
from rocforge.nn.transformer import Transformer
from rocforge.text.tokenizer import Tokenizer

LoadEngine = Callable[[], tuple[StepEngine, Tokenizer]]


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is made.

    Attributes:
        device, context, fp16_weights, cache_type_k, cache_type_v, progress, devices, shares: as in `rf.load`.
        cache_tokens, max_batch_tokens, max_requests, inter_token_ms: as in `rf.Engine`.
        models: that are to have room at a time: without cache_tokens, the cache on a GPU takes its share of what is
            free, where that is a whole context.
        machines: finds the cards, in place of device and devices.
    """

    device: str | None = None
    context: int | None = None
    fp16_weights: bool | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    cache_tokens: int | None = None
    max_batch_tokens: int | None = None
    max_requests: int = MAX_REQUESTS
    inter_token_ms: float | None = None
    progress: bool | None = None
    devices: int | Sequence[str] | None = None
    shares: Sequence[float] | None = None
    models: int = 1
    machines: Callable[[], Machines] | None = None

    def load(
        self, path: str | os.PathLike[str], lora: Mapping[str, tuple[str | os.PathLike[str], float]]
    ) -> tuple[StepEngine, Tokenizer]:
        """The engine of a model with its adapters, and the tokenizer.

        Raises:
            RocforgeError, FileNotFoundError, ...: what `rf.load` and `rf.Engine` raise.
        """
        loading: dict[str, Any] = {"context": self.context, "fp16_weights": self.fp16_weights, "shares": self.shares}
        loading |= {"cache_type_k": self.cache_type_k, "cache_type_v": self.cache_type_v}
        if self.machines is None:
            model, tokenizer = load(path, self.device, progress=self.progress, devices=self.devices, **loading)
        else:
            model, tokenizer = load_on_cards(os.fspath(path), self.machines(), self.progress, loading)
        for name, (file, scale) in lora.items():
            model.adapters.load(name, file, scale)
        cache_tokens = self.cache_tokens_of(model)
        batch, requests, pace = self.max_batch_tokens, self.max_requests, self.inter_token_ms
        engine = Engine(model, tokenizer.eog_token_ids, cache_tokens, batch, requests, pace)
        silent = None if self.progress is None else not self.progress
        with tqdm(bar_format="{desc}", disable=silent, leave=False) as line:
            engine.prepare(line.set_description_str)
        return engine, tokenizer

    def cache_tokens_of(self, model: Transformer) -> int | None:
        """The size of a loaded model's cache; None: rf.Engine's default."""
        if self.models == 1 or self.cache_tokens is not None or model.device == "cpu":
            return self.cache_tokens
        sizes = CacheSizes(kept_of(model).values(), model.device, self.max_batch_tokens)
        tokens = sizes.tokens_that_fit(model.config.context, self.max_requests)
        return max(tokens // self.models, min(tokens, model.config.context))
