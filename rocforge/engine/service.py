"""Service: an engine in a thread of its own, for requests from any thread or event loop.

The thread loads the model, owns the device, its current stream and the cache, and is the only one that touches them.
Requests reach it through a queue; their pieces leave through Replies.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rocforge.engine.engine import Engine, Token
from rocforge.engine.reply import (
    CancelledError,
    DeadlineError,
    Progress,
    QueueFullError,
    Reply,
    ServiceError,
    StepError,
)
from rocforge.engine.request import Constraint, Request, Status
from rocforge.engine.response import GenerationResponse, RequestStream
from rocforge.ops.sampling import SamplingParams
from rocforge.text.tokenizer import Tokenizer

FAILURES = 3
"""Consecutive failed steps after which the service fails."""


class State(enum.Enum):
    """The state of a service."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class Observer(Protocol):
    """Callbacks from the engine's thread."""

    def token(self, reply: Reply, piece: GenerationResponse) -> None:
        """A reply's next token has come."""

    def ended(self, reply: Reply) -> None:
        """A reply has ended, as its `progress` says."""


class Service:
    """Serves one model to many clients.

    `start` once; a second `start` does nothing. Requests submitted while it starts wait for the model. `stop` at any
    time, any number of times, from any thread; a stopped service stays stopped. An exception in a step fails the
    requests in flight with StepError; after three failed steps in a row, or if the model does not load, the service is
    FAILED, and `error` says why.

    Args:
        load: gives the engine and the tokenizer; called by the service's thread.
        max_queue: requests that may wait for their first step, at least 1.
        observer: its callbacks.

    Attributes:
        state: its State.
        error: what it failed with, or None.
        engine, tokenizer: once it is READY, else None. Only the service's thread may use the engine; its `limit`,
            `check` and numbers may be read by all.
    """

    def __init__(
        self, load: Callable[[], tuple[Engine, Tokenizer]], max_queue: int = 256, observer: Observer | None = None
    ):
        if max_queue < 1:
            raise ValueError(f"max_queue is {max_queue}; allowed is 1 or more")
        self.state = State.NEW
        self.error: BaseException | None = None
        self.engine: Engine | None = None
        self.tokenizer: Tokenizer | None = None
        self.max_queue, self.observer = max_queue, observer
        self._load = load
        self._changed = threading.Condition()
        self._arrived: deque[Reply] = deque()
        self._cancelled: deque[Reply] = deque()
        self._live: dict[Request, tuple[Reply, RequestStream]] = {}
        self._in_flight: set[Reply] = set()
        self._give_up_at = 0.0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stop()

    def start(self) -> None:
        """Start the thread, which loads the model; returns at once.

        Raises:
            ServiceError: it was stopped.
        """
        with self._changed:
            if self.state is State.NEW:
                self.state = State.STARTING
                self._thread = threading.Thread(target=self._main, name="rocforge-engine", daemon=True)
                self._thread.start()
            elif self.state not in (State.STARTING, State.READY):
                raise ServiceError(f"the service is {self.state.value} and cannot be started again")

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait until the model is loaded.

        Raises:
            ServiceError: the service ended instead; the cause says why.
            TimeoutError: it takes longer.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.state not in (State.NEW, State.STARTING), timeout):
                raise TimeoutError(f"the model did not load within {timeout} seconds")
            if self.state is not State.READY:
                raise self._unavailable() from self.error

    def stop(self, drain: float = 0.0, timeout: float | None = None) -> bool:
        """Refuse further requests, give those in flight `drain` seconds to finish, end them, and end the thread.

        Args:
            drain: seconds; what is still in flight then fails with ServiceError.
            timeout: seconds to wait for the thread; None: until it has ended.

        Returns:
            Whether the thread has ended.
        """
        with self._changed:
            if self.state is State.NEW:
                self.state = State.STOPPED
            elif self.state in (State.STARTING, State.READY):
                self.state = State.STOPPING
                self._give_up_at = time.monotonic() + drain
            elif self.state is State.STOPPING:
                self._give_up_at = min(self._give_up_at, time.monotonic() + drain)
            self._changed.notify_all()
        return self.wait(timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the thread has ended, in that many seconds; whether it has. True before `start`."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams | None = None,
        constraint: Constraint | None = None,
        timeout: float | None = None,
    ) -> Reply:
        """Queue a request; any thread may.

        Args:
            prompt: token ids, at least one.
            params: how to continue it; None for the defaults.
            constraint: what its text must obey, new for each request; closed when that ends.
            timeout: seconds until it fails with DeadlineError.

        Raises:
            ValueError: the request can never be served; while the model still loads, the reply says so instead.
            QueueFullError: too many are in flight.
            ServiceError: the service is not running.
        """
        params = params or SamplingParams()
        reply = Reply(prompt, params, constraint, timeout, self._request_cancel)
        with self._changed:
            if self.state not in (State.STARTING, State.READY):
                raise self._unavailable()
            if self.engine is not None:
                self.engine.check(prompt, params)
            if self.queue_depth >= self.max_queue:
                raise QueueFullError(
                    f"the queue is full: {self.queue_depth} requests wait, the limit is {self.max_queue}"
                )
            self._arrived.append(reply)
            self._in_flight.add(reply)
            self._changed.notify_all()
        return reply

    @property
    def queue_depth(self) -> int:
        """Requests that wait for their first step."""
        return len(self._arrived) + (len(self.engine.scheduler.waiting) if self.engine else 0)

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._in_flight)

    def _unavailable(self) -> ServiceError:
        why = f": {self.error}" if self.error else ""
        return ServiceError(f"the service is {self.state.value}{why}")

    def _request_cancel(self, reply: Reply) -> None:
        with self._changed:
            if not reply.ended and self.state in (State.STARTING, State.READY, State.STOPPING):
                self._cancelled.append(reply)
                self._changed.notify_all()

    def _main(self) -> None:
        """The thread: from loading the model to the end."""
        error: BaseException | None = None
        try:
            engine, tokenizer = self._load()
            with engine:
                with self._changed:
                    self.engine, self.tokenizer = engine, tokenizer
                    if self.state is State.STARTING:
                        self.state = State.READY
                    self._changed.notify_all()
                self._loop(engine, tokenizer)
        except BaseException as caught:
            error = caught
        with self._changed:
            self.error = error
            self.state = State.FAILED if error else State.STOPPED
            self.engine = None
            self._arrived.clear()
            self._cancelled.clear()
            self._live.clear()
            left = list(self._in_flight)
            self._changed.notify_all()
        for reply in left:
            self._end(reply, Progress.FAILED, self._unavailable())

    def _loop(self, engine: Engine, tokenizer: Tokenizer) -> None:
        failures = 0
        while self._take_in(engine, tokenizer):
            try:
                tokens = engine.step()
                failures = 0
            except Exception as error:
                engine.cancel_all()
                self._fail_live(error)
                failures += 1
                if failures == FAILURES:
                    raise
                continue
            while tokens:  # pop, so that no variable keeps a request alive while the thread waits
                self._hand_out(engine, tokens.pop(0))

    def _take_in(self, engine: Engine, tokenizer: Tokenizer) -> bool:
        """Wait for something to do; admit, cancel, expire. False when it is time to end."""
        with self._changed:
            while not (self._arrived or self._cancelled or engine.busy or self.state is State.STOPPING):
                self._changed.wait()
            arrived, cancelled = list(self._arrived), list(self._cancelled)
            self._cancelled.clear()
            stopping = self.state is State.STOPPING
        for reply in arrived:
            self._admit(engine, tokenizer, reply)
            self._arrived.popleft()
        for reply in cancelled:
            self._drop(engine, reply, Progress.CANCELLED, CancelledError("the request was cancelled"))
        for reply, stream in list(self._live.values()):
            if reply.overdue:
                error = DeadlineError(f"the request timed out after {reply.timeout:g} seconds")
                self._drop(engine, reply, Progress.FAILED, error)
            elif stream.request.status is Status.RUNNING:
                reply.progress = Progress.RUNNING
        return not stopping or (engine.busy and time.monotonic() < self._give_up_at)

    def _admit(self, engine: Engine, tokenizer: Tokenizer, reply: Reply) -> None:
        try:
            stream = RequestStream(engine, tokenizer, reply.prompt, reply.params, reply.constraint)
        except Exception as error:
            self._end(reply, Progress.FAILED, error)
        else:
            self._live[stream.request] = reply, stream

    def _drop(self, engine: Engine, reply: Reply, progress: Progress, error: Exception) -> None:
        for request, (other, _) in list(self._live.items()):
            if other is reply:
                engine.cancel(request)
                del self._live[request]
                self._end(reply, progress, error)

    def _hand_out(self, engine: Engine, token: Token) -> None:
        reply, stream = self._live[token.request]
        if token.error is None:
            try:
                piece = stream.add(token)
            except Exception as error:
                token = Token(token.request, token.id, None, "error", error)
                engine.cancel(token.request)
        if token.error is not None:
            del self._live[token.request]
            self._end(reply, Progress.FAILED, token.error)
            return
        if not reply.completion_tokens:
            reply.cached_tokens = token.request.num_cached_tokens
        reply.put(piece)
        if self.observer:
            self.observer.token(reply, piece)
        if piece.finish_reason:
            reply.finish_reason = piece.finish_reason
            del self._live[token.request]
            self._end(reply, Progress.FINISHED)

    def _fail_live(self, cause: Exception) -> None:
        for reply, _ in self._live.values():
            error = StepError(f"a step of the model failed: {type(cause).__name__}: {cause}")
            error.__cause__ = cause
            self._end(reply, Progress.FAILED, error)
        self._live.clear()

    def _end(self, reply: Reply, progress: Progress, error: Exception | None = None) -> None:
        with self._changed:
            self._in_flight.discard(reply)
        reply.end(progress, error)
        if self.observer:
            self.observer.ended(reply)
