"""EngineCore: an engine's requests by key, step by step, without their text.

It belongs to the engine's thread. What is above it, a Service in the same process or a server's engine process, takes
requests in and hands tokens out.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np

from rocforge.engine.embedder import Embedding
from rocforge.engine.reply import DeadlineError, StepError
from rocforge.engine.request import Constraint, Request, Status, Token
from rocforge.errors import CardFailedError
from rocforge.ops.sampling import Logprobs, SamplingParams

FAILURES = 3
"""Consecutive failed steps after which the engine has failed."""


class StepEngine(Protocol):
    """What a core needs of an engine; `rocforge.engine.engine.Engine` is one.

    `add` returns a Request, of which `status`, `num_cached_tokens` and nothing else is read; `step` a list of Tokens.
    """

    @property
    def device(self) -> str:
        """That the model is on: "cpu" or "gpu:N"."""

    @property
    def limit(self) -> int:
        """The longest sequence that can be served, in tokens."""

    @property
    def cache_tokens(self) -> int:
        """Tokens that the KV cache holds, of all sequences."""

    @property
    def pooling(self) -> str:
        """What `embed` makes of a prompt's hidden states."""

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or running."""

    @property
    def waiting(self) -> int:
        """Requests that wait for their first step."""

    @property
    def cache_blocks(self) -> tuple[int, int]:
        """KV cache blocks: how many there are, and how many are in use."""

    @property
    def memory_reserved(self) -> int:
        """Bytes."""

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Raises ValueError where a request can never be served."""

    def add(
        self, prompt: Sequence[int], params: SamplingParams | None = None, constraint: Constraint | None = None
    ) -> Request:
        """Queue a prompt."""

    def embed(self, prompts: Sequence[Sequence[int]], lora: str | None) -> Embedding:
        """Vectors of prompts."""

    def score(self, prompts: Sequence[Sequence[int]], top: int, lora: str | None) -> Embedding:
        """Log-probabilities of the tokens of prompts."""

    def cancel(self, request: Request) -> None:
        """End a request."""

    def cancel_all(self) -> None:
        """End all requests."""

    def step(self) -> list[Token]:
        """Run one step."""

    def __enter__(self) -> StepEngine: ...

    def __exit__(self, *exception: Any) -> None: ...


class Event(NamedTuple):
    """What a step brought a request.

    Attributes:
        key: whose it is.
        token: its next token; None where it has only begun to run, or has failed.
        finish_reason: "stop" or "length" with the last token.
        logprobs: where asked for.
        cached_tokens: with the first token: tokens of the prompt that were found in the cache.
        error: what it failed with; nothing follows.
    """

    key: int
    token: int | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    cached_tokens: int = 0
    error: Exception | None = None


class EngineCore:
    """Runs the requests of an engine, and ends those that are overdue or in a step that failed.

    Args:
        engine: this object adds all of its requests.
    """

    def __init__(self, engine: StepEngine):
        self.engine = engine
        self._requests: dict[int, Request] = {}
        self._keys: dict[Request, int] = {}
        self._waiting: dict[int, Request] = {}
        self._silent: set[int] = set()  # no token has come
        self._deadlines: list[tuple[float, int, float]] = []  # time, key, and how long that was after it was submitted
        self._embeddings: deque[tuple[Embedding, Future[np.ndarray]]] = deque()
        self._failures = 0

    @property
    def busy(self) -> bool:
        """Whether there is a request, or vectors to compute."""
        return bool(self._requests or self._embeddings)

    def embed(
        self, prompts: Sequence[Sequence[int]], lora: str | None, top: int | None, done: Future[np.ndarray]
    ) -> None:
        """Compute vectors of prompts, or, with `top`, scores of their tokens, a pass between two steps; `done` gets
        them, or is cancelled by who waits.

        Raises:
            ValueError: they can never be computed.
        """
        engine = self.engine
        found = engine.embed(prompts, lora) if top is None else engine.score(prompts, top, lora)
        self._embeddings.append((found, done))

    def _embed(self) -> None:
        """A pass of the embedding that has waited longest for one."""
        while self._embeddings and self._embeddings[0][1].cancelled():
            self._embeddings.popleft()
        if not self._embeddings:
            return
        embedding, done = self._embeddings.popleft()
        try:
            if next(embedding.passes, self) is not self:
                self._embeddings.append((embedding, done))
            elif done.set_running_or_notify_cancel():
                done.set_result(embedding.vectors)
        except Exception as cause:
            fail(done, _step_error(cause))

    def add(
        self,
        key: int,
        prompt: Sequence[int],
        params: SamplingParams,
        constraint: Constraint | None = None,
        timeout: float | None = None,
        submitted: float = 0.0,
    ) -> None:
        """Queue a prompt under a new key; it fails `timeout` seconds after `submitted` on the clock of time.monotonic.

        Raises:
            ValueError: it can never be served.
        """
        request = self.engine.add(prompt, params, constraint)
        self._requests[key] = self._waiting[key] = request
        self._keys[request] = key
        self._silent.add(key)
        if timeout is not None:
            heapq.heappush(self._deadlines, (submitted + timeout, key, timeout))
        if len(self._deadlines) > 2 * len(self._requests) + 64:  # most are of requests that have ended
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._requests]
            heapq.heapify(self._deadlines)

    def cancel(self, key: int) -> bool:
        """End a request, after which no event of it comes; whether there was one."""
        request = self._forget(key)
        if request is not None:
            self.engine.cancel(request)
        return request is not None

    def step(self) -> list[Event]:
        """Run a step, and return what it brought, and what is overdue.

        Raises:
            Exception: a step failed, as did those before; the requests are lost.
        """
        events = self._overdue()
        self._embed()
        try:
            tokens = self.engine.step()
        except Exception as error:
            self._failures += 1
            if isinstance(error, CardFailedError):
                raise
            self.engine.cancel_all()
            if self._failures == FAILURES:
                raise
            return events + self._failed(error)
        self._failures = 0
        events += self._begun()
        for token in tokens:
            key = self._keys.get(token.request)
            if key is None:
                continue
            if token.finish_reason is None and key not in self._silent:
                events.append(Event(key, token.id, None, token.logprobs))
            else:
                events.append(self._first_or_last(key, token))
        return events

    def _overdue(self) -> list[Event]:
        now, events = time.monotonic(), []
        while self._deadlines and self._deadlines[0][0] < now:
            _, key, timeout = heapq.heappop(self._deadlines)
            if self.cancel(key):
                events.append(Event(key, error=DeadlineError(f"the request timed out after {timeout:g} seconds")))
        return events

    def _begun(self) -> list[Event]:
        begun = [key for key, request in self._waiting.items() if request.status is not Status.WAITING]
        for key in begun:
            del self._waiting[key]
        return [Event(key) for key in begun]

    def _first_or_last(self, key: int, token: Token) -> Event:
        if token.error is not None:
            self._forget(key)
            return Event(key, error=token.error)
        cached = token.request.num_cached_tokens if key in self._silent else 0
        self._silent.discard(key)
        if token.finish_reason is not None:
            self._forget(key)
        return Event(key, token.id, token.finish_reason, token.logprobs, cached)

    def _failed(self, cause: Exception) -> list[Event]:
        events = []
        for key in list(self._requests):
            self._forget(key)
            events.append(Event(key, error=_step_error(cause)))
        return events

    def _forget(self, key: int) -> Request | None:
        request = self._requests.pop(key, None)
        if request is not None:
            del self._keys[request]
            self._waiting.pop(key, None)
            self._silent.discard(key)
        return request


def fail(done: Future[Any], error: Exception) -> None:
    """End a future with an error, unless it has been cancelled."""
    if done.set_running_or_notify_cancel():
        done.set_exception(error)


def _step_error(cause: Exception) -> StepError:
    """What requests fail with where the model did."""
    error = StepError(f"a step of the model failed: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
