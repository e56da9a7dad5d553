"""The engine's process: runs the steps, and between two of them reads what front ends want and writes what they get.

One thread does all of it but compiling grammars, which happens in processes of its own and is waited for by others.
A front end whose connection ends has ended: its requests are cancelled.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import selectors
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rocforge.engine.core import EngineCore, Event, StepEngine
from rocforge.engine.reply import QueueFullError, StepError
from rocforge.engine.request import Constraint
from rocforge.ops.sampling import SamplingParams
from rocforge.server import wire
from rocforge.server.grammars import COMPILING, Grammars
from rocforge.server.metrics import Table
from rocforge.text.tokenizer import Tokenizer

log = logging.getLogger("rocforge.server")
_PART = 1 << 20


class Peer:
    """The connection of a front end. Writing never waits: what the other end does not take yet is kept."""

    def __init__(self, connection: socket.socket, number: int):
        connection.setblocking(False)
        self.connection, self.number, self.closed = connection, number, False
        self.keys: dict[int, int] = {}
        self.embeddings: dict[int, Future[np.ndarray]] = {}
        self._unpacker, self._unsent = wire.unpacker(), bytearray()

    def receive(self) -> Iterator[list[Any]]:
        """The messages that have come.

        Raises:
            ConnectionError: the front end has ended.
        """
        with contextlib.suppress(BlockingIOError):
            part = self.connection.recv(_PART)
            if not part:
                raise ConnectionResetError("the front end has ended")
            self._unpacker.feed(part)
        yield from self._unpacker

    def send(self, message: bytes) -> None:
        """Write a message, or keep it for `flush`."""
        self._unsent += message
        self.flush()

    def flush(self) -> None:
        """Write what is kept, as far as it goes. Where the front end has ended, `receive` says so."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sent = self.connection.send(self._unsent)
            del self._unsent[:sent]

    @property
    def behind(self) -> bool:
        """Whether something is kept."""
        return bool(self._unsent)


@dataclass(frozen=True)
class _Job:
    """Texts that were submitted together."""

    peer: Peer
    ticket: int
    keys: list[int]
    prompts: list[list[int]]
    params: list[SamplingParams]
    timeout: float
    submitted: float


class EngineServer:
    """Serves an engine to the front ends that connect.

    Args:
        engine, tokenizer: of one model.
        listener: where front ends connect.
        max_queue: requests that may wait for their first step.
        table: gets the engine's numbers.
    """

    def __init__(self, engine: StepEngine, tokenizer: Tokenizer, listener: socket.socket, max_queue: int, table: Table):
        self._core, self._max_queue, self._table = EngineCore(engine), max_queue, table
        self._ready = wire.pack("ready", wire.pack_tokenizer(tokenizer), engine.limit, engine.device, engine.pooling)
        self._listener, self._selector = listener, selectors.DefaultSelector()
        self._peers: dict[int, Peer] = {}
        self._numbers, self._keys = itertools.count(), itertools.count()
        self._open: dict[int, tuple[Peer, int, Constraint | None]] = {}
        self._grammars, self._compiling = Grammars(tokenizer), ThreadPoolExecutor(COMPILING, "grammars")
        self._compiled: deque[tuple[_Job, Future[Sequence[Constraint]]]] = deque()
        self._wake, woken = socket.socketpair()
        woken.setblocking(False)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._connect)
        self._selector.register(woken, selectors.EVENT_READ, lambda _: self._take_compiled(woken))
        self._messages: dict[str, Callable[..., None]] = {
            "submit": self._submit,
            "cancel": self._cancel,
            "embed": self._embed,
            "forget": self._forget,
            "ask": self._ask,
            "answer": self._answer,
        }

    def run(self) -> None:
        """Serve until the process ends.

        Raises:
            Exception: steps of the engine failed again and again.
        """
        while True:
            self._poll(wait=not self._core.busy)
            if self._core.busy:
                self._hand_out(self._core.step())
            self._table.note_engine(self._core.engine.waiting, len(self._open), self._core.engine.cache_blocks)

    def _poll(self, wait: bool) -> None:
        for key, events in self._selector.select(None if wait else 0):
            key.data(events)

    def _connect(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _address = self._listener.accept()
            if not _is_sibling(connection):
                connection.close()
                return
            peer = Peer(connection, next(self._numbers))
            self._peers[peer.number] = peer
            self._selector.register(connection, selectors.EVENT_READ, lambda events: self._serve(peer, events))
            self._send(peer, self._ready)

    def _serve(self, peer: Peer, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._send(peer, b"")
        if events & selectors.EVENT_READ:
            try:
                for name, *arguments in peer.receive():
                    self._messages[name](peer, *arguments)
            except ConnectionError:
                self._disconnect(peer)

    def _disconnect(self, peer: Peer) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        peer.closed = True
        del self._peers[peer.number]
        self._cancel(peer, list(peer.keys))
        for done in list(peer.embeddings.values()):
            done.cancel()

    def _send(self, peer: Peer, message: bytes) -> None:
        """Write, and wait for the peer to take what is left."""
        was_behind = peer.behind
        peer.send(message)
        if peer.behind != was_behind:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.behind else 0)
            entry = self._selector.get_key(peer.connection)
            self._selector.modify(peer.connection, wanted, entry.data)

    def _submit(
        self,
        peer: Peer,
        ticket: int,
        keys: list[int],
        prompts: list[list[int]],
        params: str,
        grammar: str | None,
        timeout: float,
        submitted: float,
    ) -> None:
        job = _Job(peer, ticket, keys, prompts, wire.unpack_params(params), timeout, submitted)
        wanted = wire.unpack_grammar(grammar)
        if wanted is None:
            self._admit(job, [None] * len(keys))
            return
        compiling = self._compiling.submit(self._grammars.compile, wanted, len(keys))
        compiling.add_done_callback(lambda done: self._note_compiled(job, done))

    def _note_compiled(self, job: _Job, done: Future[Sequence[Constraint]]) -> None:
        self._compiled.append((job, done))
        self._wake.send(b"\0")

    def _take_compiled(self, woken: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            woken.recv(_PART)
        while self._compiled:
            job, done = self._compiled.popleft()
            if (error := done.exception()) is not None:
                self._refuse(job.peer, job.ticket, error)
            elif job.peer.closed:
                for constraint in done.result():
                    constraint.close()
            else:
                self._admit(job, done.result())

    def _admit(self, job: _Job, constraints: Sequence[Constraint | None]) -> None:
        """Queue all of a job's texts, or none."""
        pairs = [(prompt, params) for prompt in job.prompts for params in job.params]
        added: list[int] = []
        try:
            waiting = self._core.engine.waiting
            if waiting + len(pairs) > self._max_queue:
                raise QueueFullError(f"the queue is full: {waiting} requests wait, the limit is {self._max_queue}")
            for key, (prompt, params), constraint in zip(job.keys, pairs, constraints, strict=True):
                number = next(self._keys)
                self._core.add(number, prompt, params, constraint, job.timeout, job.submitted)
                self._open[number], job.peer.keys[key] = (job.peer, key, constraint), number
                added.append(key)
        except Exception as error:
            self._cancel(job.peer, added)
            for constraint in constraints:
                if constraint is not None:
                    constraint.close()
            self._refuse(job.peer, job.ticket, error)
        else:
            self._send(job.peer, wire.pack("accepted", job.ticket, job.keys))

    def _refuse(self, peer: Peer, ticket: int, error: BaseException) -> None:
        if not peer.closed:
            self._send(peer, wire.pack("refused", ticket, wire.pack_error(error)))

    def _embed(self, peer: Peer, ticket: int, prompts: list[list[int]], lora: str | None, top: int | None) -> None:
        done = peer.embeddings[ticket] = Future[np.ndarray]()
        done.add_done_callback(lambda done: self._note_embedded(peer, ticket, done))
        try:
            waiting = sum(len(peer.embeddings) for peer in self._peers.values())
            if waiting > self._max_queue:
                raise QueueFullError(f"the queue is full: {waiting - 1} embeddings wait")
            self._core.embed(prompts, lora, top, done)
        except Exception as error:
            done.set_exception(error)

    def _note_embedded(self, peer: Peer, ticket: int, done: Future[np.ndarray]) -> None:
        del peer.embeddings[ticket]
        if done.cancelled() or peer.closed:
            return
        error = done.exception()
        if error is None:
            self._send(peer, wire.pack("embedded", ticket, done.result().tobytes()))
        else:
            self._refuse(peer, ticket, error)

    def _forget(self, peer: Peer, ticket: int) -> None:
        if ticket in peer.embeddings:
            peer.embeddings[ticket].cancel()

    def _cancel(self, peer: Peer, keys: Sequence[int]) -> None:
        for key in keys:
            if (number := peer.keys.get(key)) is not None:
                self._core.cancel(number)
                self._close(number)

    def _close(self, number: int) -> None:
        peer, key, constraint = self._open.pop(number)
        del peer.keys[key]
        if constraint is not None:
            constraint.close()

    def _ask(self, peer: Peer, ticket: int, question: str, argument: str) -> None:
        """Pass a question on to all others."""
        others = [other for other in self._peers.values() if other is not peer]
        self._send(peer, wire.pack("asked", ticket, len(others)))
        for other in others:
            self._send(other, wire.pack("ask", (peer.number, ticket), question, argument))

    def _answer(self, peer: Peer, asked: list[int], answer: Any) -> None:
        number, ticket = asked
        if number in self._peers:
            self._send(self._peers[number], wire.pack("answer", ticket, answer))

    def _hand_out(self, events: list[Event]) -> None:
        """A message for each front end that has something to get."""
        memory = self._core.engine.memory_reserved
        found: dict[Peer, list[tuple[int, Event]]] = {}
        for event in events:
            peer, key, _ = self._open[event.key]
            found.setdefault(peer, []).append((key, event))
            if isinstance(event.error, StepError):
                log.error("a step failed", exc_info=event.error)
            if event.finish_reason or event.error:
                self._close(event.key)
        for peer, theirs in found.items():
            self._send(peer, wire.pack_events(memory, theirs))


def _is_sibling(connection: socket.socket) -> bool:
    """Whether the other end is a process of the same supervisor: any on this machine could connect."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, _user, _group = struct.unpack("3i", credentials)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return int(stat.rpartition(")")[2].split()[1]) == os.getppid()
