"""A server whose engine is synthetic: it makes tokens at a given rate, and computes nothing.

    python -m serving.synthetic MODEL.gguf RATE PROCESSES

The file is of a tokenizer. The engine's process says its id, and the server its URL, on stderr.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rocforge as rf
from rocforge.engine.embedder import Embedding
from rocforge.engine.request import Constraint, Request, Status, Token
from rocforge.server.run import serve

NAP = 0.001
"""Seconds that a step sleeps at most, so that requests that come meanwhile wait no longer."""
CATCH_UP = 0.1
"""Seconds that it may be late and still keep its rate."""


class SyntheticEngine:
    """A StepEngine that gives each request a token a step, the first at once.

    Args:
        rate: tokens a second, over all requests.
        tokens: ids that it gives, one after another.
    """

    device, limit, pooling, waiting, cache_blocks, memory_reserved = "cpu", 1 << 20, "mean", 0, (0, 0), 0
    cache_tokens = limit

    def __init__(self, rate: float, tokens: Sequence[int]):
        self.rate, self._tokens = rate, tokens
        self._running: dict[Request, None] = {}
        self._new: list[Request] = []
        self._due = 0.0

    def __enter__(self) -> SyntheticEngine:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.cancel_all()

    @property
    def busy(self) -> bool:
        return bool(self._running or self._new)

    def embed(self, prompts: Sequence[Sequence[int]], lora: str | None) -> Embedding:
        raise ValueError("the synthetic engine gives no vectors")

    def score(self, prompts: Sequence[Sequence[int]], top: int, lora: str | None) -> Embedding:
        raise ValueError("the synthetic engine gives no scores")

    def check(self, prompt: Sequence[int], params: rf.SamplingParams) -> None:
        """Every request can be served."""

    def add(
        self, prompt: Sequence[int], params: rf.SamplingParams | None = None, constraint: Constraint | None = None
    ) -> Request:
        request = Request(list(prompt), params or rf.SamplingParams(), constraint, status=Status.RUNNING)
        self._new.append(request)
        return request

    def cancel(self, request: Request) -> None:
        self._running.pop(request, None)
        request.status = Status.FINISHED

    def cancel_all(self) -> None:
        for request in [*self._running, *self._new]:
            self.cancel(request)
        self._new.clear()

    def step(self) -> list[Token]:
        now = time.perf_counter()
        new, self._new = [request for request in self._new if request.status is Status.RUNNING], []
        if new:
            if not self._running:
                self._due = now + len(new) / self.rate
            self._running.update(dict.fromkeys(new))
            return [self._next(request) for request in new]
        if now < self._due:
            time.sleep(min(self._due - now, NAP))
            return []
        self._due = max(self._due, now - CATCH_UP) + len(self._running) / self.rate
        return [self._next(request) for request in list(self._running)]

    def _next(self, request: Request) -> Token:
        token = self._tokens[len(request.output) % len(self._tokens)]
        request.output.append(token)
        reason = "length" if len(request.output) == request.params.max_tokens else None
        if reason:
            self.cancel(request)
        return Token(request, token, None, reason)


def words(tokenizer: rf.Tokenizer) -> list[int]:
    """Tokens that are whole words: the text of each is there at once."""
    texts = {token: tokenizer.decode([token]) for token in range(min(1000, tokenizer.vocab_size))}
    return [token for token, text in texts.items() if text.isascii() and text.strip().isalpha()]


def main() -> None:
    path, rate, processes = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])

    def load() -> tuple[SyntheticEngine, rf.Tokenizer]:
        with rf.open_gguf(path) as file:
            tokenizer = rf.Tokenizer(file)
        print(f"engine {os.getpid()}", file=sys.stderr, flush=True)
        return SyntheticEngine(rate, words(tokenizer)), tokenizer

    def ready(url: str) -> None:
        print(f"ready at {url}", file=sys.stderr, flush=True)

    serve("model", port=0, processes=processes, load_engine=load, max_queue=4096, log_level="error", on_ready=ready)


if __name__ == "__main__":
    main()
