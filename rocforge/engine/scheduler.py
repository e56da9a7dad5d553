"""Scheduler: which tokens of which requests run in the next step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from rocforge.engine.block_pool import block_digests
from rocforge.engine.pacing import Pacer
from rocforge.engine.request import Request, Status
from rocforge.engine.state import StateManager

LEAST_SHARE = 256
"""Tokens that a prompt may take in a step though others wait behind it."""


class ScheduledChunk(NamedTuple):
    """A request's part in a step: its tokens at positions `start` to `stop`, the first of them not computed before.

    Attributes:
        request: whose they are.
        start, stop: positions.
        needs_logits: whether the last one is the request's last, so that the next one can be sampled.
    """

    request: Request
    start: int
    stop: int
    needs_logits: bool

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.stop - self.start


def counted(chunks: Sequence[ScheduledChunk]) -> tuple[int, int]:
    """How many of a step's chunks decode, one token that gives the next one each, and the tokens of all."""
    decodes = tokens = 0
    for _, start, stop, needs_logits in chunks:
        tokens += stop - start
        decodes += needs_logits and stop - start == 1
    return decodes, tokens


class Scheduler:
    """Continuous batching over what a cache has room for.

    Requests past their prompt come first, one token each, so decoding is never held up; what is left of a step's
    budget, or of the share that the pacer allows beside them, goes to prompts, in chunks, in order of arrival. A prompt
    that others wait behind takes at most half of what is left, so that a long one does not hold up short ones. A prompt
    is admitted when there is room for all of it. When blocks run out, the request that came last is preempted: it
    releases all that it holds, waits, and is computed again; in a step that preempts, none is admitted. A request whose
    next block is just being computed for another waits for that block instead of computing it again.

    A step may be scheduled while the one before still runs: `advance` says that a step is queued, and `accepted` that
    the host has read a token of it.

    Args:
        state: what sequences hold of the cache.
        max_batch_tokens: tokens a step, at most.
        max_requests: requests in flight, at most.
        sizes: of steps with prompts, in ascending order, where a step of another number of tokens costs as much as the
            next larger one.
    """

    def __init__(self, state: StateManager, max_batch_tokens: int, max_requests: int, sizes: Sequence[int] = ()):
        self.state, self.max_batch_tokens, self.max_requests = state, max_batch_tokens, max_requests
        self.sizes = sizes
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def schedule(self, pacer: Pacer | None = None) -> list[ScheduledChunk]:
        """The chunks of the next step, with their cache blocks allocated. Empty only if no request can run."""
        counts: dict[Request, int] = {}
        waiting = len(self.waiting)
        decodes, prompts = self._running()
        for request in decodes[: self.max_batch_tokens]:
            self._extend(counts, request, 1)
        budget = self._budget(len(counts), pacer)
        for i, request in enumerate(prompts):
            left = budget - sum(counts.values())
            self._extend(counts, request, self._chunk(request, _share(left, i + 1 < len(prompts) or waiting > 0)))
        if len(self.waiting) == waiting:
            self._admit(counts, budget)
        if prompts or waiting:
            self._hand_out(counts, budget - sum(counts.values()))
        chunks = []
        for request, count in counts.items():
            start = request.num_computed_tokens
            chunks.append(ScheduledChunk(request, start, start + count, start + count == request.length))
        return chunks

    def _running(self) -> tuple[list[Request], list[Request]]:
        """Running requests whose last token is neither known nor pending: those past their prompt, and the others."""
        decodes: list[Request] = []
        prompts: list[Request] = []
        for request in self.running:
            length = request.length
            if length < request.max_length:
                (decodes if length - request.num_computed_tokens == 1 else prompts).append(request)
        return decodes, prompts

    def _budget(self, decodes: int, pacer: Pacer | None) -> int:
        """Tokens of a step with so many decodes: of what the pacer allows, the nearest size."""
        budget = self.max_batch_tokens
        if pacer and decodes:
            budget = min(budget, decodes + pacer.share())
        sizes = [size for size in self.sizes if size > decodes]
        return min(sizes, key=lambda size: abs(size - budget), default=budget)

    def _extend(self, counts: dict[Request, int], request: Request, count: int) -> None:
        """Add so many tokens of a running request to a step. For its blocks, those that came last give way."""
        while count and request.status is Status.RUNNING:
            if self._grow(request, count):
                counts[request] = count
                return
            victim = self.running[-1]
            counts.pop(victim, None)
            self.preempt(victim)

    def _admit(self, counts: dict[Request, int], budget: int) -> None:
        """Add waiting requests to a step of `budget` tokens."""
        left = budget - sum(counts.values())
        for request in list(self.waiting):
            if left <= 0 or len(self.running) >= self.max_requests:
                return
            self._share_prefix(request)
            if self._soon_shared(request):
                self._release(request)
                continue
            start = request.num_computed_tokens
            count = self._chunk(request, _share(left, request is not self.waiting[-1]))
            if not self.state.admit(request.state, start, start + count, request.length):
                self._release(request)
                return
            self.waiting.remove(request)
            request.status = Status.RUNNING
            self.running.append(request)
            counts[request] = count
            left -= count

    def _hand_out(self, counts: dict[Request, int], left: int) -> None:
        """Give prompts, in order, what nobody behind them has taken."""
        for request, count in counts.items():
            if left <= 0:
                return
            more = self._chunk(request, count + left)
            if more > count and self._grow(request, more):
                counts[request] = more
                left -= more - count

    def advance(self, chunk: ScheduledChunk) -> None:
        """Record that a chunk's step is queued: later steps can reuse its request's full blocks."""
        request, start, stop, needs_logits = chunk
        request.num_computed_tokens = stop
        request.pending += needs_logits
        size, known = self.state.block_size, min(stop, request.known)
        if start // size < known // size:
            self._remember(request, start, known)

    def accepted(self, request: Request, token: int) -> None:
        """Record a token that a step has given a request."""
        request.output.append(token)
        request.pending -= 1
        known = request.known
        fills_block = known % self.state.block_size == 0
        if fills_block and request.status is Status.RUNNING and request.num_computed_tokens >= known:
            self._remember(request, known - 1, known)

    def _remember(self, request: Request, start: int, stop: int) -> None:
        """Full blocks of known tokens, of which some end here, can be reused. A recurrent state is a snapshot where no
        later token is queued."""
        self._extend_digests(request, stop // self.state.block_size)
        self.state.computed(request.state, start, stop, request.length, stop == request.num_computed_tokens)

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
            adapter = b"" if request.lora is None else request.lora.key
            digests += block_digests(tokens, size, digests[-1] if digests else adapter)

    def _release(self, request: Request) -> None:
        self.state.release(request.state)
        request.num_computed_tokens = 0


def _share(left: int, behind: bool) -> int:
    """Tokens that a prompt may take of what is left of a step; `behind` says whether others wait behind it."""
    return min(left, max(left - left // 2, LEAST_SHARE)) if behind else left
