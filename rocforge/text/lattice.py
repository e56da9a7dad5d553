"""PLaMo's tokenizer: of all ways to cut a text into tokens, that whose scores sum highest.

Source: https://huggingface.co/pfnet/plamo-2-1b.
"""

from __future__ import annotations

import math

from rocforge.errors import GGUFError
from rocforge.text.bpe import Encode
from rocforge.text.vocabulary import BYTE, BYTE_TOKEN, Vocabulary

_UNIT = 1e4
"""Scores are compared as integers of 1 / _UNIT."""
_OF_BYTES, _TOO_LOW = -10_000_000, -20_000_000
"""The score of a character that becomes its bytes, and that from which on a token is none, in units."""
_NO_TOKEN = -(1 << 60), -1
_MOST_COST = 1 << 28
"""On the characters of all prefixes of tokens: 100 thousand tokens have some millions."""


def highest_sum(vocabulary: Vocabulary) -> Encode:
    """What turns text without special tokens into ids; of equal sums the longer token comes first.

    A character that is in no token of the best cut becomes the tokens of its UTF-8 bytes. A byte order mark that text
    begins with does not count.

    Raises:
        GGUFError: a byte has no token, or tokens are too long for a list of all that they begin with.
    """
    if sum(len(text) ** 2 for text in vocabulary.pieces) > _MOST_COST:
        longest = max(map(len, vocabulary.pieces))
        raise GGUFError(f"metadata tokenizer.ggml.tokens has texts of up to {longest} characters: too many prefixes")
    of_byte, prefixes = _byte_ids(vocabulary), dict[str, tuple[int, int]]()  # what tokens begin with: score and id
    for text, id in vocabulary.pieces.items():
        score = _in_units(vocabulary.scores[id])
        if vocabulary.types[id] != BYTE and score > _TOO_LOW:
            prefixes[text] = score, id
    for text in list(prefixes):
        for size in range(1, len(text)):
            prefixes.setdefault(text[:size], _NO_TOKEN)

    def encode(text: str) -> list[int]:
        text = text.removeprefix("\ufeff")
        best, cuts = [0] * (len(text) + 1), [(1, -1)] * len(text)  # of the text from a place on
        for at in range(len(text) - 1, -1, -1):
            best[at] = best[at + 1] + _OF_BYTES
            for end in range(at + 1, len(text) + 1):
                found = prefixes.get(text[at:end])
                if found is None:
                    break
                if found[0] + best[end] >= best[at]:
                    best[at], cuts[at] = found[0] + best[end], (end - at, found[1])
        ids, at = list[int](), 0
        while at < len(text):
            size, id = cuts[at]
            ids += [id] if id >= 0 else [of_byte[byte] for byte in text[at].encode()]
            at += size
        return ids

    return encode


def _in_units(score: float) -> int:
    """Rounded, halves away from zero."""
    if not math.isfinite(score):
        return _TOO_LOW
    return int(math.copysign(math.floor(abs(score) * _UNIT + 0.5), score))


def _byte_ids(vocabulary: Vocabulary) -> list[int]:
    """The token of each byte."""
    texts = vocabulary.texts
    found = {int(match[1], 16): id for id, text in enumerate(texts) if (match := BYTE_TOKEN.fullmatch(text))}
    missing = next((byte for byte in range(256) if byte not in found or vocabulary.types[found[byte]] != BYTE), None)
    if missing is not None:
        raise GGUFError(f"metadata tokenizer.ggml.tokens lacks a token of kind byte, <0x{missing:02X}>")
    return [found[byte] for byte in range(256)]
