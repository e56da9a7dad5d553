"""Scheduler: which tokens of which requests run in the next step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from rocforge.engine.block_pool import block_digests
from rocforge.engine.pacing import Pacer
from rocforge.engine.request import Request, Status
from rocforge.engine.state import StateManager


@dataclass(frozen=True)
class ScheduledChunk:
    """A request's part in a step: `count` tokens, the first of them its first that is not computed."""

    request: Request
    count: int

    @property
    def start(self) -> int:
        """Position of the first token."""
        return self.request.num_computed_tokens

    @property
    def stop(self) -> int:
        """Position after the last token."""
        return self.start + self.count

    @property
    def needs_logits(self) -> bool:
        """Whether the step reaches the request's last token, so that the next one can be sampled."""
        return self.count == self.request.remaining


class Scheduler:
    """Continuous batching over what a cache has room for.

    Requests past their prompt come first, one token each, so decoding is never held up; what is left of a step's
    budget, or of the share that the pacer allows beside them, goes to prompts, in chunks, in order of arrival. A
    prompt is admitted when there is room for all of it. When blocks run out, the request that came last is preempted:
    it releases all that it holds, waits, and is computed again; in a step that preempts, none is admitted. A request
    whose next block is just being computed for another waits for that block instead of computing it again.

    Args:
        state: what sequences hold of the cache.
        max_batch_tokens: tokens a step, at most.
        max_requests: requests in flight, at most.
    """

    def __init__(self, state: StateManager, max_batch_tokens: int, max_requests: int):
        self.state, self.max_batch_tokens, self.max_requests = state, max_batch_tokens, max_requests
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def schedule(self, pacer: Pacer | None = None) -> list[ScheduledChunk]:
        """The chunks of the next step, with their cache blocks allocated. Empty only if no request can run."""
        budget, preempted = self.max_batch_tokens, False
        decodes = sum(request.remaining == 1 for request in self.running)
        if pacer and decodes:
            budget = min(budget, decodes + pacer.share(decodes))
        counts: dict[Request, int] = {}
        for request in sorted(self.running, key=lambda r: r.remaining > 1):
            count = self._chunk(request, budget)
            while count and request.status is Status.RUNNING and not self._grow(request, count):
                victim = self.running[-1]
                budget += counts.pop(victim, 0)
                self.preempt(victim)
                preempted = True
            if count and request.status is Status.RUNNING:
                counts[request] = count
                budget -= count
        for request in list(self.waiting):
            if preempted or not budget or len(self.running) >= self.max_requests:
                break
            self._share_prefix(request)
            if self._soon_shared(request):
                self._release(request)
                continue
            count, start = self._chunk(request, budget), request.num_computed_tokens
            if not self.state.admit(request.state, start, start + count, request.length):
                self._release(request)
                break
            self.waiting.remove(request)
            request.status = Status.RUNNING
            self.running.append(request)
            counts[request] = count
            budget -= count
        return [ScheduledChunk(request, count) for request, count in counts.items()]

    def repeats(self, requests: Sequence[Request], limit: int) -> bool:
        """Whether the step after one that gives each of these requests a token will be of the same requests.

        Asked before those tokens are known: one of them may still end its request. Blocks for the step are allotted.

        Args:
            requests: each one token from its end.
            limit: the longest sequence.
        """
        if self.waiting or self.running != requests:
            return False
        if any(r.length + 1 >= limit or len(r.output) + 1 == r.params.max_tokens for r in requests):
            return False
        return all(self.state.grow(r.state, r.length, r.length + 1) for r in requests)

    def advance(self, chunk: ScheduledChunk, snapshot: bool = True) -> None:
        """Record that a chunk has run: its request's full blocks can be reused by others.

        Args:
            chunk: of the last step.
            snapshot: whether no later step of the request has been queued, so that its recurrent state can be copied.
        """
        request, start, stop = chunk.request, chunk.start, chunk.stop
        self._extend_digests(request, stop // self.state.block_size)
        self.state.computed(request.state, start, stop, request.length, snapshot)
        request.num_computed_tokens = stop

    def finish(self, request: Request) -> None:
        """Remove a request, waiting or running, and release what it holds."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
        elif request.status is Status.WAITING:
            self.waiting.remove(request)
        self._release(request)
        request.status = Status.FINISHED

    def preempt(self, request: Request) -> None:
        """Release what a running request holds; it is the first to run again, from what is still in the cache."""
        self.running.remove(request)
        self._release(request)
        request.status = Status.WAITING
        self.waiting.appendleft(request)

    def _chunk(self, request: Request, budget: int) -> int:
        """How many of a request's tokens run next."""
        start = request.num_computed_tokens
        return self.state.chunk_end(start, start + min(request.remaining, budget), request.length) - start

    def _grow(self, request: Request, count: int) -> bool:
        start = request.num_computed_tokens
        return self.state.grow(request.state, start, start + count)

    def _share_prefix(self, request: Request) -> None:
        """Reuse the cached prefix of the request; its last token is always computed."""
        full = (request.length - 1) // self.state.block_size
        self._extend_digests(request, full)
        request.num_computed_tokens = self.state.share_prefix(request.state, full)
        request.num_cached_tokens = request.num_computed_tokens

    def _soon_shared(self, request: Request) -> bool:
        """Whether a running request is about to compute this one's next block, which can then be shared."""
        index = request.num_computed_tokens // self.state.block_size
        wanted = request.state.digests[index : index + 1]
        end = (index + 1) * self.state.block_size
        return bool(wanted) and any(
            other.num_computed_tokens < end and other.state.digests[index : index + 1] == wanted
            for other in self.running
        )

    def _extend_digests(self, request: Request, blocks: int) -> None:
        digests, size = request.state.digests, self.state.block_size
        if blocks > len(digests):
            tokens = request.tokens(len(digests) * size, blocks * size)
            digests += block_digests(tokens, size, digests[-1] if digests else b"")

    def _release(self, request: Request) -> None:
        self.state.release(request.state)
        request.num_computed_tokens = 0
