"""What a reply says: content, reasoning and calls, of which parsers find each in a model's text."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Call:
    """A function to call; `arguments` is JSON text."""

    name: str
    arguments: str

    def as_dict(self) -> dict[str, Any]:
        """In OpenAI's shape; the id has nine letters and digits, on which Mistral's template insists."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": secrets.token_hex(5)[:9], "type": "function", "function": function}


@dataclass(frozen=True)
class Parsed:
    """A parsed piece of a reply: content, reasoning, and complete calls."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


class Parser(Protocol):
    """Splits a reply's text; text that may begin a call is buffered until that is clear.

    What comes out is the same however the text is cut into pieces. Text that is neither a call nor a mark comes out as
    content or reasoning.
    """

    def add(self, text: str) -> Parsed:
        """What this text makes final."""

    def finish(self) -> Parsed:
        """What is still buffered; no text follows."""


class PlainParser:
    """For replies without calls: all is content."""

    def add(self, text: str) -> Parsed:
        return Parsed(text)

    def finish(self) -> Parsed:
        return Parsed()


class Output:
    """Collects what a parser makes final. White space before a call is no content: it waits for what follows."""

    def __init__(self) -> None:
        self._parts: list[Parsed] = []
        self._space, self._waits, self._called = "", True, False

    def content(self, text: str) -> None:
        if self._waits:
            text = self._space + text
            self._waits = not text.strip()
            self._space, text = (text, "") if self._waits else ("", text)
        self._parts.append(Parsed(text))

    def reasoning(self, text: str) -> None:
        self._parts.append(Parsed(reasoning=text))

    def calls(self, calls: tuple[Call, ...]) -> None:
        self._parts.append(Parsed(calls=calls))
        self._space, self._waits, self._called = "", True, True

    def take(self) -> Parsed:
        """What has been collected since the last time."""
        parts, self._parts = self._parts, []
        return joined(parts)

    def finish(self) -> Parsed:
        """The same at the end of the reply: white space is content where nothing else is."""
        if self._waits and not self._called:
            self._parts.append(Parsed(self._space))
        return self.take()


class StateParser:
    """A parser that knows where in a reply it is: a state takes what it can of the buffer.

    Args:
        state: the first one. It returns whether the next may go on at once; else more text has to come.
    """

    def __init__(self, state: Callable[[], bool]):
        self._output, self._buffer, self._state = Output(), "", state

    def add(self, text: str) -> Parsed:
        self._buffer += text
        while self._state():
            pass
        return self._output.take()


def joined(parts: Iterable[Parsed]) -> Parsed:
    """Pieces of a reply as one."""
    parts = list(parts)
    return Parsed(
        "".join(part.content for part in parts),
        "".join(part.reasoning for part in parts),
        tuple(call for part in parts for call in part.calls),
    )
