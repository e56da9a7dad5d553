"""Requests, and the scheduler that decides which of their tokens run in the next step."""

from __future__ import annotations

import enum
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from rocforge.cache import BlockPool
from rocforge.sampling import SamplingParams

_ids = itertools.count()


class Status(enum.Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Request:
    """A prompt being continued.

    Attributes:
        prompt: token ids.
        params: how its tokens are chosen, and when it ends.
        output: token ids so far.
        computed: how many of its tokens have their keys and values in the cache.
        table: its cache blocks.
        digests: of its full blocks, for sharing prefixes.
    """

    prompt: list[int]
    params: SamplingParams
    id: int = field(default_factory=lambda: next(_ids))
    output: list[int] = field(default_factory=list)
    status: Status = Status.WAITING
    computed: int = 0
    table: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of prompt and output."""
        return len(self.prompt) + len(self.output)

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
        return self.request.computed + self.count == self.request.length


class Scheduler:
    """Continuous batching over a pool of cache blocks.

    Requests past their prompt come first, one token each, so decoding is never held up; what is left of a step's
    budget goes to prompts, in chunks, in order of arrival. When the blocks run out, the request that came last gives
    its own back, waits, and is computed anew; while that happens none is admitted.

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

    def schedule(self) -> list[Work]:
        """The work of the next step; its cache blocks are allotted. Empty only where there is no request."""
        budget, preempted = self.max_batch_tokens, False
        work: dict[Request, int] = {}
        for request in sorted(self.running, key=lambda r: r.length - r.computed > 1):
            count = min(request.length - request.computed, budget)
            while count and request.status is Status.RUNNING and not self._grow(request, request.computed + count):
                victim = self.running[-1]
                budget += work.pop(victim, 0)
                self._preempt(victim)
                preempted = True
            if count and request.status is Status.RUNNING:
                work[request] = count
                budget -= count
        while self.waiting and budget and len(self.running) < self.max_requests and not preempted:
            request = self.waiting[0]
            self._share_prefix(request)
            count = min(request.length - request.computed, budget)
            if not self._grow(request, request.computed + count):
                self._release(request)
                break
            self.waiting.popleft()
            request.status = Status.RUNNING
            self.running.append(request)
            work[request] = count
            budget -= count
        return [Work(request, count) for request, count in work.items()]

    def advance(self, work: Work) -> None:
        """Note that a request's part of a step has run: its tokens are in the cache, its full blocks can be shared."""
        request = work.request
        request.computed += work.count
        full = request.computed // self.pool.block_size
        known = len(request.digests)
        if full > known:
            size = self.pool.block_size
            previous = request.digests[-1] if known else b""
            fresh = self.pool.digests(request.tokens(known * size, full * size), previous)
            for block, digest in zip(request.table[known:full], fresh, strict=True):
                self.pool.remember(block, digest)
            request.digests += fresh

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
        if request.computed:
            return
        tokens = request.tokens(0, request.length - 1)
        request.digests = self.pool.digests(tokens)
        request.table = self.pool.share(request.digests)
        request.digests = request.digests[: len(request.table)]
        request.computed = len(request.table) * self.pool.block_size

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
        request.table, request.digests, request.computed = [], [], 0
