"""Supervisor: the process that a user starts. It forks the engine's process and those that answer HTTP, and ends them.

It loads nothing and has one thread, so that it can fork at any time. None of its processes outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from typing import Any

from rocforge.engine.reply import EngineDeadError, ServiceError

log = logging.getLogger("rocforge.server")
_FORK = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
ENGINE = "engine"
"""The name of an engine's process begins with it."""
_PATIENCE = 3.0
"""Seconds beyond the grace until a process that does not end is killed."""
_STARTING = 5.0
"""Seconds; a process for HTTP that ends sooner, and before it served, would do so again."""


class Notes:
    """What a process tells the supervisor.

    Attributes:
        connection: to the supervisor, which may say something too.
    """

    def __init__(self, connection: Connection):
        self.connection = connection

    def ready(self) -> None:
        """It serves."""
        self.connection.send(None)

    def say(self, *message: str) -> None:
        """Something that the supervisor's `_heard` knows."""
        self.connection.send(message)

    def failed(self, error: BaseException) -> None:
        """It ends with this error."""
        said: Any = ExceptionWithTraceback(error, error.__traceback__)
        try:
            pickle.loads(pickle.dumps(said))
        except Exception:  # it was made without a thought of that
            said = ServiceError(f"{type(error).__name__}: {error}")
        self.connection.send(said)


Body = Callable[[Notes], None]
"""What a process runs."""


class Child:
    """A forked process.

    Args:
        name, body: what it is called, and runs.
        inherited: what it closes first: it is the supervisor's.

    Attributes:
        is_engine: whether it is one for an engine, and not for HTTP.
        notes: the connection to it.
        was_ready: whether it has served.
        started: on the clock of time.monotonic.
        error: what it ended with, where it said so.
    """

    def __init__(self, name: str, body: Body, inherited: Sequence[socket.socket | Connection]):
        self.name, self.is_engine = name, name.startswith(ENGINE)
        self.was_ready, self.started, self.error = False, time.monotonic(), None
        self.notes, theirs = _FORK.Pipe()
        self.process = _FORK.Process(target=_run, args=(body, theirs, os.getpid(), inherited), name=f"rocforge-{name}")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the child has handlers of its own
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    error: BaseException | None

    def take_notes(self) -> list[tuple[str, ...]]:
        """Read what it has said, and give what is neither that it serves nor an error."""
        messages: list[tuple[str, ...]] = []
        with contextlib.suppress(EOFError, OSError):
            while self.notes.poll():
                said = self.notes.recv()
                if isinstance(said, tuple):
                    messages.append(said)
                else:
                    self.error = said
                    self.was_ready = self.was_ready or said is None
        return messages

    def say(self, *message: str | None) -> None:
        """Tell it something; one that has ended hears nothing."""
        with contextlib.suppress(OSError):
            self.notes.send(message)

    @property
    def fate(self) -> str:
        """How it has ended."""
        code = self.process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"status {code}"


class Supervisor:
    """Keeps one process for the engine and some for HTTP running, until a signal.

    Args:
        engine, front_ends: what they run; None: no engine at first.
        listeners: of the port; they are closed first when the server stops.
        restart_engine: whether the engine's process is started again when it dies.
        grace: seconds that front ends take to stop.
        on_ready: called once all serve.
    """

    def __init__(
        self,
        engine: Body | None,
        front_ends: Sequence[Body],
        listeners: Sequence[socket.socket],
        restart_engine: bool,
        grace: float,
        on_ready: Callable[[], Any],
    ):
        self._listeners, self._restart_engine = listeners, restart_engine
        self._grace, self._on_ready = grace, on_ready
        self._bodies = {f"http-{index}": body for index, body in enumerate(front_ends)}
        if engine is not None:
            self._bodies = {ENGINE: engine, **self._bodies}
        self._children: dict[str, Child] = {}
        self._signalled, self._stopping, self._announced = False, False, False
        self._kill_at = float("inf")
        self._error: BaseException | None = None

    def run(self) -> None:
        """Start the processes, and return when they have ended after a signal.

        Raises:
            BaseException: what the engine's process ended with; EngineDeadError where it did not say.
            ServiceError: a process for HTTP did not start.
        """
        read, write = self._wakeup = socket.socketpair()
        with read, write:
            read.setblocking(False)
            write.setblocking(False)
            before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
            wakeup = signal.set_wakeup_fd(write.fileno())
            try:
                for name in self._bodies:
                    self._start(name)
                while self._children:
                    self._watch(read)
            finally:
                self._kill()
                signal.set_wakeup_fd(wakeup)
                for number, handler in before.items():
                    signal.signal(number, handler)
        if self._error is not None:
            raise self._error

    def _start(self, name: str, body: Body | None = None) -> None:
        inherited: list[socket.socket | Connection] = [
            *self._wakeup,
            *(child.notes for child in self._children.values()),
        ]
        self._children[name] = Child(name, body or self._bodies[name], inherited)

    def _handle(self, number: int, frame: Any) -> None:
        if self._signalled:
            os._exit(128 + number)
        self._signalled = True

    def _stop(self) -> None:
        """Let the processes for HTTP finish; those of engines end after them, or at once while they load."""
        self._stopping, self._kill_at = True, time.monotonic() + self._grace + _PATIENCE
        for listener in self._listeners:
            listener.close()
        for child in self._children.values():
            if not child.is_engine or not child.was_ready:
                child.process.terminate()

    def _watch(self, read: socket.socket) -> None:
        """Wait for something to happen, and do what follows from it."""
        children = list(self._children.values())
        sources: list[Any] = [read, *(child.process.sentinel for child in children)]
        sources += [child.notes for child in children if not child.notes.closed]
        seconds = max(0.0, self._kill_at - time.monotonic()) if self._stopping else None
        wait(sources, seconds)
        with contextlib.suppress(BlockingIOError):
            read.recv(4096)
        if self._signalled and not self._stopping:
            self._stop()
        for child in children:
            was_ready = child.was_ready
            for message in child.take_notes():
                self._heard(child, *message)
            if child.was_ready and not was_ready:
                self._is_ready(child)
            if child.process.exitcode is not None:
                self._ended(child)
        if self._stopping:
            if all(child.is_engine for child in self._children.values()):
                for child in self._children.values():
                    child.process.terminate()
            if time.monotonic() >= self._kill_at:
                self._kill()
        elif not self._announced and all(child.was_ready for child in self._children.values()):
            self._announced = True
            try:
                self._on_ready()
            except Exception:  # such as a pipe that nobody reads any more; the server serves all the same
                log.exception("on_ready has failed")

    def _heard(self, child: Child, *message: str) -> None:
        """For what processes of subclasses say."""

    def _is_ready(self, child: Child) -> None:
        """For what subclasses do when a process serves."""

    def _forget(self, child: Child) -> None:
        child.notes.close()
        del self._children[child.name]

    def _ended(self, child: Child) -> None:
        self._forget(child)
        if self._stopping:
            return
        if child.is_engine:
            start_again = child.was_ready and self._restart_engine
        else:
            start_again = child.was_ready or time.monotonic() > child.started + _STARTING
        if start_again:
            log.error("the process %s has ended (%s) and is started again", child.name, child.fate)
            self._start(child.name)
            return
        kind = EngineDeadError if child.is_engine else ServiceError
        self._error = child.error or kind(f"the process {child.name} has ended: {child.fate}")
        self._stop()

    def _kill(self) -> None:
        for child in self._children.values():
            child.process.kill()
            child.process.join()
            child.notes.close()
        self._children.clear()


def _run(body: Body, connection: Connection, parent: int, inherited: Sequence[socket.socket | Connection]) -> None:
    """The life of a process: it ends with its parent, and leaves the terminal's signals to it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    os.setsid()
    signal.set_wakeup_fd(-1)
    for one in inherited:
        one.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    notes = Notes(connection)
    try:
        body(notes)
    except Exception as error:
        notes.failed(error)
        sys.exit(1)
