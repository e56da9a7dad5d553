"""Cards: the processes of a model that several cards compute together, as the process of the first one sees them.

This process is rank 0's: it schedules, samples, and says to each of the others what to run, over a link. They do the
same with their parts of the model (rocforge.card), and meet this one in the collectives. An error in one of them, or
its end, ends all; the others end with this process, however that ends, since their links to it then close.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from rocforge.device.distributed import HostGroup, NcclGroup
from rocforge.device.links import hang_up, wait_until_gone
from rocforge.device.streams import Stream
from rocforge.errors import CardFailedError, DeviceError
from rocforge.nn.cache import KVCache
from rocforge.nn.module import Module
from rocforge.nn.tree import Snapshot

CacheTypes = tuple[str | None, str | None]
StepSizes = tuple[int, int, int] | None

GRACE = 5.0
"""Seconds that processes have to end by themselves."""
NOTICE = 2.0
"""Seconds in which a card's error comes after its collectives have failed."""


@dataclass(frozen=True)
class CardJob:
    """What a card's process is to do.

    Attributes:
        path: of the model, on its machine.
        devices: of all cards, "cpu" or "gpu:N".
        hosts: the addresses of their machines; none where all are on this one.
        loading: further arguments of loading.
        fingerprint: of the model's files.
        rank: of this card.
        key: that all of them know.
    """

    path: str
    devices: tuple[str, ...]
    hosts: tuple[str, ...]
    loading: dict[str, Any]
    fingerprint: str
    rank: int = 0
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def device(self) -> str:
        """Of this card."""
        return self.devices[self.rank]

    def group(self) -> HostGroup | NcclGroup:
        """The group, not connected yet."""
        if self.device == "cpu":
            return HostGroup(self.rank, self.devices, self.hosts, self.key)
        return NcclGroup(self.rank, self.devices, self.hosts)


class CardProcess(Protocol):
    """The process of a card, which runs rocforge.card.serve.

    Attributes:
        control: the link to it.
    """

    control: Connection

    def how_it_ended(self, seconds: float) -> str | None:
        """In words, once it has ended; None where it has not in that time."""

    def kill(self) -> None:
        """End it."""


class Machines(Protocol):
    """Where cards are.

    Attributes:
        devices, hosts: as in CardJob.
    """

    devices: tuple[str, ...]
    hosts: tuple[str, ...]

    def start(self, job: CardJob) -> CardProcess:
        """Start the process of a card."""


class Cards:
    """Starts the processes of all cards but the first, which begin to load their parts.

    Args:
        job: of rank 0.
        machines: where they are.

    Attributes:
        group: of all cards.
        cache: the engine's, of which each card has its part; else None.
        snapshot: of the model as it was loaded.
        ended: why the cards no longer compute; None while they do.
    """

    def __init__(self, job: CardJob, machines: Machines):
        self.group = job.group()
        self.cache: KVCache | None = None
        self.snapshot: Snapshot | None = None
        self.ended: str | None = None
        self._others: list[_Other] = []
        self._end = weakref.finalize(self, _end, self._others, self.group)
        for rank in range(1, self.group.size):
            self._others.append(_Other(self.group.name(rank), machines.start(replace(job, rank=rank))))
        for other in self._others:
            other.watch(self.group)

    def connect(self) -> None:
        """Wait until the others have loaded their parts, and meet them in the group."""
        with self.together():
            doors = self._replies()
            meeting: Any = self.group.new_id() if isinstance(self.group, NcclGroup) else doors
            self.post("connect", meeting)
            with Stream(self.group.devices[0]):
                self.group.connect(meeting)

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
        for other in self._others:
            other.tell(data)

    def _replies(self) -> list[Any]:
        return [other.reply() for other in self._others]

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
    """Another card's process."""

    def __init__(self, name: str, process: CardProcess):
        self.name, self.process, self.control = name, process, process.control
        self.gone, self.closing = False, False

    def watch(self, group: HostGroup | NcclGroup) -> None:
        """Note when the process ends, and then end what waits for it on a GPU."""

        def until_it_ends() -> None:
            wait_until_gone(self.control)
            self.gone = True
            if not self.closing and isinstance(group, NcclGroup):
                group.abort()

        threading.Thread(target=until_it_ends, daemon=True).start()

    def tell(self, data: bytes) -> None:
        """Send a pickled message."""
        try:
            self.control.send_bytes(data)
        except OSError:
            raise DeviceError(f"{self.name} has ended") from None

    def reply(self) -> Any:
        """Its next reply."""
        try:
            kind, value = self.control.recv()
        except (EOFError, OSError):
            raise CardFailedError(self.how_it_ended()) from None
        if kind == "failed":
            raise CardFailedError(f"{self.name} failed: {value}")
        return value

    def how_it_ended(self) -> str:
        """In words."""
        return f"{self.name} {self.process.how_it_ended(NOTICE) or 'does not answer'}"


def _end(others: Sequence[_Other], group: HostGroup | NcclGroup) -> None:
    """End processes: closed links tell them to."""
    for other in others:
        other.closing = True
    group.close()
    for other in others:
        hang_up(other.control)
    until = time.monotonic() + GRACE
    for other in others:
        if other.process.how_it_ended(max(0.0, until - time.monotonic())) is None:
            other.process.kill()


class ThisMachine:
    """Several cards of this machine.

    Args:
        devices: as in CardJob.
    """

    hosts: tuple[str, ...] = ()

    def __init__(self, devices: Sequence[str]):
        self.devices = tuple(devices)

    def start(self, job: CardJob) -> CardProcess:
        """As in Machines."""
        return _LocalProcess(job)


class _LocalProcess:
    """A process of a card on this machine."""

    def __init__(self, job: CardJob):
        self.control, theirs = Pipe()
        self.popen = subprocess.Popen(
            [sys.executable, "-c", "from rocforge.card import main; main()", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        theirs.close()
        self.control.send(job)

    def how_it_ended(self, seconds: float) -> str | None:
        """As in CardProcess."""
        try:
            code = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def kill(self) -> None:
        """As in CardProcess."""
        self.popen.kill()
        self.popen.wait()
