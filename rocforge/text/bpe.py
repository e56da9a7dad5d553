"""Byte pair encoding on the `tokenizers` library, from what a GGUF file stores.

The functions return what turns a piece of text without special tokens into token ids.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rocforge.errors import GGUFError
from rocforge.text.pretokenizers import PreTokenizer
from rocforge.text.vocabulary import Vocabulary

Encode = Callable[[str], list[int]]
_MERGE_COST, _MOST_COST = 64, 1 << 28
"""Cost of trying a merge besides its characters, and the limit on all of them: 262 thousand tokens cost about 2**27."""


def byte_level_bpe(vocabulary: Vocabulary, merges: Sequence[str], pre_tokenizer: PreTokenizer) -> Encode:
    """GPT-2's byte-level BPE (Radford et al., 2019). `merges` holds "left right" pairs, the first to apply first."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    tokenizer = Tokenizer(_merging(vocabulary.pieces, merges, ignore_merges=pre_tokenizer.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in pre_tokenizer.regexes]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _merging(pieces: dict[str, int], merges: Sequence[str], **options: bool) -> Any:
    """The library's model of these "left right" merges of what are pieces."""
    from tokenizers.models import BPE

    pairs = [merge.partition(" ")[::2] for merge in merges]
    try:
        if _longest(merges) > _longest(pieces) + len(" "):
            raise ValueError("a merge is longer than the longest token, on which the library panics")
        return BPE(vocab=pieces, merges=pairs, **options)
    except Exception:  # the library's answer to a merge of what is no token; checking 150,000 first takes 0.1 s
        pairs = [(a, b) for a, b in pairs if a in pieces and b in pieces and a + b in pieces]
        return BPE(vocab=pieces, merges=pairs, **options)


def character_bpe(vocabulary: Vocabulary, merges: Sequence[str]) -> Encode:
    """BPE over characters, by merges; a line at a time, with the line ends between two of them as one word.

    What remains that is no token becomes the tokens of its UTF-8 bytes. The text has "▁" for spaces. Source: Gemma 4.
    """
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    tokenizer = Tokenizer(_merging({**vocabulary.pieces, **_byte_tokens(vocabulary)}, merges, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _byte_tokens(vocabulary: Vocabulary) -> dict[str, int]:
    return {text: vocabulary.ids[text] for text in map("<0x{:02X}>".format, range(256)) if text in vocabulary.ids}


def _longest(texts: Iterable[str]) -> int:
    return max((len(text.encode(errors="surrogateescape")) for text in texts), default=0)


def sentencepiece_bpe(vocabulary: Vocabulary, unknown_id: int | None) -> Encode:
    """SentencePiece's BPE (Kudo and Richardson, 2018): of all adjacent pairs that form a token, the best score first.

    What remains that is no token becomes the tokens of its UTF-8 bytes, or `unknown_id` where the vocabulary has none.
    The text has "▁" for spaces.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    pieces = dict(vocabulary.pieces)
    # A character that only occurs inside longer tokens still takes part in merges, under an id past the vocabulary's.
    lone = dict.fromkeys(char for text in pieces for char in text if char not in pieces)
    fallback = {len(vocabulary.texts) + i: _byte_ids(vocabulary, char, unknown_id) for i, char in enumerate(lone)}
    pieces.update(zip(lone, fallback, strict=True))
    merges = _merges_by_score(vocabulary, pieces)
    # a name of its own: the token's text may be one that text holds, or no UTF-8
    unknown = {} if unknown_id is None else {f"[unknown {unknown_id}]": unknown_id}
    tokenizer = Tokenizer(
        BPE(
            vocab={**unknown, **pieces, **_byte_tokens(vocabulary)},
            merges=merges,
            byte_fallback=True,
            fuse_unk=True,
            unk_token=next(iter(unknown), None),
        )
    )

    def encode(text: str) -> list[int]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if fallback and max(ids, default=0) >= len(vocabulary.texts):
            return [each for id in ids for each in fallback.get(id, (id,))]
        return ids

    return encode


def _merges_by_score(vocabulary: Vocabulary, pieces: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, the highest score first; of one token, the longest left part first."""
    scores = vocabulary.scores
    tokens = [(text, id) for text, id in pieces.items() if len(text) > 1 and id < len(scores)]
    tokens.sort(key=lambda token: (-scores[token[1]], token[1]))
    lengths = sorted({len(text) for text in pieces})  # fewer than a long token has places to cut
    cuts = {text: lengths[: bisect_left(lengths, len(text))] for text, _ in tokens}
    cost = sum(len(places) * (len(text) + _MERGE_COST) for text, places in cuts.items())
    if cost > _MOST_COST:
        raise GGUFError(
            f"metadata tokenizer.ggml.tokens has texts of {len(lengths)} different lengths: too many merges to try"
        )
    return [
        (text[:i], text[i:])
        for text, places in cuts.items()
        for i in reversed(places)
        if text[:i] in pieces and text[i:] in pieces
    ]


def _byte_ids(vocabulary: Vocabulary, char: str, unknown_id: int | None) -> list[int]:
    ids = [vocabulary.ids.get(f"<0x{byte:02X}>", unknown_id) for byte in char.encode()]
    return [id for id in ids if id is not None]


@functools.cache
def byte_of_char() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (GPT-2's table: printable ones for themselves)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}
