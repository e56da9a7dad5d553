"""ThoughtParser: the reasoning that a reply begins with."""

from __future__ import annotations

from rocforge.text.chat.reply import Parsed, Parser, joined
from rocforge.text.stream import overlap

BEGIN, END = "<think>", "</think>"


class ThoughtParser:
    """Takes the text between <think> and </think> at the beginning of a reply for reasoning, whatever it holds.

    White space beside the marks belongs to neither text.

    Args:
        rest: the parser of what follows.
        opened: whether the prompt has begun the thought.
    """

    def __init__(self, rest: Parser, opened: bool):
        self._rest, self._buffer, self._thought = rest, "", False
        self._state = self._inside if opened else self._before

    def add(self, text: str) -> Parsed:
        self._buffer += text
        parts: list[Parsed] = []
        state = None
        while state != self._state:
            state = self._state
            parts.append(state())
        return joined(parts)

    def finish(self) -> Parsed:
        if self._state == self._inside:
            return joined([self._reasoning(self._buffer.rstrip()), self._rest.finish()])
        text = "" if self._state == self._after else self._buffer
        return joined([self._rest.add(text), self._rest.finish()])

    def _before(self) -> Parsed:
        text = self._buffer.lstrip()
        if text.startswith(BEGIN):
            self._buffer, self._state = text[len(BEGIN) :], self._inside
        elif not BEGIN.startswith(text):
            self._state = self._through
        return Parsed()

    def _inside(self) -> Parsed:
        before, found, after = self._buffer.partition(END)
        if found:
            self._buffer, self._state = after, self._after
            return self._reasoning(before.rstrip())
        text = before[: len(before) - overlap(before, END)].rstrip()
        self._buffer = before[len(text) :]
        return self._reasoning(text)

    def _reasoning(self, text: str) -> Parsed:
        text = text if self._thought else text.lstrip()
        self._thought = self._thought or bool(text)
        return Parsed(reasoning=text)

    def _after(self) -> Parsed:
        self._buffer = self._buffer.lstrip()
        if self._buffer:
            self._state = self._through
        return Parsed()

    def _through(self) -> Parsed:
        text, self._buffer = self._buffer, ""
        return self._rest.add(text)
