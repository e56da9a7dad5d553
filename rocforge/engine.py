"""Engine: the step loop. Schedule, run the model on a flat batch, sample, hand out tokens.

An engine belongs to the thread that calls it. `with Engine(model) as engine` gives everything back at the end, also
after an error.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rocforge.arrays import asnumpy, on_device
from rocforge.batch import Batch, Chunk
from rocforge.cache import BlockPool
from rocforge.nn.transformer import Transformer
from rocforge.pacing import Pacer
from rocforge.sampling import Logprobs, SamplingParams, logprobs, sample
from rocforge.scheduler import Constraint, Request, Scheduler, Status, Work

DEFAULT_CACHE_TOKENS = 16384


@dataclass(frozen=True)
class Token:
    """One token that a step gave a request.

    Attributes:
        request: whose it is.
        id: its id.
        logprobs: where the request asks for them.
        finish_reason: None while the request goes on; "stop" at an end-of-generation token (which is `id`), "length"
            when max_tokens or the context is reached, "error" where its constraint failed.
        error: what failed; `id` is -1 then.
    """

    request: Request
    id: int
    logprobs: Logprobs | None
    finish_reason: str | None
    error: Exception | None = None


class Engine:
    """Runs any number of requests on one model, with continuous batching over a paged cache.

    Args:
        model: its weights loaded.
        eog_token_ids: tokens that end a generation.
        cache_tokens: how many tokens the cache holds; None: the model's context, up to 16384.
        max_batch_tokens: tokens a step, at most.
        max_requests: requests in flight, at most.

    Attributes:
        limit: the longest sequence that can be served, in tokens.
    """

    def __init__(
        self,
        model: Transformer,
        eog_token_ids: frozenset[int] | set[int] = frozenset(),
        cache_tokens: int | None = None,
        max_batch_tokens: int = 512,
        max_requests: int = 256,
    ):
        self.model, self.eog_token_ids = model, frozenset(eog_token_ids)
        if cache_tokens is None:
            cache_tokens = min(model.config.context, DEFAULT_CACHE_TOKENS)
        pool = BlockPool(BlockPool(0).blocks_for(cache_tokens))
        self.cache = model.new_cache(pool.blocks, pool.block_size)
        self.scheduler = Scheduler(pool, max_batch_tokens, max_requests)
        self._pacer = Pacer(max_batch_tokens)
        self.limit = min(model.config.context, self.cache.tokens)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight and drop the cache. A closed engine takes no more requests."""
        self.cancel_all()
        self.cache = None

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or running."""
        return len(self.scheduler) > 0

    def add(
        self, prompt: Sequence[int], params: SamplingParams | None = None, constraint: Constraint | None = None
    ) -> Request:
        """Queue a prompt.

        Args:
            prompt: token ids, at least one.
            params: how to continue it; None for the defaults.
            constraint: what the text must obey, new for each request.

        Raises:
            ValueError: as in `check`.
            RuntimeError: the engine is closed.
        """
        if self.cache is None:
            raise RuntimeError("the engine is closed")
        prompt, params = [int(token) for token in prompt], params or SamplingParams()
        self.check(prompt, params)
        request = Request(prompt, params, constraint)
        self.scheduler.add(request)
        return request

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Whether a request can be served at all; any thread may ask.

        Raises:
            ValueError: the prompt is empty or leaves no room for a token; a token id is outside the vocabulary.
        """
        vocabulary = self.model.config.vocabulary
        if not prompt:
            raise ValueError("the prompt has no tokens")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(f"the prompt has a token id outside 0 to {vocabulary - 1}")
        if len(prompt) >= self.limit:
            raise ValueError(f"the prompt has {len(prompt)} tokens, and the limit is {self.limit} with the reply")
        if params.logit_bias and not 0 <= min(params.logit_bias) <= max(params.logit_bias) < vocabulary:
            raise ValueError(f"logit_bias has a token id outside 0 to {vocabulary - 1}")

    def cancel(self, request: Request) -> None:
        """End a request now and free its cache blocks; one that has ended stays as it is."""
        if request.status is not Status.FINISHED:
            self.scheduler.finish(request)

    def cancel_all(self) -> None:
        """End all requests now; also after an exception in `step`, which leaves them neither here nor there."""
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            self.scheduler.finish(request)

    def step(self) -> list[Token]:
        """Run one batch, and return the tokens that it gave. After an exception, `cancel_all` comes next."""
        start = time.perf_counter()
        work = self.scheduler.schedule(self._pacer)
        if not work:
            return []
        decodes = sum(item.request.remaining == 1 for item in work)
        logits = self._run(work)
        sampling = [item.request for item in work if item.samples]
        for item in work:
            self.scheduler.advance(item)
        tokens = [self._next(request, row) for request, row in zip(sampling, logits, strict=True)]
        self._pacer.observe(time.perf_counter() - start, decodes, sum(item.count for item in work) - decodes)
        return tokens

    def _run(self, work: list[Work]) -> np.ndarray:
        """Logits of the last row of each item that samples, in order."""
        chunks = [Chunk(item.request.computed, item.count, item.request.table, item.samples) for item in work]
        ids = [item.request.tokens(item.request.computed, item.request.computed + item.count) for item in work]
        with on_device(self.model.device):
            batch = Batch.of(self.cache, chunks)
            return asnumpy(self.model(np.concatenate(ids).astype(np.int32), batch))

    def _next(self, request: Request, logits: np.ndarray) -> Token:
        params, constraint = request.params, request.constraint
        report = None
        try:
            allowed = logits if constraint is None else _masked(logits, constraint)
            token = sample(allowed, params, request.prompt, request.output)
            if constraint is not None:
                constraint.accept(token)
        except Exception as error:
            self.scheduler.finish(request)
            return Token(request, -1, None, "error", error)
        if params.logprobs is not None:
            report = logprobs(logits, token, params.logprobs)
        request.output.append(token)
        reason = None
        if token in self.eog_token_ids and not params.ignore_eos:
            reason = "stop"
        elif len(request.output) == params.max_tokens or request.length >= self.limit:
            reason = "length"
        if reason:
            self.scheduler.finish(request)
        return Token(request, token, report, reason)


def _masked(logits: np.ndarray, constraint: Constraint) -> np.ndarray:
    logits = logits.copy()
    constraint.mask(logits)
    return logits
