"""Metadata: a GGUF file's key-value pairs, checked where they are read."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from rocforge.errors import GGUFError

REQUIRED: Any = object()
"""The default of a key that must be present."""
MOST = (1 << 31) - 1
"""The largest size, count or position: what an int32 holds."""

_ITEMS: dict[type, tuple[type, str, str]] = {
    int: (Integral, "iu", "integers"),
    float: (Real, "iuf", "numbers"),
    str: (str, "", "strings"),
}
"""Item types of an array: in a list, as kinds of NumPy dtypes, and in messages."""


class Metadata:
    """Reads values and checks their type and range.

    Every method raises a GGUFError that names the key, its value and what is allowed, or that a required key is
    missing. A default is returned unchecked.

    Args:
        values: key -> value, as `open_gguf` gives them.
        prefix: of all keys that are read, such as "llama.".
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = ""):
        self._values, self._prefix = values, prefix

    def integer(self, key: str, low: float = -math.inf, high: float = math.inf, default: Any = REQUIRED) -> int:
        """An integer, low to high."""
        value = self.value(key, default)
        if value is default or (type(value) is int and low <= value <= high):
            return value
        raise self.error(key, "integers" if math.isinf(high) else f"integers from {low} to {high}")

    def number(self, key: str, low: float, high: float, default: Any = REQUIRED) -> float:
        """An integer or a float, low to high, so not NaN."""
        value = self.value(key, default)
        if value is default or (type(value) in (int, float) and low <= value <= high):
            return value
        raise self.error(key, f"numbers from {low:g} to {high:g}")

    def flag(self, key: str, default: Any = REQUIRED) -> bool:
        """True or False."""
        value = self.value(key, default)
        if value is default or type(value) is bool:
            return value
        raise self.error(key, "true and false")

    def string(self, key: str, default: Any = REQUIRED) -> str:
        """A string."""
        value = self.value(key, default)
        if value is default or type(value) is str:
            return value
        raise self.error(key, "strings")

    def array(self, key: str, kind: type, default: Any = REQUIRED) -> list[Any]:
        """A list of int, float (which integers are too) or str."""
        value = self.value(key, default)
        if value is default:
            return value
        items, dtypes, name = _ITEMS[kind]
        if isinstance(value, np.ndarray) and value.dtype.kind in dtypes:
            return value.tolist()
        if isinstance(value, list) and all(isinstance(item, items) for item in value):
            return list(value)
        raise self.error(key, f"arrays of {name}")

    def error(self, key: str, allowed: str) -> GGUFError:
        """The error for a value of `key` that is missing or not allowed."""
        value = self.value(key, None)
        found = "missing" if value is None else reprlib.repr(value)
        return GGUFError(f"metadata {self._prefix}{key} is {found}; allowed are {allowed}")

    def value(self, key: str, default: Any = REQUIRED) -> Any:
        """A value of any type."""
        value = self._values.get(self._prefix + key, default)
        if value is REQUIRED:
            raise GGUFError(f"metadata {self._prefix}{key} is missing")
        return value
