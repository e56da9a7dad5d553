"""WordPiece and unigram tokenizers: the ids of the library's own from the same vocabulary, and llama.cpp's."""

import inspect
import string
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_vocabularies import with_ids

from rocforge.errors import GGUFError
from rocforge.text.tokenizer import Tokenizer
from rocforge.text.vocabulary import CONTROL, NORMAL, UNKNOWN

CORPUS = (inspect.getsource(inspect) + inspect.getsource(string)).split("\n\n")
TEXTS = st.one_of(st.text("ab \n\t'sdefn0159.,_()=éË漢字🦙"), st.sampled_from(CORPUS))


def made(model, tokens, types, **fields):
    keys = {"model": model, "tokens": tokens, "token_type": types, **fields}
    return Tokenizer(SimpleNamespace(metadata={f"tokenizer.ggml.{key}": value for key, value in keys.items()}))


@pytest.fixture(scope="module")
def bert():
    """The library's WordPiece with its "##", and its vocabulary in GGUF's form."""
    from tokenizers import BertWordPieceTokenizer

    model = BertWordPieceTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    model.train_from_iterator(CORPUS, vocab_size=600, show_progress=False, special_tokens=special)
    tokens = [token for token, _ in sorted(model.get_vocab().items(), key=lambda item: item[1])]
    named = [token if token in special else token[2:] if token.startswith("##") else "▁" + token for token in tokens]
    ids = {"cls_token_id": 2, "seperator_token_id": 3, "unknown_token_id": 1, "padding_token_id": 0}
    types = [CONTROL if token in special else NORMAL for token in tokens]
    return model, (named, types), ids


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_wordpiece(bert, text):
    """The ids of BERT's tokenizer, with its special tokens."""
    model, vocabulary, ids = bert
    tok = made("bert", *vocabulary, **ids)
    plain = tok.encode(text, add_special_tokens=False, parse_special_tokens=False)
    assert plain == model.encode(text, add_special_tokens=False).ids
    assert tok.encode(text, parse_special_tokens=False) == [2, *plain, 3]


def test_wordpiece_options(bert):
    """A cased vocabulary, one that keeps accents, words that are too long, special tokens in text, and back."""
    _, vocabulary, ids = bert
    tok = made("bert", *vocabulary, **ids)
    assert tok.separator_ids == [3] and tok.bos_token == "[CLS]" and tok.pad_token_id == 0
    assert tok.encode("[CLS]a[SEP]", False) == [2, *tok.encode("a", False), 3]
    assert tok.encode("DÉF", False) == tok.encode("def", False)
    cased = made("bert", *vocabulary, **ids, **{"normalizer.lowercase": False})
    assert cased.encode("DÉF", False) == [1] != cased.encode("def", False)
    kept = made("bert", *vocabulary, **ids, **{"normalizer.strip_accents": False})
    assert kept.encode("é", False) == [1] and kept.encode("D", False) == tok.encode("d", False)
    assert tok.encode("e" * 100, False) != [1] == tok.encode("e" * 101, False)
    assert tok.decode(tok.encode("def f(x)"), skip_special_tokens=True) == "def f ( x )"
    assert made("bert", ["[UNK]", "▁a"], [UNKNOWN, NORMAL], unknown_token_id=0).encode("a b") == [1, 0]


def test_without_an_unknown_token():
    """A vocabulary that has none cannot say what it does not know."""
    with pytest.raises(GGUFError, match="unknown_token_id is missing"):
        made("bert", ["▁a"], [NORMAL])


@pytest.fixture(scope="module")
def t5():
    """The library's unigram tokenizer as T5 has it, and its vocabulary in GGUF's form."""
    import json

    from tokenizers import SentencePieceUnigramTokenizer, Tokenizer, pre_tokenizers

    trainer = SentencePieceUnigramTokenizer()
    special = ["<pad>", "</s>", "<unk>"]
    trainer.train_from_iterator(CORPUS, vocab_size=600, show_progress=False, special_tokens=special, unk_token="<unk>")
    state = json.loads(trainer.to_str())
    vocabulary = state["model"]["vocab"]
    tokens, scores = zip(*vocabulary, strict=True)
    model = Tokenizer.from_str(trainer.to_str())
    model.normalizer = None
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    types = [CONTROL if token in special[:2] else UNKNOWN if token == "<unk>" else NORMAL for token in tokens]
    return model, (list(tokens), types), {"scores": np.array(scores, np.float32)}


@settings(max_examples=150, deadline=None)
@given(text=TEXTS.filter(lambda text: text.strip()))
def test_unigram(t5, text):
    """The library's ids for the same vocabulary, of the text behind a space; the end token comes last."""
    model, vocabulary, fields = t5
    tok = made("t5", *vocabulary, **fields)
    plain = tok.encode(text, add_special_tokens=False, parse_special_tokens=False)
    assert plain == model.encode(" " + text, add_special_tokens=False).ids
    assert tok.encode(text, parse_special_tokens=False) == [*plain, 1]


def test_unigram_options(t5):
    """Spaces that are merged, none put before, special tokens in text and as text, and back."""
    _, vocabulary, fields = t5
    tok = made("t5", *vocabulary, **fields)
    merged = made("t5", *vocabulary, **fields, remove_extra_whitespaces=True)
    assert merged.encode("  def   f ") == tok.encode("def f") != tok.encode("def   f")
    bare = made("t5", *vocabulary, **fields, add_space_prefix=False)
    assert bare.encode(" def") == tok.encode("def") and tok.decode(tok.encode("def f"), True) == "def f"
    assert tok.encode("a</s>b", False) == [*tok.encode("a", False), 1, *tok.encode("b", False)]
    assert 1 not in tok.encode("a</s>b", False, parse_special_tokens=False)
    assert tok.encode("漢字", False)[-1] == 2, "what no token has is unknown, once"
    pair = made("t5", *vocabulary, **fields, add_sep_token=True, seperator_token_id=1)
    assert pair.separator_ids == [1, 1] and tok.separator_ids == [1]
    with pytest.raises(GGUFError, match="precompiled_charsmap"):
        made("t5", *vocabulary, **fields, precompiled_charsmap=np.arange(9, dtype=np.uint8))


def test_ids_are_llama_cpps():
    """Every text of llama.cpp's own test data, to the id."""
    tok, cases = with_ids("bert-bge")
    for text, ids in cases:
        assert tok.encode(text, add_special_tokens=False, parse_special_tokens=False) == ids, text
