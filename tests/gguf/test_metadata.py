"""Metadata is read as what it should be, or the error names the key, the value and what is allowed."""

import math

import numpy as np
import pytest

from rocforge.errors import GGUFError
from rocforge.gguf.metadata import Metadata

VALUES = {
    "a.number": 3,
    "a.float": 2.5,
    "a.flag": True,
    "a.text": "x",
    "a.texts": ["x", "y"],
    "a.numbers": np.array([1, 2], np.uint32),
    "a.floats": np.array([1, 2.5], np.float32),
    "a.flags": np.array([True]),
    "a.none": np.array([], np.uint32),
    "a.nested": [np.array([1])],
    "a.nan": math.nan,
}
METADATA = Metadata(VALUES, "a.")


def test_values_of_their_types():
    """Each comes as Python's own."""
    assert METADATA.integer("number", 0, 3) == 3
    assert METADATA.number("number", 0, 9) == 3 and METADATA.number("float", 2.5, 2.5) == 2.5
    assert METADATA.flag("flag") is True and METADATA.string("text") == "x"
    assert METADATA.array("texts", str) == ["x", "y"] and METADATA.array("numbers", int) == [1, 2]
    assert METADATA.array("numbers", float) == [1, 2] and METADATA.array("floats", float) == [1, 2.5]


def test_defaults():
    """What is missing is its default, whatever that is; without one it is an error."""
    assert METADATA.integer("other", 0, 1, default=None) is None and METADATA.string("other", default="z") == "z"
    for read in (METADATA.flag, METADATA.string, lambda key: METADATA.array(key, int)):
        with pytest.raises(GGUFError, match=r"metadata a\.other is missing"):
            read("other")


BAD = [
    (
        lambda m, key: m.integer(key, 4, 9),
        "integers from 4 to 9",
        ["number", "float", "flag", "text", "none", "nested"],
    ),
    (lambda m, key: m.integer(key), "integers", ["float", "flag", "text", "flags"]),
    (lambda m, key: m.number(key, 0, 2), "numbers from 0 to 2", ["float", "flag", "text", "nan", "texts"]),
    (lambda m, key: m.flag(key), "true and false", ["number", "text", "flags"]),
    (lambda m, key: m.string(key), "strings", ["number", "texts", "flag"]),
    (lambda m, key: m.array(key, str), "arrays of strings", ["text", "numbers", "nested", "none"]),
    (lambda m, key: m.array(key, int), "arrays of integers", ["number", "texts", "floats", "flags", "nested"]),
    (lambda m, key: m.array(key, float), "arrays of numbers", ["float", "texts", "flags"]),
]


@pytest.mark.parametrize(("read", "allowed", "keys"), BAD)
def test_what_is_not_believed(read, allowed, keys):
    """Of another type, out of range, no number, empty."""
    for key in keys:
        with pytest.raises(GGUFError, match=rf"metadata a\.{key} is .+; allowed are {allowed}$"):
            read(METADATA, key)


def test_long_values_are_shortened():
    """A message holds the beginning of a text of any length."""
    with pytest.raises(GGUFError) as caught:
        Metadata({"a": "x" * 10**6}).integer("a")
    assert len(str(caught.value)) < 200
