"""Finding special tokens in text before it is tokenized."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping


class SpecialTokens:
    """Splits text at special tokens: the longest of them first, wherever it occurs, then the next, as llama.cpp does.

    `ids` maps the tokens' texts to their ids. `rstrip` holds the ids of those that swallow the white space after them.
    """

    def __init__(self, ids: Mapping[str, int], rstrip: Iterable[int] = ()):
        self._ids = ids
        self._rstrip = frozenset(rstrip)
        self._lengths: dict[str, list[int]] = {}
        for prefix, length in sorted({(text[:2], len(text)) for text in ids}):
            self._lengths.setdefault(prefix, []).append(length)
        self._prefix = re.compile("|".join(re.escape(prefix) for prefix in sorted(self._lengths, reverse=True)))

    def split(self, text: str) -> list[str | int]:
        """The parts of `text` in order: a str for what is still text (never empty), an id for a special token."""
        parts: list[str | int] = [text] if text else []
        # Python's sort is stable, so tokens of one length are tried in the order of their ids.
        for token in sorted(self._present(text), key=lambda t: (-len(t.encode(errors="surrogatepass")), self._ids[t])):
            parts = [piece for part in parts for piece in self._split_at(token, part)]
        return parts

    def _present(self, text: str) -> set[str]:
        """The special tokens that occur in `text` (found by two characters, since there may be thousands)."""
        present: set[str] = set()
        if not self._ids:
            return present
        match = self._prefix.search(text)
        while match:
            start = match.start()
            for prefix in (text[start : start + 1], text[start : start + 2]):
                for length in self._lengths.get(prefix, ()):
                    candidate = text[start : start + length]
                    if candidate in self._ids:
                        present.add(candidate)
            match = self._prefix.search(text, start + 1)
        return present

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
            if id in self._rstrip:
                other = other.lstrip(" \t\n\v\f\r")
            if other:
                yield other
