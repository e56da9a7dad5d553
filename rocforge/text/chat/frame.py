"""FrameParser: the marks that some models write around what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rocforge.text.chat.reply import Parsed, Parser
from rocforge.text.stream import overlap

FRAMES = (("<|START_RESPONSE|>", "<|END_RESPONSE|>"), ("<|START_TEXT|>", "<|END_TEXT|>"))
"""Of the models of Cohere."""


class FrameParser:
    """Takes marks out of content.

    Args:
        rest: the parser of the reply.
        marks: what is none of the content.
    """

    def __init__(self, rest: Parser, marks: Sequence[str]):
        self._rest, self._marks, self._buffer = rest, marks, ""

    def add(self, text: str) -> Parsed:
        parsed = self._rest.add(text)
        content = self._without(self._buffer + parsed.content)
        size = overlap(content, *self._marks)
        self._buffer = content[len(content) - size :]
        return replace(parsed, content=content[: len(content) - size])

    def finish(self) -> Parsed:
        parsed = self._rest.finish()
        return replace(parsed, content=self._without(self._buffer + parsed.content))

    def _without(self, text: str) -> str:
        for mark in self._marks:
            text = text.replace(mark, "")
        return text
