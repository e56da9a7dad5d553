"""WordPiece and Unigram on the `tokenizers` library, from what a GGUF file stores.

Both functions return what turns a piece of text without special tokens into token ids.
"""

from __future__ import annotations

import re
from typing import Any

from rocforge.errors import GGUFError
from rocforge.text.bpe import Encode
from rocforge.text.vocabulary import Vocabulary

LONGEST_WORD = 100
"""Characters of a word; one that is longer is unknown, as BERT has it."""


def wordpiece(vocabulary: Vocabulary, unknown_id: int, lowercase: bool, strip_accents: bool) -> Encode:
    """BERT's WordPiece (Devlin et al., 2018): of each word the longest token that it begins with, then of the rest.

    In GGUF a token that begins a word has "▁" before it, and no other has "##". A word that does not come out is
    `unknown_id` as a whole.
    """
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    unknown = f"[unknown {unknown_id}]"
    model = WordPiece(
        vocab={unknown: unknown_id, **vocabulary.pieces},
        unk_token=unknown,
        max_input_chars_per_word=LONGEST_WORD + 1,
        continuing_subword_prefix="",
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=strip_accents, lowercase=lowercase)
    begin = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), begin])
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def unigram(vocabulary: Vocabulary, unknown_id: int, charsmap: bytes, space_prefix: bool, merge_spaces: bool) -> Encode:
    """SentencePiece's unigram model (Kudo, 2018): of all ways to cut a text, that whose tokens' scores sum highest.

    Args:
        charsmap: SentencePiece's precompiled normalization; empty for none.
        space_prefix: a space is put before the text.
        merge_spaces: runs of spaces become one, and none are left at the ends.
    """
    from tokenizers import Tokenizer, normalizers
    from tokenizers.models import Unigram

    pieces, scores = vocabulary.pieces, vocabulary.scores
    # what is no piece has an id all the same, and no text
    tokens = [(text if text in pieces else "", score) for text, score in zip(vocabulary.texts, scores, strict=False)]
    tokenizer = Tokenizer(Unigram(tokens, unk_id=unknown_id, byte_fallback=False))
    normalizer: Any = None
    if charsmap:
        try:
            normalizer = normalizers.Precompiled(charsmap)
        except Exception as error:  # the library's own
            raise GGUFError(f"metadata tokenizer.ggml.precompiled_charsmap: {error}") from error

    def encode(text: str) -> list[int]:
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        if merge_spaces:
            text = re.sub(" +", " ", text.strip(" "))
        if text and (space_prefix or merge_spaces):
            text = " " + text
        return tokenizer.encode(text.replace(" ", "▁"), add_special_tokens=False).ids

    return encode
