"""RWKV World's tokenizer: the longest token at each place, as a trie finds it and as llama.cpp does."""

import inspect
import string
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.errors import GGUFError
from rocforge.text.longest_match import unescaped
from rocforge.text.tokenizer import Tokenizer
from rocforge.text.vocabulary import CONTROL, NORMAL, UNUSED

CORPUS = (inspect.getsource(inspect) + inspect.getsource(string)).encode()
LONGER = sorted({CORPUS[at : at + 1 + at % 7] for at in range(0, 20000, 13)} - {bytes([b]) for b in range(256)})
BYTES = [bytes([byte]) for byte in range(256)] + LONGER + ["漢".encode(), "漢字".encode(), "🦙".encode()[:3]]
WRITTEN = [repr(token)[2:-1] for token in BYTES]


def made(texts=WRITTEN, **fields):
    keys = {"model": "rwkv", "tokens": ["<s>", *texts, "[PAD9]"], **fields}
    keys["token_type"] = [CONTROL, *[NORMAL] * len(texts), UNUSED]
    return Tokenizer(SimpleNamespace(metadata={f"tokenizer.ggml.{key}": value for key, value in keys.items()}))


TOKENIZER = made()


def through_a_trie(text):
    """Ids as the published tokenizer has them: down a trie of bytes, back to the last token on the way."""
    trie = {}
    for id, token in enumerate(BYTES, start=1):
        node = trie
        for byte in token:
            node = node.setdefault(byte, {})
        node["id"] = id
    data, ids, at = text.encode(), [], 0
    while at < len(data):
        node, end, found = trie, at, None
        for i in range(at, len(data)):
            if data[i] not in node:
                break
            node = node[data[i]]
            found, end = (node["id"], i + 1) if "id" in node else (found, end)
        ids.append(found)
        at = end
    return ids


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text("ab \n\t'sdefn0159.,_()=éË漢字🦙\\x"), st.sampled_from(CORPUS.decode().split("\n\n"))))
def test_the_longest_token(text):
    """The ids of a trie; and back."""
    tok = TOKENIZER
    assert tok.encode(text) == through_a_trie(text)
    assert tok.decode(tok.encode(text)) == text


def test_ids_are_llama_cpps():
    """Of this vocabulary, as llama.cpp gave them: of two tokens of the same bytes the later; special ones; back."""
    text, wanted = "abcd\n\nab'<s>漢\\n[a[PAD9]", [259, 101, 257, 264, 261, 0, 262, 163, 263, 265, 266]
    letters = [rf"\x{byte:02x}" for byte in range(256)]
    tok = made(
        [*letters, r"\n\n", "ab", r"\x61bc", "abcde", r"\'", r"\xe6\xbc", r"\\n", r"\x61b", "[a"], bos_token_id=0
    )
    assert tok.encode(text) == wanted and tok.decode(wanted) == text
    assert tok.encode("<s>", parse_special_tokens=False) == [61, 116, 63]
    assert tok.decode(wanted, skip_special_tokens=True) == text.replace("<s>", "")


@pytest.mark.parametrize(
    "text, meaning",
    [
        (r"\x00\xff\t\r\n", b"\x00\xff\t\r\n"),
        (r"\\x41\\", b"\\x41\\"),
        (r"\'\"\é", "'\"é".encode()),
        ("漢\\", "漢".encode()),
        (r"\xE9", b"\xe9"),
    ],
)
def test_escapes(text, meaning):
    """As Python writes bytes."""
    assert unescaped(text) == meaning


def test_bytes_that_are_no_tokens():
    """They are the unknown token; a vocabulary without one is refused."""
    tok = made(["a", r"\xc3\xa9", "<unk>"], unknown_token_id=3)
    assert tok.encode("aéb漢") == [1, 2, 3, 3, 3, 3]
    with pytest.raises(GGUFError, match="lacks the byte 0, and there is no unknown_token_id"):
        made(["a"])
