"""RWKV World's tokenizer: from where the last token ends, the longest token that the text goes on with.

Source: https://github.com/BlinkDL/ChatRWKV/tree/main/tokenizer.
"""

from __future__ import annotations

import re

from rocforge.errors import GGUFError
from rocforge.text.bpe import Encode
from rocforge.text.vocabulary import Vocabulary

_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.?))", re.DOTALL)
_CHARACTERS = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


def unescaped(text: str) -> bytes:
    r"""The bytes of a token: `\x` and two digits is a byte, `\t`, `\n` and `\r` are characters, `\` goes before others.

    >>> unescaped(r"\xe6\x97\\n")
    b'\xe6\x97\\n'
    """
    return _ESCAPE.sub(_meaning, text.encode("utf-8", "surrogateescape"))


def _meaning(escape: re.Match[bytes]) -> bytes:
    digits, char = escape.groups()
    return bytes([int(digits, 16)]) if digits else _CHARACTERS.get(char, char)


def longest_match(vocabulary: Vocabulary, unknown_id: int | None) -> Encode:
    """What turns text without special tokens into ids; a byte that begins no token is `unknown_id`.

    Raises:
        GGUFError: there are bytes that are no tokens, and no unknown token.
    """
    known = sorted((id, text) for text, id in vocabulary.ids.items() if text not in vocabulary.markup)
    unknown = {} if unknown_id is None else {bytes([byte]): unknown_id for byte in range(256)}
    tokens = {**unknown, **{unescaped(text): id for id, text in known}}
    if missing := [byte for byte in range(256) if bytes([byte]) not in tokens]:
        raise GGUFError(
            f"metadata tokenizer.ggml.tokens lacks the byte {missing[0]}, and there is no unknown_token_id for it"
        )
    sizes: dict[bytes, set[int]] = {}  # of the longer tokens, by what they begin with
    for token in tokens:
        if len(token) > 1:
            sizes.setdefault(token[:2], set()).add(len(token))
    tried = {start: (*sorted(found, reverse=True), 1) for start, found in sizes.items()}

    def encode(text: str) -> list[int]:
        data, ids, at = text.encode(), list[int](), 0
        while at < len(data):
            for size in tried.get(data[at : at + 2], (1,)):
                id = tokens.get(data[at : at + size])
                if id is not None:  # at the latest that of a byte
                    ids.append(id)
                    at += size
                    break
        return ids

    return encode
