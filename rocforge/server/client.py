"""EngineClient: the backend of a front end, whose engine runs in another process."""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import anyio
import numpy as np

from rocforge.engine.replies import Observer, Replies
from rocforge.engine.reply import CancelledError, EngineDeadError, Progress, Reply, ServiceError
from rocforge.engine.service import State
from rocforge.ops.sampling import SamplingParams
from rocforge.server import wire
from rocforge.server.backend import Answer
from rocforge.server.grammars import GrammarSource
from rocforge.text.tokenizer import Tokenizer

ASKING = 1.0
"""Seconds that the others have for an answer."""
_DEAD = "the engine's process has ended"


class EngineClient:
    """Submits requests to the engine's process, and writes their tokens as text.

    Where that process ends, each reply in progress fails with EngineDeadError.

    Args:
        address: of the unix socket of the engine's process.
        observer: as in Replies.
        restarts: whether another one takes its place when it ends.
        on_ready: called when the model is loaded, each time.

    Attributes: state, tokenizer, limit, pooling: as in Backend.
    """

    def __init__(self, address: bytes, observer: Observer | None, restarts: bool, on_ready: Callable[[], None]):
        self.state, self.tokenizer, self.limit, self.pooling = State.NEW, None, 0, ""
        self._address, self._restarts, self._on_ready = address, restarts, on_ready
        self._replies, self._device = Replies(observer), "cpu"
        self._transport: asyncio.WriteTransport | None = None
        self._tickets = itertools.count()
        self._submitted: dict[int, asyncio.Future[Any]] = {}
        self._asked: dict[int, asyncio.Queue[Any]] = {}
        self._answer: Answer = lambda question, argument: None
        self._messages: dict[str, Callable[..., None]] = {
            "ready": self._ready,
            "accepted": self._accepted,
            "embedded": self._embedded,
            "refused": self._refused,
            "tokens": self._tokens,
            "ask": self._asked_by,
            "asked": self._note_answer,
            "answer": self._note_answer,
        }

    state: State
    tokenizer: Tokenizer | None

    async def start(self) -> None:
        """Connect. The engine answers once its model is loaded."""
        self.state = State.STARTING
        await self._connect()

    async def _connect(self) -> None:
        """The socket is there while the server runs, whether the engine's process is or not."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self._address)
        except OSError:  # the server ends
            connection.close()
            return
        await asyncio.get_running_loop().create_unix_connection(lambda: _Connection(self), sock=connection)

    def connected(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport

    def close(self) -> None:
        """Leave the engine's process and forget its model; `start` begins anew."""
        if self._transport is not None:
            self._transport.close()
            self._fail_all()
        self.state, self.tokenizer, self.limit = State.NEW, None, 0

    def received(self, name: str, *arguments: Any) -> None:
        self._messages[name](*arguments)

    def disconnected(self, transport: asyncio.BaseTransport | None) -> None:
        """The engine's process has ended, or this one stops."""
        if transport is not self._transport:
            return  # closed before
        self._fail_all()
        if self.state in (State.STARTING, State.READY):
            self.state = State.STARTING if self._restarts else State.FAILED
            if self._restarts:
                self._reconnecting = asyncio.ensure_future(self._connect())

    def _fail_all(self) -> None:
        self._transport = None
        error = EngineDeadError(_DEAD)
        for accepted in self._submitted.values():
            if not accepted.done():
                accepted.set_exception(error)
        for reply in self._replies:
            self._replies.end(reply, Progress.FAILED, EngineDeadError(_DEAD))

    def _send(self, *message: Any) -> None:
        if self._transport is not None:
            self._transport.write(wire.pack(*message))

    def _ready(self, tokenizer: bytes, limit: int, device: str, pooling: str) -> None:
        """Make the tokenizer, for which a large vocabulary takes a second, beside the event loop."""

        def done(made: asyncio.Future[Tokenizer]) -> None:
            if self.state is State.NEW:
                return  # closed meanwhile
            self.tokenizer, self.limit, self._device = made.result(), limit, device
            self.pooling = pooling
            gc.collect()
            gc.freeze()  # a vocabulary takes a collection long enough to be felt between two tokens
            if self.state is State.STARTING:
                self.state = State.READY
                self._on_ready()

        making = asyncio.get_running_loop().run_in_executor(None, wire.unpack_tokenizer, tokenizer)
        making.add_done_callback(done)

    async def submit(
        self,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        grammar: GrammarSource | None,
        timeout: float,
    ) -> list[Reply]:
        if self.state is not State.READY or self.tokenizer is None:
            raise ServiceError(f"the engine is {self.state.value}")
        replies = [Reply(prompt, one, None, timeout, self._cancel) for prompt in prompts for one in params]
        for reply in replies:
            reply.begin(self.tokenizer, self._device)
            self._replies.add(reply)
        ticket, accepted = next(self._tickets), asyncio.get_running_loop().create_future()
        self._submitted[ticket] = accepted
        keys = [reply.key for reply in replies]
        self._send(
            "submit", ticket, keys, prompts, wire.pack_params(params), wire.pack_grammar(grammar), timeout,
            time.monotonic(),
        )  # fmt: skip
        try:
            await accepted
        except BaseException:
            self._send("cancel", keys)
            for reply in replies:
                self._replies.discard(reply)
            raise
        finally:
            self._submitted.pop(ticket, None)
        return replies

    async def embed(self, prompts: Sequence[list[int]], lora: str | None) -> np.ndarray:
        vectors = await self._embed(prompts, lora, None)
        return vectors.reshape(len(prompts), -1)

    async def score(self, prompts: Sequence[list[int]], top: int, lora: str | None) -> np.ndarray:
        scores = await self._embed(prompts, lora, top)
        return scores.reshape(-1, 1 + 2 * top)

    async def _embed(self, prompts: Sequence[list[int]], lora: str | None, top: int | None) -> np.ndarray:
        """The values, one after another."""
        if self.state is not State.READY:
            raise ServiceError(f"the engine is {self.state.value}")
        ticket, embedded = next(self._tickets), asyncio.get_running_loop().create_future()
        self._submitted[ticket] = embedded
        self._send("embed", ticket, prompts, lora, top)
        try:
            return np.frombuffer(await embedded, np.float32)
        except BaseException:
            self._send("forget", ticket)
            raise
        finally:
            self._submitted.pop(ticket, None)

    def _waiting(self, ticket: int) -> asyncio.Future[Any] | None:
        """What a ticket's answer is for; None where whoever wanted it has given up meanwhile."""
        waiting = self._submitted.pop(ticket, None)
        return None if waiting is None or waiting.done() else waiting

    def _embedded(self, ticket: int, vectors: bytes) -> None:
        if embedded := self._waiting(ticket):
            embedded.set_result(vectors)

    def _accepted(self, ticket: int, keys: list[int]) -> None:
        if accepted := self._waiting(ticket):
            accepted.set_result(None)
        else:
            self._send("cancel", keys)

    def _refused(self, ticket: int, error: tuple[str, str]) -> None:
        if refused := self._waiting(ticket):
            refused.set_exception(wire.unpack_error(*error))

    def _tokens(self, memory: int, keys: list[int], tokens: list[int | None], more: dict[int, Any]) -> None:
        if complete := self._replies.write(wire.unpack_events(keys, tokens, more), memory):
            self._send("cancel", complete)

    def _cancel(self, reply: Reply) -> None:
        if not reply.ended:
            self._send("cancel", [reply.key])
            self._replies.end(reply, Progress.CANCELLED, CancelledError("the request was cancelled"))

    async def ask(self, question: str, argument: str = "") -> list[Any]:
        found: list[Any] = []
        if self._transport is None:
            return found
        ticket, answers = next(self._tickets), asyncio.Queue[Any]()
        self._asked[ticket] = answers
        self._send("ask", ticket, question, argument)
        try:
            with anyio.move_on_after(ASKING):  # one that does not answer holds nobody up
                for _ in range(await answers.get()):
                    found.append(await answers.get())
        finally:
            del self._asked[ticket]
        return [answer for answer in found if answer is not None]

    def answer_with(self, answer: Answer) -> None:
        self._answer = answer

    def _asked_by(self, asked: list[int], question: str, argument: str) -> None:
        self._send("answer", asked, self._answer(question, argument))

    def _note_answer(self, ticket: int, answer: Any) -> None:
        if ticket in self._asked:
            self._asked[ticket].put_nowait(answer)

    async def stop(self, drain: float) -> None:
        self.state, until = State.STOPPING, time.monotonic() + drain
        while self._replies and time.monotonic() < until:
            await asyncio.sleep(0.02)
        for reply in self._replies:
            self._send("cancel", [reply.key])
            self._replies.end(reply, Progress.FAILED, ServiceError("the service is stopped"))
        self.state = State.STOPPED


class _Connection(asyncio.Protocol):
    """To the engine's process."""

    def __init__(self, client: EngineClient):
        self._client, self._unpacker = client, wire.unpacker()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._client.connected(cast(asyncio.WriteTransport, transport))

    def data_received(self, data: bytes) -> None:
        self._unpacker.feed(data)
        for name, *arguments in self._unpacker:
            self._client.received(name, *arguments)

    def connection_lost(self, error: Exception | None) -> None:
        self._client.disconnected(self._transport)
