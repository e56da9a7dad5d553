"""Marks: special tokens spelled in chat messages stay text through a chat template."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from rocforge.text.special_tokens import Span, SpecialTokens

_SEARCHED = re.compile(
    r"""\b(?:split|rsplit|partition|startswith|endswith|find|replace)\(\s*(['"])([^'"]+)\1"""
    r"""|(['"])([^'"]+)\3\s+(?:not\s+)?in\b"""
)


class Marks:
    """Replaces special tokens by random marks before a chat template runs, and puts them back after.

    Args:
        special: the tokens to hide.
        leading_space: hide the white space that a text begins with too, since tokens before it would swallow it.
    """

    def __init__(self, special: SpecialTokens, leading_space: bool = False):
        self._special, self._leading_space = special, leading_space
        self._texts: list[str] = []
        self._key = secrets.randbits(64)  # digits: a template's upper() or lower() leaves them alone

    def hide(self, value: Any, kept: Collection[str] = ()) -> Any:
        """The same JSON value with marks for the special tokens, but those `kept`, in all its strings; and for parts of
        them where a string begins or ends, which the text beside it could complete."""
        if isinstance(value, str):
            return self._hide_in(without_surrogates(value), kept)
        if isinstance(value, Mapping):
            return {self.hide(key, kept): self.hide(entry, kept) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(entry, kept) for entry in value]
        return value

    def _hide_in(self, text: str, kept: Collection[str]) -> str:
        start, stop = self._special.edges(text)
        if self._leading_space:
            start = max(start, len(text) - len(text.lstrip()))
            stop = max(start, stop)
        pieces = [self._mark(text[:start])]
        for part in self._special.split(text[start:stop]):
            token = part if isinstance(part, str) else self._special.texts[part]
            pieces.append(token if token is part or token in kept else self._mark(token))
        return "".join([*pieces, self._mark(text[stop:])])

    def _mark(self, text: str) -> str:
        if not text:
            return ""
        self._texts.append(text)
        return f"{{{self._key}:{len(self._texts) - 1}}}"

    def show(self, text: str) -> tuple[str, list[Span]]:
        """The text with the tokens put back, and their spans."""
        pieces, spans, size = [], [], 0
        for index, piece in enumerate(re.split(rf"\{{{self._key}:(\d+)\}}", without_surrogates(text))):
            if index % 2:
                piece = self._texts[int(piece)]
                spans.append((size, size + len(piece)))
            pieces.append(piece)
            size += len(piece)
        return "".join(pieces), spans


def searched_texts(template: str) -> frozenset[str]:
    """The texts that a chat template searches for in messages: `'</think>' in content`, `content.split('...')`."""
    return frozenset(first or second for _, first, _, second in _SEARCHED.findall(template))


def without_surrogates(text: str) -> str:
    """The text with pairs of surrogates joined, and lone ones, which no UTF-8 text holds, as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
