"""Special tokens are found in text in llama.cpp's order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.special_tokens import SpecialTokens


def naive_split(ids, text):
    """llama.cpp's order: each token in turn, the longest first, cut out of whatever text is left."""
    parts = [text] if text else []
    for token in sorted(ids, key=lambda token: (-len(token.encode()), ids[token])):
        cut = []
        for part in parts:
            if isinstance(part, int):
                cut.append(part)
                continue
            while token in part:
                left, _, part = part.partition(token)
                cut += [left] * bool(left) + [ids[token]]
            cut += [part] * bool(part)
        parts = cut
    return parts


@settings(max_examples=500)
@given(tokens=st.lists(st.text("<|> aé", min_size=1, max_size=4), unique=True, max_size=8), text=st.text("<|> aé"))
def test_special_tokens_are_cut_out_longest_first(tokens, text):
    """The search by prefixes finds what trying every token in turn finds, overlapping tokens included."""
    ids = {token: i for i, token in enumerate(tokens)}
    assert SpecialTokens(ids).split(text) == naive_split(ids, text)


@pytest.mark.parametrize(
    ("ids", "text", "parts"),
    [
        ({}, "abc", ["abc"]),
        ({"<a>": 1}, "", []),
        ({"<a>": 1}, "x<a><a>y", ["x", 1, 1, "y"]),
        ({"<a>": 1, "a>b<": 2}, "<a>b<a>", ["<", 2, "a>"]),
        ({"  ": 2, "   ": 3}, "     x", [3, 2, "x"]),
    ],
)
def test_split(ids, text, parts):
    """Nothing to find, neighbours, overlaps, runs."""
    assert SpecialTokens(ids).split(text) == parts


def test_rstrip():
    """A token marked so swallows ASCII white space after it, another does not."""
    assert SpecialTokens({"<a>": 1, "<b>": 2}, rstrip=[1]).split("<a> \n\u00a0x <b> y") == [1, "\u00a0x ", 2, " y"]
