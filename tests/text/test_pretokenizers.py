"""Each pre-tokenizer cuts text as the models that use it were trained to."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.text.bpe import byte_of_char
from rocforge.text.pretokenizers import PRE_TOKENIZERS
from rocforge.text.tokenizer import Tokenizer

TEXTS = st.one_of(st.text(), st.text("aB \n\t'sdefn0159.,_()=é▂漢ไ🦙"))
BYTES = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": list(byte_of_char()),
    "tokenizer.ggml.merges": [],
    "tokenizer.ggml.add_bos_token": False,
}


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
def test_every_pre_tokenizer_keeps_the_text(pre, text):
    """No expression loses a character."""
    tok = Tokenizer(SimpleNamespace(metadata={**BYTES, "tokenizer.ggml.pre": pre}))
    assert tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "I'll 1234x  ?!", ["I", "'ll", " 1234", "x", " ", " ?!"]),
        ("llama-bpe", "I'LL 1234x", ["I", "'LL", " ", "123", "4", "x"]),
        ("qwen2", "1234 (a)\n\n", ["1", "2", "3", "4", " (", "a", ")\n\n"]),
        ("smollm", "12 ab", ["1", "2", " ab"]),
        ("tekken", "camelCase'll 12/\n", ["camel", "Case", "'ll", " ", "1", "2", "/\n"]),
        ("gpt-4o", "camelCase'LL 1234", ["camel", "Case'LL", " ", "123", "4"]),
        ("deepseek-llm", " Äö漢字 123\n", [" Äö", "漢字", " ", "123", "\n"]),
        ("deepseek-v3", "x=1234漢", ["x", "=", "123", "4", "漢"]),
        ("falcon", "a,b 12345", ["a", ",", "b", " ", "123", "45"]),
        ("default", "a+b 12345", ["a", "+", "b", " ", "123", "45"]),
    ],
)
def test_pre_tokenizers_cut_where_the_models_did(pre, text, words):
    """The published expressions in action: contractions, digits, case, scripts, line ends."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in PRE_TOKENIZERS[pre].regexes]
    assert [word for word, _ in pre_tokenizers.Sequence(splits).pre_tokenize_str(text)] == words
