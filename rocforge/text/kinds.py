"""Kinds of tokenizers, by tokenizer.ggml.model: how each encodes, and what it has where a file does not say."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rocforge.errors import GGUFError
from rocforge.gguf.metadata import Metadata
from rocforge.text.bpe import Encode, byte_level_bpe, byte_of_char, character_bpe, sentencepiece_bpe
from rocforge.text.lattice import highest_sum
from rocforge.text.longest_match import longest_match, unescaped
from rocforge.text.pieces import unigram, wordpiece
from rocforge.text.pretokenizers import find_pre_tokenizer
from rocforge.text.vocabulary import Vocabulary


class Encoding(NamedTuple):
    """How a file's tokenizer encodes text, and whether the begin token comes first where the file does not say."""

    encode: Encode
    add_bos: bool


def as_written(text: str) -> bytes:
    """The bytes of a token's text in the vocabulary, where they are those of the text that it stands for."""
    return text.encode("utf-8", "surrogateescape")


def _marked(text: str) -> bytes:
    """The same, where a mark stands for a space."""
    return as_written(text.replace("▁", " "))


def _byte_level(text: str) -> bytes:
    """The same, where each character stands for a byte."""
    table = byte_of_char()
    return bytes(table[char] for char in text) if all(char in table for char in text) else as_written(text)


class Kind(NamedTuple):
    """A kind of tokenizer.

    Attributes:
        encoding: of a vocabulary, its metadata, and the id of the unknown token.
        piece, special_piece: the bytes that a token stands for, and a special one, by its text in the vocabulary.
        marks_spaces: what is encoded has marks for spaces. Else `encoding` sees to them.
        adds_space: whether a text gets a space in front, which decoding takes off; None: as the file says.
        always_begins: the begin token comes first, also where the file says otherwise, as some do.
        ends_with_sep: a text ends with sep, whatever the file says.
        unk, bos, eos, sep, pad: ids of special tokens, where the file does not say.
        add_eos: eos comes last, where the file does not say.
    """

    encoding: Callable[[Vocabulary, Metadata, int | None], Encoding]
    piece: Callable[[str], bytes] = _marked
    special_piece: Callable[[str], bytes] = as_written
    marks_spaces: bool = False
    adds_space: bool | None = False
    always_begins: bool = False
    ends_with_sep: bool = False
    unk: int | None = None
    bos: int | None = None
    eos: int | None = None
    sep: int | None = None
    pad: int | None = None
    add_eos: bool = False


def _gpt2(vocabulary: Vocabulary, metadata: Metadata, unknown_id: int | None) -> Encoding:
    pre_tokenizer = find_pre_tokenizer(metadata.string("pre", default="default"))
    encode = byte_level_bpe(vocabulary, metadata.array("merges", str), pre_tokenizer)
    return Encoding(encode, pre_tokenizer.add_bos)


def _llama(vocabulary: Vocabulary, metadata: Metadata, unknown_id: int | None) -> Encoding:
    return Encoding(sentencepiece_bpe(vocabulary, unknown_id), True)


def _gemma4(vocabulary: Vocabulary, metadata: Metadata, unknown_id: int | None) -> Encoding:
    return Encoding(character_bpe(vocabulary, metadata.array("merges", str)), True)


def _bert(vocabulary: Vocabulary, metadata: Metadata, unknown_id: int | None) -> Encoding:
    lowercase = metadata.flag("normalizer.lowercase", default=True)
    strip_accents = metadata.flag("normalizer.strip_accents", default=lowercase)
    return Encoding(wordpiece(vocabulary, _needed(unknown_id), lowercase, strip_accents), True)


def _t5(vocabulary: Vocabulary, metadata: Metadata, unknown_id: int | None) -> Encoding:
    charsmap = np.array(metadata.array("precompiled_charsmap", int, default=[])).astype(np.uint8).tobytes()
    prefix = metadata.flag("add_space_prefix", default=True)
    merge = metadata.flag("remove_extra_whitespaces", default=False)
    return Encoding(unigram(vocabulary, _needed(unknown_id), charsmap, prefix, merge), False)


def _plamo2(vocabulary: Vocabulary, metadata: Metadata, unknown_id: int | None) -> Encoding:
    return Encoding(highest_sum(vocabulary), False)


def _rwkv(vocabulary: Vocabulary, metadata: Metadata, unknown_id: int | None) -> Encoding:
    return Encoding(longest_match(vocabulary, unknown_id), False)


def _needed(unknown_id: int | None) -> int:
    if unknown_id is None:
        raise GGUFError("metadata tokenizer.ggml.unknown_token_id is missing, or outside the vocabulary")
    return unknown_id


KINDS = {
    "bert": Kind(_bert, adds_space=True, ends_with_sep=True, unk=100, bos=101, sep=102, pad=0),
    "gemma4": Kind(_gemma4, marks_spaces=True, always_begins=True),
    "gpt2": Kind(_gpt2, _byte_level),
    # ids by SentencePiece's trainer; files written early rely on them
    "llama": Kind(_llama, marks_spaces=True, adds_space=None, unk=0, bos=1, eos=2),
    "plamo2": Kind(_plamo2, as_written, unk=0, bos=1, eos=2, pad=3),
    "rwkv": Kind(_rwkv, unescaped, unescaped),
    "t5": Kind(_t5, adds_space=True, unk=2, eos=1, pad=0, add_eos=True),
}
"""WordPiece, BPE over characters, byte-level BPE, SentencePiece's BPE, PLaMo's, RWKV World's, and
SentencePiece's unigram model."""
