"""Jails: untrusted programs run in processes of their own, within limits that the operating system enforces.

A Jail is a process that holds what its programs need, such as a vocabulary. Each program gets a fork of it, a Cell, in
a few milliseconds. A cell may take `MEMORY`, and a given CPU time a call (rlimit and itimer); past either the kernel
ends it, and the caller gets a LimitError.

A cell returns bytes that are never unpickled, so the worst it can send is a wrong answer. A process ends when the other
end of its connection is closed, also by the death of the process that opened it: an idle one at once, a busy one at the
latest when the CPU time of its call is over.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rocforge.errors import RocforgeError

MEMORY = 256 * 10**6
"""Bytes that a cell may take beside what it was forked with."""
MAX_ANSWER = 64 * 10**6
"""Bytes of an answer."""
MAX_MESSAGE = 4096
"""Characters of an exception's message."""
START = 60.0
"""Seconds of CPU time to make the jail's object."""
SLACK = 5.0
"""How much longer than its CPU time a call may take: processors may be busy."""
_PR_SET_CHILD_SUBREAPER = 36
_FORK = b""


class JailError(RocforgeError):
    """A call that failed; the message is that of the exception in the cell."""


class LimitError(JailError):
    """A call exceeded a limit, and its cell has ended."""


class Cell:
    """A process of a jail, for one thread at a time. Calls name methods of the object that the jail holds."""

    def __init__(self, connection: Connection):
        self._connection, self._seconds, self._owner = connection, 0.0, os.getpid()

    def call(self, seconds: float, method: str, *arguments: Any) -> bytes:
        """Return what `method(*arguments)` returns in the cell.

        Raises:
            JailError: it raised.
            LimitError: it took more than `seconds` of CPU time, or more than MEMORY.
        """
        self.send(seconds, method, *arguments)
        return self.receive(seconds * SLACK)

    def send(self, seconds: float, method: str, *arguments: Any) -> None:
        """Begin a call; `receive` returns its answer."""
        self._seconds = seconds
        with self._living():
            self._connection.send_bytes(pickle.dumps((seconds, method, arguments)))

    def receive(self, seconds: float) -> bytes:
        """The answer to the call that `send` began; waits at most `seconds` of wall time."""
        with self._living():
            if not self._connection.poll(seconds):
                self.close()
                raise LimitError(f"took more than {seconds:g} seconds")
            answer = self._connection.recv_bytes(MAX_ANSWER + 1)
        if answer[:1] == b"+":
            return answer[1:]
        kind = LimitError if answer[:1] == b"!" else JailError
        raise kind(answer[1:].decode(errors="replace"))

    def fork(self) -> Cell:
        """A copy of this cell, with its object as it is now."""
        ours, theirs = socket.socketpair()
        with ours, theirs, self._living():
            with socket.socket(fileno=os.dup(self._connection.fileno())) as channel:
                self._connection.send_bytes(_FORK)
                socket.send_fds(channel, [b"\0"], [theirs.fileno()])
            return Cell(Connection(ours.detach()))

    def close(self) -> None:
        """End the process; idempotent."""
        self._connection.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed, by `close` or by a timeout."""
        return self._connection.closed

    @contextlib.contextmanager
    def _living(self) -> Iterator[None]:
        if os.getpid() != self._owner:
            raise LimitError("the cell belongs to the parent of this forked process")
        try:
            yield
        except (EOFError, OSError) as error:
            bounds = f"{self._seconds:g} seconds of CPU time or {MEMORY // 10**6} MB of memory"
            raise LimitError(f"took more than {bounds}") from error


class Jail:
    """Forks cells that each hold `module.name(*arguments)`. Any thread may call it.

    The process starts with the first cell, and again if it was killed, or if its owner was forked.
    """

    def __init__(self, module: str, name: str, *arguments: Any):
        self._target = module, name, *arguments
        self._lock = threading.Lock()
        self._first: Cell | None = None
        self._end: Callable[[], Any] = lambda: None

    def cell(self) -> Cell:
        """A new cell."""
        with self._lock:
            if self._first is not None:
                with contextlib.suppress(LimitError):
                    return self._first.fork()
            self._end()
            first, process = _start()
            self._end = weakref.finalize(self, _stop, os.getpid(), first, process)
            first.call(START, "make", *self._target)
            self._first = first
            return first.fork()


def _start() -> tuple[Cell, subprocess.Popen[bytes]]:
    """A process in which `_main` runs, in a session of its own so that a terminal's ^C is not for it."""
    ours, theirs = socket.socketpair()
    # The package is entered past its __init__, which would load NumPy and all of rocforge into every cell.
    program = (
        f"import sys, types; sys.path[:] = {sys.path!r}; package = types.ModuleType('rocforge');"
        f"package.__path__ = [{str(Path(__file__).parents[1])!r}]; sys.modules['rocforge'] = package;"
        f"from rocforge.text.jail import _main; _main({theirs.fileno()})"
    )
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # metadata has arrays, and what forks has no threads
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return Cell(Connection(ours.detach())), process


def _stop(owner: int, cell: Cell, process: subprocess.Popen[bytes]) -> None:
    cell.close()
    if os.getpid() == owner:  # a fork of the owner leaves it the process
        process.kill()
        process.wait()


def _main(descriptor: int) -> None:
    """The process of a jail: makes the object, then forks cells."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # of cells that other cells have forked
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for cells
    connection, target, confined = Connection(descriptor), _Target(), False
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = connection.recv_bytes()
            if message != _FORK:
                connection.send_bytes(_answer(target.object, *pickle.loads(message)))
            elif (forked := _fork(connection)) is not None:
                connection = forked
                confined = confined or _confine()
    os._exit(0)


class _Target:
    """The object whose methods are called: this, until `make` replaces it."""

    def __init__(self) -> None:
        self.object: Any = self

    def make(self, module: str, name: str, *arguments: Any) -> bytes:
        self.object = getattr(import_module(module), name)(*arguments)
        gc.freeze()  # a collection in a fork would copy what it looks at
        return b""


def _fork(connection: Connection) -> Connection | None:
    """In the child the connection that has come for it; None in the parent."""
    with socket.socket(fileno=os.dup(connection.fileno())) as channel:
        _, (descriptor,), _, _ = socket.recv_fds(channel, 1, 1)
    forked = Connection(descriptor)
    try:
        if os.fork() == 0:
            connection.close()
            return forked
    except OSError:
        pass  # no room for another process: the caller sees its connection close
    forked.close()
    return None


def _confine() -> bool:
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # hide what a library prints as it aborts
    return True


def _answer(target: Any, seconds: float, method: str, arguments: tuple[Any, ...]) -> bytes:
    signal.setitimer(signal.ITIMER_PROF, seconds)  # nothing handles its signal, so it ends the process
    try:
        answer = b"+" + getattr(target, method)(*arguments)
        if len(answer) > MAX_ANSWER:
            answer = b"!returned more than %d MB" % (MAX_ANSWER // 10**6)
    except MemoryError:
        answer = b"!took more than %d MB of memory" % (MEMORY // 10**6)
    except Exception as error:
        answer = b"-" + str(error)[:MAX_MESSAGE].encode(errors="replace")
    signal.setitimer(signal.ITIMER_PROF, 0)
    return answer
