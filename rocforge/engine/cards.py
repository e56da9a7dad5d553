"""Cards: the processes of a model that several cards compute together, as the process of the first one sees them.

This process is rank 0's: it schedules, samples, and says to the others what to run, by shared memory. They do the same
with their parts of the model (rocforge.card), and meet this one in the collectives. An error in one of them, or its
end, ends all; the others end with this process, however that ends, since their end of a pipe to it then closes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from rocforge.device.distributed import Group, HostGroup, NcclGroup
from rocforge.device.streams import Stream
from rocforge.errors import CardFailedError, DeviceError
from rocforge.nn.cache import KVCache
from rocforge.nn.module import Module
from rocforge.nn.tree import Snapshot

CacheTypes = tuple[str | None, str | None]
StepSizes = tuple[int, int, int] | None

MESSAGE_NBYTES = 64 << 20
"""Shared memory for what the others are told at a time; the system gives what is written of it."""
GRACE = 5.0
"""Seconds that a process has to end by itself."""
NOTICE = 2.0
"""Seconds in which a card's error comes after its collectives have failed."""


@dataclass(frozen=True)
class CardJob:
    """What a card's process is to do.

    Attributes:
        path: of the model.
        devices: of all cards, "cpu" or "gpu:N".
        rank: of this one.
        loading: further arguments of loading.
    """

    path: str
    devices: tuple[str, ...]
    rank: int
    loading: dict[str, Any]

    @property
    def device(self) -> str:
        """Of this card."""
        return self.devices[self.rank]

    def group(self, links: dict[int, Connection]) -> Group:
        """The group, not connected yet where it is of GPUs."""
        host = self.devices[0] == "cpu"
        return HostGroup(self.rank, self.devices, links) if host else NcclGroup(self.rank, self.devices)


class Cards:
    """Starts the processes of all cards but the first, which begin to load their parts.

    Args:
        job: of rank 0.

    Attributes:
        group: of all cards.
        cache: the engine's, of which each card has its part; else None.
        snapshot: of the model as it was loaded.
        ended: why the cards no longer compute; None while they do.
    """

    def __init__(self, job: CardJob):
        size = len(job.devices)
        links: list[dict[int, Connection]] = [{} for _ in range(size)]
        for rank in range(size if job.devices[0] == "cpu" else 0):
            for other in range(rank):
                links[rank][other], links[other][rank] = Pipe()
        self.group = job.group(links[0])
        self.cache: KVCache | None = None
        self.snapshot: Snapshot | None = None
        self.ended: str | None = None
        memory = os.memfd_create("rocforge-cards")
        os.ftruncate(memory, MESSAGE_NBYTES)
        self._memory = mmap.mmap(memory, MESSAGE_NBYTES)
        alive, self._life = os.pipe()  # the others see its end close with this process
        self._others: list[_Other] = []
        self._unread = False
        try:
            for rank in range(1, size):
                theirs = replace(job, rank=rank)
                self._others.append(_Other(theirs, memory, alive, links[rank]))
        finally:
            for descriptor in (memory, alive):
                os.close(descriptor)
            for connection in (connection for theirs in links[1:] for connection in theirs.values()):
                connection.close()
            self._end = weakref.finalize(self, _end, self._others, self._life, list(links[0].values()))
        for process in self._others:
            process.watch(self.group)

    def connect(self) -> None:
        """Wait until the others have loaded their parts, and meet them in the group."""
        with self.together():
            self._replies()
            if isinstance(self.group, NcclGroup):
                unique = self.group.new_id()
                self.post("connect", unique)
                with Stream(self.group.devices[0]):
                    self.group.connect(unique)

    def post(self, name: str, *args: Any) -> None:
        """Have the others call one of the methods of rocforge.card.Card; this process does the same itself.

        Raises:
            DeviceError: one of them has ended.
        """
        self._write((name, args, False))

    def ask(self, name: str, *args: Any) -> list[Any]:
        """As `post`; what the methods return."""
        with self.together():
            self._write((name, args, True))
            return self._replies()

    def open(self, cache: KVCache, types: CacheTypes, blocks: list[int], slots: int, step: StepSizes) -> None:
        """Have the others make their parts of an engine's cache; arguments as in rocforge.card.Card.open.

        Raises:
            ValueError: there is an engine already.
        """
        if self.cache is not None:
            raise ValueError("a model on several cards has one engine at a time; close the other one")
        with self.together():
            self.post("open", types, blocks, slots, step)
        self.cache = cache

    def close_cache(self) -> None:
        """Have the others drop their parts of the cache."""
        self.cache = None
        if not self.ended:
            with self.together():
                self.post("close")

    def check_unchanged(self, model: Module) -> None:
        """Raise a ValueError where this card's part of the model is no longer what was loaded."""
        snapshot = model.snapshot()
        if self.snapshot is not snapshot and not (self.snapshot and self.snapshot.same_as(snapshot)):
            raise ValueError("a model on several cards cannot be edited, observed or changed: the others would not be")

    def _write(self, message: Any) -> None:
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        if len(data) > MESSAGE_NBYTES:
            raise ValueError(f"a step of {len(data)} bytes; the cards are told {MESSAGE_NBYTES} at a time")
        if self._unread:
            for other in self._others:
                other.expect("read")
        self._memory[: len(data)] = data
        self._unread = True
        for other in self._others:
            other.tell(len(data))

    def _replies(self) -> list[Any]:
        replies = []
        for other in self._others:
            if self._unread:
                other.expect("read")
            replies.append(other.expect("reply"))
        self._unread = False
        return replies

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """In this context the cards compute together: an error in one of them ends all of them.

        Raises:
            CardFailedError: a card has failed, by its name.
        """
        if self.ended:
            raise CardFailedError(self.ended)
        try:
            yield
            if any(other.gone for other in self._others):
                raise DeviceError("a card has ended")
        except CardFailedError as error:
            self.ended = str(error)
            self.close()
            raise
        except BaseException as error:
            found = self._failure() if isinstance(error, Exception) else None
            self.ended = found or f"{self.group.name(0)} failed: {type(error).__name__}: {error}"
            self.close()
            if found:
                raise CardFailedError(found) from error
            raise

    def _failure(self) -> str | None:
        """What another card has failed with, if one has."""
        while ready := wait([other.control for other in self._others], NOTICE):
            for other in self._others:
                if other.control not in ready:
                    continue
                try:
                    kind, value = other.control.recv()
                except (EOFError, OSError):
                    return other.how_it_ended()
                if kind == "failed":
                    return f"{other.name} failed: {value}"
        return None

    def close(self) -> None:
        """End the other processes. The model cannot be used afterwards."""
        self.ended = self.ended or "the cards of this model have been closed"
        self._end()


class _Other:
    """The process of another card."""

    def __init__(self, job: CardJob, memory: int, alive: int, links: dict[int, Connection]):
        self.name, self.gone, self.closing = f"card {job.rank} ({job.devices[job.rank]})", False, False
        self.control, theirs = Pipe()
        descriptors = {rank: link.fileno() for rank, link in links.items()}
        passed = (theirs.fileno(), memory, alive)
        code = "from rocforge.card import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, passed)],
            pass_fds=(*passed, *descriptors.values()),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        theirs.close()
        self.control.send((job, descriptors))

    def watch(self, group: Group) -> None:
        """Note when the process ends, and then end what waits for it on a GPU."""

        def until_it_ends() -> None:
            self.process.wait()
            self.gone = True
            if not self.closing and isinstance(group, NcclGroup):
                group.abort()

        threading.Thread(target=until_it_ends, daemon=True).start()

    def tell(self, length: int) -> None:
        """Say that a message of that many bytes is there."""
        try:
            self.control.send(length)
        except OSError:
            raise DeviceError(f"{self.name} has ended") from None

    def expect(self, kind: str) -> Any:
        """Its next answer, which is to be of that kind."""
        try:
            answered, value = self.control.recv()
        except (EOFError, OSError):
            raise CardFailedError(self.how_it_ended()) from None
        if answered == kind:
            return value
        raise CardFailedError(f"{self.name} failed: {value}")

    def how_it_ended(self) -> str:
        """In words."""
        try:
            code = self.process.wait(NOTICE)
        except subprocess.TimeoutExpired:
            return f"{self.name} does not answer"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{self.name} {how}"


def _end(others: Sequence[_Other], life: int, links: Sequence[Connection]) -> None:
    """End processes: closed connections tell them to."""
    for other in others:
        other.closing = True
    os.close(life)
    for link in links:
        link.close()
    for other in others:
        other.control.close()
    for other in others:
        with contextlib.suppress(subprocess.TimeoutExpired):
            other.process.wait(GRACE)
            continue
        other.process.kill()
        other.process.wait()
