"""ThoughtParser: the reasoning that a reply begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rocforge.text.chat.reply import Parsed, Parser, joined
from rocforge.text.stream import overlap


class ThoughtMarks(NamedTuple):
    """What a thought is between."""

    begin: str
    end: str
    forced: Sequence[str] = ()
    """What follows a thought that is too long, in turn; none: the end."""
    again: bool = False
    """Whether there may be thoughts after the first."""

    def shown_in(self, template: str) -> bool:
        """Whether a chat template knows them."""
        return self.begin in template or self.end in template


THINK = ThoughtMarks("<think>", "</think>")
THOUGHTS = (
    ThoughtMarks("<seed:think>", "</seed:think>"),
    ThoughtMarks("[THINK]", "[/THINK]"),
    ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>"),
    ThoughtMarks("<|channel>thought", "<channel|>"),
    THINK,
)
"""Of Seed, Mistral, Command, Gemma 4, and of Qwen, DeepSeek, GLM and most others."""


class ThoughtParser:
    """Takes the text between two marks at the beginning of a reply for reasoning, whatever it holds.

    White space beside the marks belongs to neither text.

    Args:
        rest: the parser of what follows.
        marks: of thoughts.
        opened: whether the prompt has begun the thought.
    """

    def __init__(self, rest: Parser, marks: ThoughtMarks, opened: bool):
        self._rest, self._marks, self._buffer, self._thought = rest, marks, "", False
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
        text, mark = self._buffer.lstrip(), self._marks.begin
        if text.startswith(mark):
            self._buffer, self._state = text[len(mark) :], self._inside
        elif not mark.startswith(text):
            self._state = self._through
        return Parsed()

    def _inside(self) -> Parsed:
        before, found, after = self._buffer.partition(self._marks.end)
        if found:
            self._buffer, self._state = after, self._after
            return self._reasoning(before.rstrip())
        text = before[: len(before) - overlap(before, self._marks.end)].rstrip()
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
