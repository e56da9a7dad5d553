"""Special tokens are found in text in llama.cpp's order."""

import itertools
import timeit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.text.special_tokens import SpecialTokens


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


@settings(max_examples=300)
@given(data=st.data(), tokens=st.lists(st.text("<|>a", min_size=1, max_size=4), unique=True, max_size=8))
def test_nothing_reaches_into_literal_spans(data, tokens):
    """The text around them is split as if it stood alone, and what is text again is one part with them."""
    before, inside, after = (data.draw(st.text("<|>a", max_size=12)) for _ in range(3))
    special = SpecialTokens({token: i for i, token in enumerate(tokens)})
    left, right = special.split(before), special.split(after)
    text, span = before + inside + after, (len(before), len(before) + len(inside))
    parts = special.split(text, [span])
    assert "".join(tokens[p] if isinstance(p, int) else p for p in parts) == text
    assert [p for p in parts if isinstance(p, int)] == [p for p in left + right if isinstance(p, int)]
    assert not any(isinstance(a, str) and isinstance(b, str) for a, b in itertools.pairwise(parts))


@pytest.mark.parametrize("text", ["".join(f"<|{i}|>" for i in range(3000)), "\n" * 20000, "<|" * 10000])
def test_time_goes_with_the_length(text):
    """Whichever of thousands of tokens a text names: four times the text takes about four times as long."""
    tokens = [*(f"<|{i}|>" for i in range(3000)), *("\n" * n for n in range(1, 40))]
    special = SpecialTokens({token: i for i, token in enumerate(tokens)})

    def seconds(text):
        return min(timeit.repeat(lambda: special.split(text), number=1, repeat=3))

    assert seconds(text * 4) < 10 * seconds(text)


@pytest.mark.parametrize(
    ("text", "middle"),
    [("abc", "abc"), ("m_end|>abc<|im", "abc"), ("<|im_end|>", "<|im_end|>"), (">a<", ">a<"), ("|>", ""), ("", "")],
)
def test_edges(text, middle):
    """Parts of a token, two characters and more, that another text could complete."""
    start, stop = SpecialTokens({"<|im_end|>": 1, "x": 2}).edges(text)
    assert text[start:stop] == middle


def test_rstrip():
    """A token marked so swallows ASCII white space after it, another does not."""
    assert SpecialTokens({"<a>": 1, "<b>": 2}, rstrip=[1]).split("<a> \n\u00a0x <b> y") == [1, "\u00a0x ", 2, " y"]
