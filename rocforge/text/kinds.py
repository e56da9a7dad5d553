"""Kinds of tokenizers, by tokenizer.ggml.model: how each encodes, and what it has where a file does not say."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rocforge.errors import GGUFError
from rocforge.gguf.metadata import Metadata
from rocforge.text.bpe import Encode, byte_level_bpe, character_bpe, sentencepiece_bpe
from rocforge.text.lattice import highest_sum
from rocforge.text.longest_match import longest_match
from rocforge.text.pieces import unigram, wordpiece
from rocforge.text.pretokenizers import find_pre_tokenizer
from rocforge.text.vocabulary import Vocabulary


class Encoding(NamedTuple):
    """How a file's tokenizer encodes text, and whether the begin token comes first where the file does not say."""

    encode: Encode
    add_bos: bool


class Kind(NamedTuple):
    """A kind of tokenizer.

    Attributes:
        encoding: of a vocabulary, its metadata, and the id of the unknown token.
        unk, bos, eos, sep, pad: ids of special tokens, where the file does not say.
        add_end: an end token comes last, where the file does not say: eos, of "bert" sep.
    """

    encoding: Callable[[Vocabulary, Metadata, int | None], Encoding]
    unk: int | None = None
    bos: int | None = None
    eos: int | None = None
    sep: int | None = None
    pad: int | None = None
    add_end: bool = False


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
    "bert": Kind(_bert, unk=100, bos=101, sep=102, pad=0, add_end=True),
    "gemma4": Kind(_gemma4),
    "gpt2": Kind(_gpt2),
    "llama": Kind(_llama, unk=0, bos=1, eos=2),  # by SentencePiece's trainer; files written early rely on it
    "plamo2": Kind(_plamo2, unk=0, bos=1, eos=2, pad=3),
    "rwkv": Kind(_rwkv),
    "t5": Kind(_t5, unk=2, eos=1, pad=0, add_end=True),
}
"""WordPiece, BPE over characters, byte-level BPE, SentencePiece's BPE, PLaMo's, RWKV World's, and
SentencePiece's unigram model."""
