"""Finding special tokens in text before it is tokenized."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

Span = tuple[int, int]
"""From the first character to past the last."""
_LONGEST_EDGE = 64
"""Characters of a part of a token that are looked for."""


class SpecialTokens:
    """Splits text at special tokens: the longest of them first, wherever it occurs, then the next, as llama.cpp does.

    `ids` maps the tokens' texts to their ids. `rstrip` holds the ids of those that swallow the white space after them.
    Takes time linear in the text's length, whichever tokens are in it. `texts` are the tokens' texts by id.
    """

    def __init__(self, ids: Mapping[str, int], rstrip: Iterable[int] = ()):
        self._ids = ids
        self.texts = {id: text for text, id in ids.items()}
        self._rstrip = frozenset(rstrip)
        self._lengths: dict[str, list[int]] = {}
        for prefix, length in sorted({(text[:2], len(text)) for text in ids}, reverse=True):
            self._lengths.setdefault(prefix, []).append(length)
        self._prefix = re.compile("|".join(re.escape(prefix) for prefix in self._lengths))

    def split(self, text: str, literal: Sequence[Span] = ()) -> list[str | int]:
        """The parts of `text` in order: a str for what is still text (never empty), an id for a special token.

        No token reaches into the `literal` spans, which come in order and do not overlap.
        """
        parts, at = [], 0
        for start, end in literal:
            parts += [*self._split(text[at:start]), text[start:end]]
            at = end
        return list(_joined([*parts, *self._split(text[at:])]))

    def edges(self, text: str) -> Span:
        """The span of `text` that no token can reach into from outside: what is before it may end a token that begins
        in the preceding text, what is after it may begin one that ends in the following text."""
        sizes = range(min(len(text), _LONGEST_EDGE), 1, -1)
        start = next((n for n in sizes if self._backward.continue_(text[:n][::-1])), 0)
        stop = next((len(text) - n for n in sizes if self._forward.continue_(text[-n:])), len(text))
        return start, max(start, stop)

    @cached_property
    def _forward(self) -> _Sorted:
        return _Sorted(self._ids)

    @cached_property
    def _backward(self) -> _Sorted:
        return _Sorted(text[::-1] for text in self._ids)

    def _split(self, text: str) -> Iterator[str | int]:
        at, strip = 0, False
        for start, end, tokens in self._clusters(text):
            yield self._stripped(text[at:start], strip)
            # Python's sort is stable, so tokens of one length are tried in the order of their ids.
            order = sorted(tokens, key=lambda t: (-len(t.encode(errors="surrogatepass")), self._ids[t]))
            parts: list[str | int] = [text[start:end]]
            for token in order:
                parts = [piece for part in parts for piece in self._split_at(token, part)]
            yield from parts
            at, strip = end, parts[-1] in self._rstrip
        yield self._stripped(text[at:], strip)

    def _clusters(self, text: str) -> Iterator[tuple[int, int, set[str]]]:
        """Spans covered by overlapping special tokens, and which tokens those are.

        The search is for their first two characters, since there may be thousands of tokens.
        """
        begin = end = 0
        tokens: set[str] = set()
        match = self._prefix.search(text) if self._ids else None
        while match:
            start = match.start()
            if token := self._longest_at(text, start):
                if start >= end and tokens:
                    yield begin, end, tokens
                    tokens = set()
                if not tokens:
                    begin = start
                if token not in tokens:
                    tokens.update(token[:size] for size in range(1, len(token) + 1) if token[:size] in self._ids)
                end = max(end, start + len(token))
            match = self._prefix.search(text, start + 1)
        if tokens:
            yield begin, end, tokens

    def _longest_at(self, text: str, start: int) -> str | None:
        """The longest token that begins there; all others that do are prefixes of it."""
        for prefix in (text[start : start + 2], text[start : start + 1]):
            for length in self._lengths.get(prefix, ()):
                if (token := text[start : start + length]) in self._ids:
                    return token
        return None

    def _split_at(self, token: str, part: str | int) -> Iterator[str | int]:
        if isinstance(part, int):
            yield part
            return
        id = self._ids[token]
        first, *others = part.split(token)
        if first:
            yield first
        for other in others:
            yield id
            if other := self._stripped(other, id in self._rstrip):
                yield other

    @staticmethod
    def _stripped(text: str, strip: bool) -> str:
        return text.lstrip(" \t\n\v\f\r") if strip else text


class _Sorted:
    """Sorted texts, for prefix search."""

    def __init__(self, texts: Iterable[str]):
        self._texts = sorted(texts)
        self._first = {text[:1] for text in self._texts}

    def continue_(self, part: str) -> bool:
        """Whether some text is longer than `part` and begins with it."""
        if part[0] not in self._first:
            return False
        at = bisect_right(self._texts, part)
        return at < len(self._texts) and self._texts[at].startswith(part)


def _joined(parts: Iterable[str | int]) -> Iterator[str | int]:
    """The parts with adjacent texts merged and empty ones dropped."""
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if text := "".join(texts):
            yield text
        texts = []
        yield part
    if text := "".join(texts):
        yield text
