"""What a reply says: content, reasoning and calls, of which parsers find each in a model's text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from rocforge.text.grammar import GrammarCompiler
from rocforge.text.stream import overlap

Functions: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Name -> a function in OpenAI's shape, that a reply may call."""


@dataclass(frozen=True)
class Call:
    """A function to call, or a part of that.

    Attributes:
        name: the function; "" for more of the arguments of the call before.
        arguments: JSON text, which the parts of a call make together. It is cut off where the reply is.
    """

    name: str
    arguments: str = ""

    def as_dict(self) -> dict[str, Any]:
        """In OpenAI's shape; the id has nine letters and digits, on which Mistral's template insists."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": secrets.token_hex(5)[:9], "type": "function", "function": function}


@dataclass(frozen=True)
class Parsed:
    """A parsed piece of a reply: content, reasoning, and calls or parts of them."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


class Parser(Protocol):
    """Splits a reply's text; text that may begin a call is buffered until that is clear.

    What comes out is the same however the text is cut into pieces. Text that is neither a call nor a mark comes out as
    content or reasoning. A call comes out once it is clear which function it is to, and its arguments as they are
    written.
    """

    def add(self, text: str) -> Parsed:
        """What this text makes final."""

    def finish(self) -> Parsed:
        """What is still buffered; no text follows."""


class CallFormat(Protocol):
    """How a family writes calls."""

    def parser(self, functions: Functions) -> Parser:
        """For a reply that may call these functions."""

    def lark(self, compiler: GrammarCompiler, tools: Sequence[Mapping[str, Any]], parallel: bool) -> str:
        """Rules for `calls`, a call of one of these tools, functions in OpenAI's shape; several where the format is a
        list and they may be `parallel`."""


class CountedParser:
    """A parser that is given a reply token by token.

    Args:
        parser: the reply's.

    Attributes:
        reasoning_tokens: how many tokens of the reasoning there have been, with its marks.
    """

    def __init__(self, parser: Parser):
        self._parser = parser
        self.reasoning_tokens = 0
        self._unclear = 0  # tokens of which it is not yet known what they say

    def add(self, text: str) -> Parsed:
        """What the text of the next token makes final."""
        part = self._parser.add(text)
        self._unclear += 1
        if part.reasoning:
            self.reasoning_tokens += self._unclear
        if part.reasoning or part.content or part.calls:
            self._unclear = 0
        return part

    def finish(self) -> Parsed:
        """What is still buffered; no token follows."""
        return self._parser.finish()


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

    def call(self, name: str, arguments: str = "") -> None:
        """A call begins."""
        self._parts.append(Parsed(calls=(Call(name, arguments),)))
        self._space, self._waits, self._called = "", True, True

    def arguments(self, text: str) -> None:
        """More of the arguments of the last call."""
        if text:
            self._parts.append(Parsed(calls=(Call("", text),)))

    def string(self, text: str) -> None:
        """More of a string in them, without its quotes."""
        self.arguments(json.dumps(text, ensure_ascii=False)[1:-1])

    def member(self, key: str, first: bool) -> None:
        """A member of the arguments begins."""
        self.arguments(f"{'' if first else ', '}{json.dumps(key, ensure_ascii=False)}: ")

    def cut_member(self, key: str, first: bool) -> None:
        """The reply ends within the name of a member."""
        if key:
            self.arguments(f"{'' if first else ', '}{json.dumps(key, ensure_ascii=False)[:-1]}")

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
        self._held = ""  # what has been taken of the buffer and is content, if no call comes of it

    def add(self, text: str) -> Parsed:
        self._buffer += text
        while self._state():
            pass
        return self._output.take()

    def _until(self, marks: Sequence[str], then: Callable[[], bool]) -> bool:
        """Content up to one of some marks, which is held while `then` looks at what follows it."""
        found = [(index, mark) for mark in marks if (index := self._buffer.find(mark)) >= 0]
        if found:
            index, self._held = min(found, key=lambda entry: (entry[0], -len(entry[1])))
            self._output.content(self._buffer[:index])
            self._buffer, self._state = self._buffer[index + len(self._held) :], then
            return True
        self._output.content(self._take(len(self._buffer) - overlap(self._buffer, *marks)))
        return False

    def _give_back(self, state: Callable[[], bool]) -> bool:
        """What is held begins no call: it is content."""
        self._output.content(self._held)
        self._held, self._state = "", state
        return True

    def _past(self, mark: str, state: Callable[[], bool]) -> bool:
        """Go on after the mark that ends calls, and the white space before it; models leave it out, too."""
        text = self._buffer.lstrip()
        found = begins(text, [mark] if mark else [])
        if not text or found is None:
            return False
        self._buffer = text[len(found) :] if found else self._buffer
        self._state = state
        return True

    def _hold(self, size: int) -> None:
        """Take so many characters of the buffer, and hold them."""
        self._held += self._take(size)

    def _take(self, end: int | None) -> str:
        """The buffer up to there, which leaves it; None: all of it."""
        text = self._buffer[:end]
        self._buffer = self._buffer[len(text) :]
        return text

    def _call(self, name: str, state: Callable[[], bool]) -> bool:
        """What is held begins a call."""
        self._output.call(name)
        self._held, self._state = "", state
        return True


def begins(text: str, marks: Sequence[str]) -> str | None:
    """The mark that a text begins with; "" for none, None where more text may make it one.

    >>> begins("</a> b", ["</a>", "</b>"]), begins("</", ["</a>"]), begins("a", ["</a>"])
    ('</a>', None, '')
    """
    found = max((mark for mark in marks if text.startswith(mark)), key=len, default="")
    return None if any(len(mark) > len(text) and mark.startswith(text) for mark in marks) else found


def joined(parts: Iterable[Parsed]) -> Parsed:
    """Pieces of a reply as one, with the parts of each call together."""
    parts = list(parts)
    calls: list[tuple[str, list[str]]] = []
    for call in (call for part in parts for call in part.calls):
        if call.name or not calls:
            calls.append((call.name, []))
        calls[-1][1].append(call.arguments)
    return Parsed(
        "".join(part.content for part in parts),
        "".join(part.reasoning for part in parts),
        tuple(Call(name, "".join(arguments)) for name, arguments in calls),
    )
