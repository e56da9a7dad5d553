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
from concurrent.futures import Future
from typing import Any

import numpy as np

from rocforge.engine.breakers import with_breakers
from rocforge.engine.core import EngineCore, StepEngine, fail
from rocforge.engine.replies import Observer, Replies
from rocforge.engine.reply import CancelledError, Progress, QueueFullError, Reply, ServiceError
from rocforge.engine.request import Constraint
from rocforge.ops.sampling import SamplingParams
from rocforge.text.tokenizer import Tokenizer

MAX_QUEUE = 256
"""The default maximum of waiting requests."""


class State(enum.Enum):
    """The state of a service."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


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
        self,
        load: Callable[[], tuple[StepEngine, Tokenizer]],
        max_queue: int = MAX_QUEUE,
        observer: Observer | None = None,
    ):
        if max_queue < 1:
            raise ValueError(f"max_queue is {max_queue}; allowed is 1 or more")
        self.state = State.NEW
        self.error: BaseException | None = None
        self.engine: StepEngine | None = None
        self.tokenizer: Tokenizer | None = None
        self.max_queue = max_queue
        self._load = load
        self._changed = threading.Condition()
        self._arrived: deque[Reply] = deque()
        self._cancelled: deque[Reply] = deque()
        self._to_embed: deque[tuple[Sequence[Sequence[int]], str | None, int | None, Future[np.ndarray]]] = deque()
        self._embedding: set[Future[np.ndarray]] = set()
        self._replies = Replies(observer)
        self._give_up_at = 0.0
        self._looks = False
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
            self._replies.add(reply)
            self._arrived.append(reply)
            self._changed.notify_all()
        return reply

    def embed(
        self, prompts: Sequence[Sequence[int]], lora: str | None = None, top: int | None = None
    ) -> Future[np.ndarray]:
        """Queue prompts of token ids for their vectors, float32 (prompts, dim), as `Engine.embed` gives them; or, with
        `top`, for what `Engine.score` gives.

        The future may be cancelled. It fails with ValueError where they can never be computed, and with ServiceError
        where the service ends.

        Raises:
            QueueFullError: too many are in flight.
            ServiceError: the service is not running.
        """
        done: Future[np.ndarray] = Future()
        with self._changed:
            if self.state not in (State.STARTING, State.READY):
                raise self._unavailable()
            if len(self._embedding) >= self.max_queue:
                raise QueueFullError(f"the queue is full: {len(self._embedding)} embeddings wait")
            self._embedding.add(done)
            self._to_embed.append((prompts, lora, top, done))
            self._changed.notify_all()
        done.add_done_callback(self._embedding.discard)
        return done

    def look(self) -> None:
        """Have the engine step, though it may have nothing to do: one whose cards have ended fails then."""
        with self._changed:
            self._looks = True
            self._changed.notify_all()

    @property
    def queue_depth(self) -> int:
        """Requests that wait for their first step."""
        return len(self._arrived) + (self.engine.waiting if self.engine else 0)

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._replies)

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
                self._loop(EngineCore(engine), tokenizer)
        except BaseException as caught:
            error = caught
        with self._changed:
            self.error = error
            self.state = State.FAILED if error else State.STOPPED
            self.engine = None
            self._arrived.clear()
            self._cancelled.clear()
            self._to_embed.clear()
            self._changed.notify_all()
        for reply in self._replies:
            self._replies.end(reply, Progress.FAILED, self._unavailable())
        for done in list(self._embedding):
            fail(done, self._unavailable())

    def _loop(self, core: EngineCore, tokenizer: Tokenizer) -> None:
        while self._take_in(core, tokenizer):
            events = core.step()
            for key in self._replies.write(events, core.engine.memory_reserved):
                core.cancel(key)
            del events  # so that nothing of a request is alive while the thread waits

    def _take_in(self, core: EngineCore, tokenizer: Tokenizer) -> bool:
        """Wait for something to do; admit, cancel. False when it is time to end."""
        with self._changed:
            while not (self._something_to_do or core.busy or self.state is State.STOPPING):
                self._changed.wait()
            self._looks = False
            arrived, cancelled, to_embed = list(self._arrived), list(self._cancelled), list(self._to_embed)
            self._cancelled.clear()
            self._to_embed.clear()
            stopping = self.state is State.STOPPING
        for reply in arrived:
            self._admit(core, tokenizer, reply)
            self._arrived.popleft()
        for prompts, lora, top, done in to_embed:
            try:
                core.embed(prompts, lora, top, done)
            except Exception as error:
                fail(done, error)
        for reply in cancelled:
            core.cancel(reply.key)
            self._replies.end(reply, Progress.CANCELLED, CancelledError("the request was cancelled"))
        return not stopping or (core.busy and time.monotonic() < self._give_up_at)

    @property
    def _something_to_do(self) -> bool:
        return bool(self._arrived or self._cancelled or self._to_embed or self._looks)

    def _admit(self, core: EngineCore, tokenizer: Tokenizer, reply: Reply) -> None:
        try:
            reply.begin(tokenizer, core.engine.device)
            params = with_breakers(reply.params, tokenizer)
            core.add(reply.key, reply.prompt, params, reply.constraint, reply.timeout, reply.submitted)
        except Exception as error:
            self._replies.end(reply, Progress.FAILED, error)
