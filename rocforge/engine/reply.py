"""Reply: the output of one request, from where its tokens come to its consumer."""

from __future__ import annotations

import asyncio
import enum
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from rocforge.engine.request import Constraint
from rocforge.engine.response import GenerationResponse, ResponseStream, Stats
from rocforge.errors import RocforgeError
from rocforge.ops.sampling import Logprobs, SamplingParams
from rocforge.text.tokenizer import Tokenizer


class ServiceError(RocforgeError):
    """The service is not running: not started yet, stopped, or failed."""


class QueueFullError(RocforgeError):
    """The service's queue is full."""


class CancelledError(RocforgeError):
    """The request was cancelled."""


class DeadlineError(RocforgeError):
    """The request timed out."""


class StepError(RocforgeError):
    """The step that the request was in failed; the cause says why."""


class EngineDeadError(RocforgeError):
    """The process of the engine has ended."""


class Progress(enum.Enum):
    """The state of a reply."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Reply:
    """The pieces of one request's text, to be iterated once, by `for` or by `async for`.

    Iterating raises the error that the request ended with: a ValueError where it can never be served, and the errors
    that Service lists.

    Attributes:
        prompt: token ids; none once it has ended.
        params: how it is continued; None once it has ended.
        constraint: what its text obeys, or None; None once it has ended.
        prompt_tokens: how many tokens the prompt has.
        progress: where it is.
        created: seconds since the epoch.
        cached_tokens: how many tokens of the prompt were found in the cache.
        completion_tokens: how many tokens it has.
        finish_reason: "stop" or "length" once it has finished.
        error: what it ended with, or None.
        key: among the requests of its service.
        last_token_time: on the clock of time.monotonic; when it was submitted, until a token has come.
    """

    key = -1

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        constraint: Constraint | None,
        timeout: float | None,
        cancel: Callable[[Reply], None],
    ):
        self.prompt, self.params, self.constraint, self.timeout = prompt, params, constraint, timeout
        self.prompt_tokens = len(prompt)
        self.created, self.submitted = time.time(), time.monotonic()
        self.last_token_time = self.submitted
        self.progress, self.cached_tokens, self.completion_tokens = Progress.QUEUED, 0, 0
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self._cancel = cancel
        self._lock, self._pieces = threading.Lock(), deque[GenerationResponse]()
        self._wake: Callable[[], None] | None = None
        self._stream: ResponseStream | None = None
        self._ended = False

    @classmethod
    def empty(cls, prompt: Sequence[int], params: SamplingParams) -> Reply:
        """A reply of no tokens, which is complete: "length"."""
        reply = cls(prompt, params, None, None, lambda reply: None)
        reply.finish_reason = "length"
        reply._hand_over(GenerationResponse("", -1, "length", None, Stats(len(prompt), "cpu")))
        reply.end(Progress.FINISHED)
        return reply

    @property
    def ended(self) -> bool:
        """Whether no further piece will come."""
        return self._ended

    def cancel(self) -> None:
        """End the request within one step of the engine; what has come stays readable. Any thread may call it."""
        self._cancel(self)

    def __iter__(self) -> Iterator[GenerationResponse]:
        arrived = threading.Event()
        while (pieces := self._take(arrived.set)) is not None:
            yield from pieces
            if not pieces:
                arrived.wait()
                arrived.clear()

    async def __aiter__(self) -> AsyncIterator[GenerationResponse]:
        async for pieces in self.batches():
            for piece in pieces:
                yield piece

    async def batches(self) -> AsyncIterator[list[GenerationResponse]]:
        """The pieces available, in lists, as they arrive."""
        loop, arrived, thread = asyncio.get_running_loop(), asyncio.Event(), threading.get_ident()

        def wake() -> None:
            if threading.get_ident() == thread:
                arrived.set()
            else:
                loop.call_soon_threadsafe(arrived.set)

        while (pieces := self._take(wake)) is not None:
            if pieces:
                yield pieces
            else:
                await arrived.wait()
                arrived.clear()

    def begin(self, tokenizer: Tokenizer, device: str) -> None:
        """Before the first `write`: what its text is made with, and where the model is."""
        self._stream = ResponseStream(tokenizer, self.prompt, self.params, device)

    def write(self, token: int, finish_reason: str | None, logprobs: Logprobs | None, memory: int) -> None:
        """Hand over the piece of the next token; for whoever runs the engine. `finish_reason` says then whether the
        text is complete.

        Args:
            token, finish_reason, logprobs, memory: as in `ResponseStream.add`.

        Raises:
            ValueError: the token is not in the vocabulary.
        """
        assert self._stream is not None, "begin comes first"
        piece = self._stream.add(token, finish_reason, logprobs, memory)
        self.completion_tokens += 1
        self.finish_reason = piece.finish_reason
        self._hand_over(piece)

    def end(self, progress: Progress, error: Exception | None = None) -> None:
        """Mark the end, and release prompt and constraint; for whoever runs the engine. Only the first call counts."""
        if not self._ended:
            self.progress, self.error = progress, error
            if self.constraint is not None:
                self.constraint.close()
            self.prompt, self.constraint, self._stream = (), None, None
            self._hand_over(None)

    def _hand_over(self, piece: GenerationResponse | None) -> None:
        with self._lock:
            if piece is None:
                self._ended = True
            else:
                self._pieces.append(piece)
            wake, self._wake = self._wake, None
        if wake is not None:
            try:
                wake()
            except RuntimeError:  # its event loop is closed: there is no consumer any more
                self.cancel()

    def _take(self, wake: Callable[[], None]) -> list[GenerationResponse] | None:
        """The pieces available; if there are none, `wake` is called when that changes. None at the end."""
        with self._lock:
            pieces = list(self._pieces)
            self._pieces.clear()
            if pieces:
                return pieces
            if not self._ended:
                self._wake = wake
                return []
        if self.error is not None:
            raise self.error
        return None
