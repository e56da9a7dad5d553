"""tokenizer.model: the pieces of a SentencePiece model, a message of protocol buffers.

Source: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocforge.errors import CheckpointError

_PIECES, _NORMALIZER = 1, 3  # of the model
_TEXT, _SCORE, _TYPE = 1, 2, 3  # of a piece; its types are GGUF's, by number too
_DUMMY_PREFIX = 3  # of the normalizer
NORMAL, USER_DEFINED = 1, 4


@dataclass(frozen=True)
class Piece:
    """A token: its text, score and type, GGUF's numbers."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What a file says: the pieces, by id, and whether a text gets a space before it."""

    pieces: list[Piece]
    space_prefix: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model.

    Raises:
        CheckpointError: it is no SentencePiece model.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [_piece(value) for number, value in fields if number == _PIECES]
        normalizer = next((value for number, value in fields if number == _NORMALIZER), b"")
        prefix = dict(_fields(normalizer)).get(_DUMMY_PREFIX, 1)
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise CheckpointError(f"{path} is no SentencePiece model: {error}") from None
    if not pieces:
        raise CheckpointError(f"{path} is no SentencePiece model: it has no pieces")
    return SentencePieceModel(pieces, bool(prefix))


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    score = struct.unpack("<f", fields[_SCORE])[0] if _SCORE in fields else 0.0
    kind = fields.get(_TYPE, NORMAL)
    # what a user defined is text with spaces in GGUF, and comes from the list of added tokens
    return Piece(fields.get(_TEXT, b"").decode("utf-8"), score, NORMAL if kind == USER_DEFINED else kind)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message: an int, or bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
        if not 0 <= size <= len(data) - at:
            raise ValueError(f"a field of wire type {kind} at byte {at} does not fit")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if shift > 63:
            raise ValueError(f"a number at byte {at} does not end")
    return value | data[at] << shift, at + 1
