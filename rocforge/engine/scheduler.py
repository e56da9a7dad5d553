"""Requests, and the scheduler that decides which of their tokens run in the next step."""

from __future__ import annotations

import enum
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from rocforge.engine.block_pool import BlockPool
from rocforge.engine.pacing import Pacer
from rocforge.ops.sampling import SamplingParams

_ids = itertools.count()


class Status(enum.Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Constraint(Protocol):
    """What a request's text must obey, such as a grammar. Its errors fail the request and no other."""

    def mask(self, logits: np.ndarray) -> None:
        """Put -inf in a row of logits (vocabulary,) where a token may not come next."""

    def accept(self, token: int) -> None:
        """Note the token that was chosen."""

    def close(self) -> None:
        """The text has ended; a service calls it, at least once."""


@dataclass(eq=False)
class Request:
    """A prompt being continued.

    Attributes:
        prompt: token ids.
        params: how its tokens are chosen, and when it ends.
        constraint: what its text must obey, or None.
        output: token ids so far.
        computed: how many of its tokens have their keys and values in the cache.
        cached: how many of its tokens were found in the cache when it was last admitted.
        table: its cache blocks.
        digests: of its first full blocks, for sharing prefixes.
    """

    prompt: list[int]
    params: SamplingParams
    constraint: Constraint | None = None
    id: int = field(default_factory=lambda: next(_ids))
    output: list[int] = field(default_factory=list)
    status: Status = Status.WAITING
    computed: int = 0
    cached: int = 0
    table: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def remaining(self) -> int:
        """Tokens that have yet to run; 1 while it writes."""
        return self.length - self.computed

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids of positions start to stop."""
        split = len(self.prompt)
        return self.prompt[start:stop] + self.output[max(0, start - split) : max(0, stop - split)]


class Work(NamedTuple):
    """A request's part in a step: `count` tokens from position `computed`."""

    request: Request
    count: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the request's last token, so that the next one can be chosen."""
        return self.count == self.request.remaining


class Scheduler:
    """Continuous batching over a pool of cache blocks.

    Requests past their prompt come first, one token each, so decoding is never held up; what is left of a step's
    budget, or of the share that the pacer allows beside them, goes to prompts, in chunks, in order of arrival. A
    prompt is admitted when there are blocks for all of it, which then follow each other where they can. When the
    blocks run out, the request that came last gives its own back, waits, and is computed anew; while that happens
    none is admitted. A request whose next block is just being computed for another waits for that block instead of
    computing it again.

    Args:
        pool: the cache's blocks.
        max_batch_tokens: tokens a step, at most.
        max_requests: requests in flight, at most.
    """

    def __init__(self, pool: BlockPool, max_batch_tokens: int = 512, max_requests: int = 256):
        self.pool, self.max_batch_tokens, self.max_requests = pool, max_batch_tokens, max_requests
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def schedule(self, pacer: Pacer | None = None) -> list[Work]:
        """The work of the next step; its cache blocks are allotted. Empty only where no request can run."""
        budget, preempted = self.max_batch_tokens, False
        decodes = sum(request.remaining == 1 for request in self.running)
        if pacer and decodes:
            budget = min(budget, decodes + pacer.share(decodes))
        work: dict[Request, int] = {}
        for request in sorted(self.running, key=lambda r: r.remaining > 1):
            count = min(request.remaining, budget)
            while count and request.status is Status.RUNNING and not self._grow(request, request.computed + count):
                victim = self.running[-1]
                budget += work.pop(victim, 0)
                self._preempt(victim)
                preempted = True
            if count and request.status is Status.RUNNING:
                work[request] = count
                budget -= count
        for request in list(self.waiting):
            if preempted or not budget or len(self.running) >= self.max_requests:
                break
            self._share_prefix(request)
            if self._soon_shared(request):
                self._release(request)
                continue
            count = min(request.remaining, budget)
            if not self._grow(request, request.length):
                self._release(request)
                break
            self.waiting.remove(request)
            request.status = Status.RUNNING
            self.running.append(request)
            work[request] = count
            budget -= count
        return [Work(request, count) for request, count in work.items()]

    def repeats(self, requests: Sequence[Request], limit: int) -> bool:
        """Whether the step after one that gives each of these requests a token will be of the same requests.

        Asked before those tokens are known: one of them may still end its request. Blocks for the step are allotted.

        Args:
            requests: all one token from their end.
            limit: the longest sequence.
        """
        if self.waiting or self.running != requests:
            return False
        if any(r.length + 1 >= limit or len(r.output) + 1 == r.params.max_tokens for r in requests):
            return False
        return all(self._grow(request, request.length + 1) for request in requests)

    def advance(self, work: Work) -> None:
        """Note that a request's part of a step has run: its tokens are in the cache, its full blocks can be shared."""
        request = work.request
        before = request.computed // self.pool.block_size
        request.computed += work.count
        full = request.computed // self.pool.block_size
        self._extend_digests(request, full)
        for block, digest in zip(request.table[before:full], request.digests[before:full], strict=True):
            self.pool.remember(block, digest)

    def finish(self, request: Request) -> None:
        """Take a request out, wherever it is, and give back its blocks."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
        elif request.status is Status.WAITING:
            self.waiting.remove(request)
        self._release(request)
        request.status = Status.FINISHED

    def _share_prefix(self, request: Request) -> None:
        """Take over blocks that hold the start of the request already; its last token is always computed."""
        full = (request.length - 1) // self.pool.block_size
        self._extend_digests(request, full)
        request.table = self.pool.share(request.digests[:full])
        request.computed = request.cached = len(request.table) * self.pool.block_size

    def _soon_shared(self, request: Request) -> bool:
        """Whether a running request is about to compute the next block of this one, which then need not."""
        index = len(request.table)
        wanted = request.digests[index : index + 1]
        end = (index + 1) * self.pool.block_size
        return bool(wanted) and any(
            other.computed < end and other.digests[index : index + 1] == wanted for other in self.running
        )

    def _extend_digests(self, request: Request, blocks: int) -> None:
        known, size = len(request.digests), self.pool.block_size
        if blocks > known:
            previous = request.digests[-1] if known else b""
            request.digests += self.pool.digests(request.tokens(known * size, blocks * size), previous)

    def _grow(self, request: Request, tokens: int) -> bool:
        """Give a request blocks for that many tokens; False, and nothing given, where too few are free."""
        need = self.pool.blocks_for(tokens) - len(request.table)
        if need > self.pool.free:
            return False
        for _ in range(need):
            request.table.append(self.pool.allocate(after=request.table[-1] if request.table else -1))
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.status = Status.WAITING
        self.waiting.appendleft(request)

    def _release(self, request: Request) -> None:
        self.pool.release(request.table)
        request.table, request.computed = [], 0
