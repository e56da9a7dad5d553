"""sequence_breakers: texts that end repetitions, as sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from rocforge.text.tokenizer import Tokenizer

_LONGEST = 20
"""Tokens after the first of a sequence."""
_found: WeakKeyDictionary[Tokenizer, dict[str, Sequence[tuple[int, ...]]]] = WeakKeyDictionary()


def sequence_breakers(tokenizer: Tokenizer, text: str) -> Sequence[tuple[int, ...]]:
    """The tokens that hold a text, and those that end with its beginning, each with the tokens of the rest.

    As llama.cpp has them for DRY.

    >>> breakers = sequence_breakers(tokenizer, "):")
    >>> [[tokenizer.decode([id]) for id in ids] for ids in breakers][:3]
    [[')', ':'], ['):'], ['))', ':']]
    """
    known = _found.setdefault(tokenizer, {})
    if text not in known:
        known[text] = _searched(tokenizer, text.encode())
    return known[text]


def _searched(tokenizer: Tokenizer, text: bytes) -> Sequence[tuple[int, ...]]:
    found: dict[tuple[int, ...], None] = {}
    for id in range(tokenizer.vocab_size):
        piece = tokenizer.token_bytes(id)
        if text in piece:
            found[(id,)] = None
            continue
        for size in range(min(len(piece), len(text) - 1), 0, -1):
            if piece.endswith(text[:size]):
                rest = text[size:].decode(errors="surrogateescape")
                after = tokenizer.encode(rest, add_special_tokens=False, parse_special_tokens=False)
                found[(id, *after[:_LONGEST])] = None
    return list(found)
