"""JSONScanner: where a JSON object or array ends."""

from __future__ import annotations

import re

_STRUCTURE = re.compile(r'["\\{}\[\]]')


class JSONScanner:
    r"""Finds the end of a JSON object or array in text that comes in pieces, by its brackets outside of strings.

    >>> scanner = JSONScanner()
    >>> scanner.end('{"a": "}\\')
    >>> scanner.end('"}"} b')
    4
    """

    def __init__(self) -> None:
        self._depth, self._in_string, self._escaped = 0, False, False

    def end(self, piece: str) -> int | None:
        """The index past the value's end in the next piece of text; None if more is needed."""
        at = int(self._escaped and bool(piece))
        self._escaped = self._escaped and not piece
        while found := _STRUCTURE.search(piece, at):
            at, mark = found.end(), found[0]
            if mark == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                if mark == "\\":
                    self._escaped, at = at == len(piece), at + 1
            elif mark in "{[":
                self._depth += 1
            elif mark in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at
        return None
