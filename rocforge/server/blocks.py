"""Blocks: a reply as reasoning, text and calls, one after another, as Responses and Messages give it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator

from rocforge.engine.response import GenerationResponse
from rocforge.server.errors import APIError, as_api_error
from rocforge.server.jobs import Job, merged
from rocforge.text.chat.reply import CountedParser, Parsed


class Blocks(ABC):
    """Cuts a reply into blocks; subclasses write their events.

    Args:
        parser: of the reply.
        parallel: whether calls after the first are given.

    Attributes:
        calls: how many have been given.
        cut: whether the reply has ended before it was complete.
    """

    def __init__(self, parser: CountedParser, parallel: bool):
        self.parser, self._parallel = parser, parallel
        self.calls, self.cut = 0, False
        self._kind: str | None = None

    @abstractmethod
    def start(self) -> bytes:
        """The first events."""

    @abstractmethod
    def finish(self) -> bytes:
        """The last events of a reply that has ended."""

    @abstractmethod
    def fail(self, error: APIError) -> bytes:
        """The last events of a reply that has failed, or was cancelled."""

    @abstractmethod
    def begin(self, kind: str, name: str) -> Iterator[bytes]:
        """A block begins: "reasoning", "text" or "call", of which the name is that of the function."""

    @abstractmethod
    def extend(self, kind: str, text: str, piece: GenerationResponse | None) -> Iterator[bytes]:
        """More of the block, of a call more of the arguments; with the piece that it is of, if it is of one."""

    @abstractmethod
    def end(self, kind: str) -> Iterator[bytes]:
        """The block is complete."""

    def add(self, piece: GenerationResponse) -> Iterator[bytes]:
        """The events of the next piece of the reply, of the last one with those of the reply's end."""
        yield from self._write(self.parser.add(piece.text), piece)
        if piece.finish_reason:
            self.cut = piece.finish_reason == "length"
            yield from self._write(self.parser.finish(), None)
            yield from self.close()

    async def events(self, job: Job) -> AsyncIterator[bytes]:
        """The events of a stream, as many as there are at a time."""
        try:
            yield self.start()
            async for part in self.write(job):
                yield part
            yield self.finish()
        except Exception as error:
            yield self.fail(as_api_error(error))

    async def write(self, job: Job) -> AsyncIterator[bytes]:
        """The events of the reply of a job, as many as there are at a time."""
        async for _, pieces in merged(job):
            if events := b"".join(event for piece in pieces for event in self.add(piece)):
                yield events

    def close(self) -> Iterator[bytes]:
        """End the block that is open, if one is."""
        if self._kind:
            kind, self._kind = self._kind, None
            yield from self.end(kind)

    def _write(self, part: Parsed, piece: GenerationResponse | None) -> Iterator[bytes]:
        for kind, text in (("reasoning", part.reasoning), ("text", part.content)):
            if text:
                if self._kind != kind:
                    yield from self._open(kind)
                yield from self.extend(kind, text, piece)
        for call in part.calls:
            if call.name and self.calls and not self._parallel:
                yield from self.close()
            elif call.name:
                self.calls += 1
                yield from self._open("call", call.name)
            if self._kind == "call" and call.arguments:
                yield from self.extend("call", call.arguments, piece)

    def _open(self, kind: str, name: str = "") -> Iterator[bytes]:
        yield from self.close()
        self._kind = kind
        yield from self.begin(kind, name)
