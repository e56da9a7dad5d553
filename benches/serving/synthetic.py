"""A synthetic engine: it makes tokens at a given rate, and computes nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from rocforge.engine.engine import Token
from rocforge.engine.request import Request, Status
from rocforge.ops.sampling import SamplingParams

NAP = 0.001
"""Seconds that a step sleeps at most, so that requests that come meanwhile wait no longer."""


class SyntheticEngine:
    """What a service needs of an engine: each request is given a token a step, the first at once.

    Args:
        rate: tokens a second, over all requests.
        vocabulary: prompts have token ids under it.
        tokens: ids that it gives, one after another.
    """

    limit = 1 << 20
    memory_reserved = 0

    def __init__(self, rate: float, vocabulary: int, tokens: Sequence[int]):
        self.rate, self._tokens = rate, tokens
        self.eog_token_ids: frozenset[int] = frozenset()
        self.model = SimpleNamespace(device="cpu", config=SimpleNamespace(vocabulary=vocabulary, context=self.limit))
        self.scheduler = SimpleNamespace(waiting=deque[Request]())
        self._running: list[Request] = []
        self._due = 0.0

    def __enter__(self) -> SyntheticEngine:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.cancel_all()

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Every request can be served."""

    def add(self, prompt: Sequence[int], params: SamplingParams, constraint: Any = None) -> Request:
        request = Request(list(prompt), params, constraint, status=Status.RUNNING)
        self._running.append(request)
        return request

    def cancel(self, request: Request) -> None:
        if request in self._running:
            self._running.remove(request)
        request.status = Status.FINISHED

    def cancel_all(self) -> None:
        for request in list(self._running):
            self.cancel(request)

    def step(self) -> list[Token]:
        if new := [request for request in self._running if not request.output]:
            return [self._next(request) for request in new]
        now = time.perf_counter()
        if now < self._due:
            time.sleep(min(self._due - now, NAP))
            return []
        self._due = max(self._due, now - 0.1) + len(self._running) / self.rate
        return [self._next(request) for request in list(self._running)]

    def _next(self, request: Request) -> Token:
        token = self._tokens[len(request.output) % len(self._tokens)]
        request.output.append(token)
        reason = "length" if len(request.output) == request.params.max_tokens else None
        if reason:
            self.cancel(request)
        return Token(request, token, None, reason)
