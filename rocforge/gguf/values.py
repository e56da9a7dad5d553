"""Metadata values of GGUF: their types by number, and a dict that remembers them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

BOOL, STRING, ARRAY = 7, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "B", 10: "Q", 11: "q", 12: "d"}
"""Scalar types: number -> character, which is the same in struct and in NumPy."""
SMALLEST_ITEM = {STRING: 8, ARRAY: 12} | {code: struct.calcsize(f"<{char}") for code, char in SCALARS.items()}
"""Bytes of the smallest value of a type."""


class KeyValues(dict[str, Any]):
    """Key-value pairs of a GGUF file, in its order; otherwise a dict like any other.

    Attributes:
        types: key -> GGUF's number for the type of its value, of an array for that of its items. Python has one int and
            one float, GGUF ten and two; a file that is written from this has those that the file had that was read.
    """

    def __init__(
        self,
        pairs: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        types: Mapping[str, int] = MappingProxyType({}),
    ):
        super().__init__(pairs)
        self.types = dict(types)

    def copy(self) -> KeyValues:
        """A copy, whose arrays are the same objects."""
        return KeyValues(self, self.types)
