"""JSONScanner: where a JSON object or array ends; and what is no JSON."""

from __future__ import annotations

import json
import re

_STRUCTURE = re.compile(r'["\\{}\[\]\x00-\x1f]')


class JSONScanner:
    r"""Finds the end of a JSON object or array in text that comes in pieces, by its brackets outside of strings.

    Args:
        depth: how many brackets have been opened before.

    >>> scanner = JSONScanner()
    >>> scanner.end('{"a": "}\\')
    >>> scanner.end('"}"} b')
    4
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth, self._in_string, self._escaped = depth, False, False

    def end(self, piece: str) -> int | None:
        """The index past the value's end in the next piece of text; None if more is needed."""
        return self.copy(piece)[1]

    def copy(self, piece: str) -> tuple[str, int | None]:
        r"""The next piece as valid JSON writes it, and `end` of it: models write line ends into strings.

        >>> JSONScanner().copy('{"a": "b\n"} c')
        ('{"a": "b\\n"}', 11)
        """
        at, start = int(self._escaped and bool(piece)), 0
        self._escaped = self._escaped and not piece
        copied = []
        while found := _STRUCTURE.search(piece, at):
            at, mark = found.end(), found[0]
            if mark == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                if mark == "\\":
                    self._escaped, at = at == len(piece), at + 1
                elif mark < " ":
                    copied += [piece[start : at - 1], json.dumps(mark)[1:-1]]
                    start = at
            elif mark in "{[":
                self._depth += 1
            elif mark in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return "".join([*copied, piece[start:at]]), at
        return "".join([*copied, piece[start:]]), None


def refuse_constant(name: str) -> None:
    """For json.loads: Python's NaN and infinities are no JSON."""
    raise ValueError(f"{name} is not JSON")
