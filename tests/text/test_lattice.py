"""PLaMo's tokenizer: the cut of the highest sum, as trying all finds it and as llama.cpp does."""

import functools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.errors import GGUFError
from rocforge.text.tokenizer import Tokenizer
from rocforge.text.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN

SPECIAL = ["<|plamo:unk|>", "<|plamo:bos|>", "<|plamo:eos|>", "<|plamo:pad|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SCORES = {"a": -3.0, "b": -3.0, "ab": -6.0, "abc": -6.5, "bca": -4.0, "c": -999.0, " ": -2.0, "▁": -2.0, "漢": -5.0}
SCORES |= {"漢字": -4.00004, "x": -2000.0, "y": -1000.0, "yy": -1999.0, "\n": -1.5, "\n\n": -2.5, "aba": -8.99996}
FIRST = len(SPECIAL) + len(BYTES)


def made(scores=SCORES, bytes_=BYTES):
    keys = {"model": "plamo2", "tokens": [*SPECIAL, *bytes_, *scores]}
    keys["scores"] = [0.0] * (len(SPECIAL) + len(bytes_)) + list(scores.values())
    keys["token_type"] = [UNKNOWN, *[CONTROL] * 3, *[BYTE] * len(bytes_), *[NORMAL] * len(scores)]
    return Tokenizer(SimpleNamespace(metadata={f"tokenizer.ggml.{key}": value for key, value in keys.items()}))


TOKENIZER = made()


def highest_of_all(text):
    """Ids of the best of all cuts, by sums of scores in tenths of thousandths; of equals the longer first token."""
    units = {piece: round(score * 1e4) for piece, score in SCORES.items() if score > -2000}

    @functools.cache
    def best(at):
        if at == len(text):
            return 0, 0, []
        rest = best(at + 1)
        ways = [(rest[0] - 10_000_000, 0, [4 + byte for byte in text[at].encode()] + rest[2])]
        for size in range(1, len(text) - at + 1):
            if (piece := text[at : at + size]) in units:
                rest = best(at + size)
                ways.append((rest[0] + units[piece], size, [FIRST + list(SCORES).index(piece), *rest[2]]))
        return max(ways, key=lambda way: way[:2])

    return best(0)[2]


@settings(max_examples=200, deadline=None)
@given(st.text("abc xy▁漢字\né🦙"))
def test_the_highest_sum(text):
    """Of all cuts; and back."""
    assert TOKENIZER.encode(text) == highest_of_all(text)
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_ids_are_llama_cpps():
    """Of this vocabulary, as llama.cpp gave them."""
    wanted = [
        260,
        264,
        261,
        260,
        264,
        266,
        266,
        267,
        268,
        269,
        233,
        177,
        155,
        274,
        273,
        124,
        272,
        271,
        199,
        173,
        244,
        163,
        170,
        157,
        2,
        262,
    ]
    text = "abcababca  ▁漢漢字字\n\n\nxyyyé🦙<|plamo:eos|>\ufeffab"
    assert TOKENIZER.encode(text) == wanted
    assert TOKENIZER.encode("\ufeffab") == TOKENIZER.encode("ab") == [262]
    assert 2 not in TOKENIZER.encode("<|plamo:eos|>", parse_special_tokens=False)
    ids = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.unk_token_id, TOKENIZER.pad_token_id
    assert ids == (1, 2, 0, 3)


def test_vocabularies_that_are_refused():
    """A byte without a token, and tokens that are too long."""
    with pytest.raises(GGUFError, match="lacks a token of kind byte, <0xFF>"):
        made(bytes_=BYTES[:-1])
    with pytest.raises(GGUFError, match="texts of up to 20000 characters: too many prefixes"):
        made({"a" * 20_000: 0.0})
