"""sequence_breakers: texts that end repetitions, as sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from rocforge.text.marks import without_surrogates
from rocforge.text.tokenizer import Tokenizer

_LONGEST = 20
"""Tokens after the first of a sequence."""
_found: WeakKeyDictionary[Tokenizer, dict[str, Sequence[tuple[int, ...]]]] = WeakKeyDictionary()


def sequence_breakers(tokenizer: Tokenizer, text: str) -> Sequence[tuple[int, ...]]:
    """Those of the text itself, tokens that hold it, and tokens that end with its beginning with those of the rest.

    As llama.cpp has them for DRY.

    >>> breakers = sequence_breakers(tokenizer, "):")
    >>> [[tokenizer.decode([id]) for id in ids] for ids in breakers][:3]
    [['):'], [')', ':'], ['()', ':']]
    """
    known = _found.setdefault(tokenizer, {})
    if text not in known:
        known[text] = _searched(tokenizer, without_surrogates(text))
    return known[text]


def _searched(tokenizer: Tokenizer, text: str) -> Sequence[tuple[int, ...]]:
    def tokens(part: str) -> list[int]:
        return tokenizer.encode(part, add_special_tokens=False, parse_special_tokens=False)

    whole = text.encode()
    begins = [(text[:size].encode(), tuple(tokens(text[size:])[:_LONGEST])) for size in range(len(text) - 1, 0, -1)]
    found = {tuple(tokens(text)): None}  # its characters may be tokens of bytes
    for id in range(tokenizer.vocab_size):
        piece = tokenizer.token_bytes(id)
        if whole in piece:
            found[(id,)] = None
        else:
            found |= {(id, *rest): None for begin, rest in begins if piece.endswith(begin)}
    return list(found)
