"""The tokenizer gives llama.cpp's ids, gives text back unharmed, and streams it as early as it can."""

import heapq
import inspect
import pickle
import re
import string
import subprocess
import sys
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_vocabularies import with_ids

from rocforge.errors import GGUFError, UnsupportedModelError
from rocforge.text.tokenizer import Tokenizer
from rocforge.text.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED

CORPUS = inspect.getsource(inspect) + inspect.getsource(string)
TEXTS = st.one_of(st.text(), st.text("ab \n\t'sdefn0159.,_()=é▂漢🦙"), st.sampled_from(CORPUS.split("\n\n")))


def tokenizer(metadata, **changes):
    changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return Tokenizer(SimpleNamespace(metadata={**metadata, **changes}))


def trained(alphabet_of, **trainer_options):
    """Tokens and merges that the library's own trainer finds in the corpus, cut into words by `alphabet_of`."""
    import tokenizers

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = alphabet_of
    model.train_from_iterator([CORPUS], tokenizers.trainers.BpeTrainer(show_progress=False, **trainer_options))
    tokens = [token for token, _ in sorted(model.get_vocab().items(), key=lambda item: item[1])]
    return model, tokens


@pytest.fixture(scope="module")
def byte_level():
    """(the library's tokenizer, metadata) of a byte-level BPE of 600 tokens plus two special ones."""
    import json

    from tokenizers.pre_tokenizers import ByteLevel

    model, tokens = trained(
        ByteLevel(add_prefix_space=False), vocab_size=600, initial_alphabet=ByteLevel.alphabet(), special_tokens=[]
    )
    merges = [" ".join(merge) for merge in json.loads(model.to_str())["model"]["merges"]]
    types = [NORMAL] * len(tokens) + [CONTROL, USER_DEFINED]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, "<|endoftext|>", "<tool_call>"],
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": len(tokens),
    }
    return model, metadata


@pytest.fixture(scope="module")
def sentencepiece():
    """Metadata of a SentencePiece BPE: pieces with scores in the order they were learnt, byte fallback."""
    from tokenizers.pre_tokenizers import Metaspace

    _, pieces = trained(Metaspace(), vocab_size=600)
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": special + pieces,
        "tokenizer.ggml.scores": np.array([0.0] * len(special) + [-float(i) for i in range(len(pieces))], np.float32),
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces),
    }


@pytest.fixture(scope="module")
def characters():
    """Metadata of a BPE over characters: pieces and merges as the library finds them in the corpus, byte fallback."""
    import json

    from tokenizers.pre_tokenizers import Metaspace

    model, pieces = trained(Metaspace(prepend_scheme="never"), vocab_size=600)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<|channel>", "</s>", "<|tool_response>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    types = [CONTROL] * 5 + [USER_DEFINED] * 3 + [BYTE] * 256 + [NORMAL] * len(pieces)
    return {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": [*special, *bytes_, *pieces],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in json.loads(model.to_str())["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_space_prefix": False,
    }


def characters_reference(metadata, text):
    """BPE over characters as published: of all neighbours the pair of the first merge, the leftmost of equals."""
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    found = []
    for word in re.findall("[^\n]+|\n+", text.replace(" ", "▁")):
        symbols = list(word)
        while best := min(((ranks.get(pair, 1 << 30), i) for i, pair in enumerate(pairwise(symbols))), default=None):
            if best[0] == 1 << 30:
                break
            symbols[best[1] : best[1] + 2] = ["".join(symbols[best[1] : best[1] + 2])]
        for symbol in symbols:
            found += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return found


def sentencepiece_reference(metadata, text):
    """SentencePiece's algorithm as published: join the neighbours with the best score, the leftmost of equals."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = {token: i for i, token in enumerate(tokens) if metadata["tokenizer.ggml.token_type"][i] == NORMAL}
    scores = metadata["tokenizer.ggml.scores"]
    symbols: list[str | None] = list(("▁" + text.replace(" ", "▁")) if text else "")
    after = {i: i + 1 for i in range(len(symbols))}
    before = {i: i - 1 for i in range(len(symbols))}
    queue = []

    def push(left, right):
        if left >= 0 and right < len(symbols) and (id := ids.get(symbols[left] + symbols[right])) is not None:
            heapq.heappush(queue, (-scores[id], left, right, symbols[left], symbols[right]))

    for i in range(1, len(symbols)):
        push(i - 1, i)
    while queue:
        _, left, right, *texts = heapq.heappop(queue)
        if [symbols[left], symbols[right]] != texts or after[left] != right:
            continue
        symbols[left], symbols[right] = texts[0] + texts[1], None
        after[left] = after[right]
        before[after[right]] = left
        push(before[left], left)
        push(left, after[left])
    found = []
    for symbol in filter(None, symbols):
        found += [ids[symbol]] if symbol in ids else [tokens.index(f"<0x{byte:02X}>") for byte in symbol.encode()]
    return found


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"])
def test_ids_are_llama_cpps(name):
    """Every text of llama.cpp's own test data, to the id; and back to the text."""
    tok, cases = with_ids(name)
    for text, ids in cases:
        assert tok.encode(text, add_special_tokens=False, parse_special_tokens=False) == ids, text
        assert tok.decode(ids) == text


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_byte_level_ids_are_the_librarys(byte_level, text):
    """From GGUF metadata the same ids as from the tokenizer that the vocabulary was trained with."""
    model, metadata = byte_level
    assert tokenizer(metadata).encode(text, parse_special_tokens=False) == model.encode(text).ids


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(TEXTS, st.text("aest \n_=-.", max_size=60)).filter(lambda text: "▁" not in text))
def test_sentencepiece_ids_are_the_algorithms(sentencepiece, text):
    """The merges handed to the library act as SentencePiece's scores do."""
    tok = tokenizer(sentencepiece)
    wanted = sentencepiece_reference(sentencepiece, text)
    assert tok.encode(text, add_special_tokens=False, parse_special_tokens=False) == wanted


@settings(max_examples=100, deadline=None)
@given(text=st.one_of(TEXTS, st.text("aest \n_=-.", max_size=60)))
def test_character_ids_are_the_algorithms(characters, text):
    wanted = characters_reference(characters, text)
    assert tokenizer(characters).encode(text, add_special_tokens=False, parse_special_tokens=False) == wanted


LLAMA_CPPS = {
    ("hello hello", True): [2, 266, 265, 276, 277],
    ("a     hello\n\n\n\tb", True): [2, 263, 280, 277, 278, 270, 271, 264],
    ("é漢</s>", True): [2, 272, 237, 195, 169, 67, 54, 122, 69],
    ("<|turn>a<|channel> <|tool_response>", True): [2, 4, 263, 5, 269, 6],
    ("<|turn>a<|channel> <|tool_response>", False): [
        2,
        67,
        131,
        123,
        124,
        121,
        117,
        69,
        263,
        5,
        269,
        67,
        131,
        123,
        268,
        268,
        267,
        102,
        121,
        265,
        122,
        119,
        268,
        117,
        122,
        265,
        69,
    ],
    ("\n\n", True): [2, 278],
    ("heLlo▁ b<0x41>", True): [2, 266, 265, 83, 267, 268, 279, 264, 67, 55, 127, 59, 56, 69],
    ("", True): [2],
}
"""A text, and whether special tokens are parsed -> ids."""


def test_character_ids_are_llama_cpps():
    """The ids that llama.cpp gives with this vocabulary."""
    pieces = [*"abehlo▁\n\té", "▁h", "ll", "▁he", "llo", "▁hello", "\n\n", "▁▁", "▁▁▁▁", "</s>"]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<|channel>", "<|tool_response>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    metadata = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": [*special, *bytes_, *pieces],
        "tokenizer.ggml.token_type": [CONTROL] * 5 + [USER_DEFINED] * 2 + [BYTE] * 256 + [NORMAL] * len(pieces),
        "tokenizer.ggml.merges": ["▁▁ ▁▁", "▁he llo", "▁h e", "ll o", "▁ h", "l l", "▁ ▁", "\n \n"],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": False,
    }
    tok = tokenizer(metadata)
    for (text, parse), ids in LLAMA_CPPS.items():
        assert tok.encode(text, parse_special_tokens=parse) == ids, text
    assert tok.eog_token_ids == {1, 6}


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, special=st.booleans(), parse=st.booleans())
def test_round_trip(byte_level, sentencepiece, characters, text, special, parse):
    """Text comes back as it was, whatever is added or parsed (only byte-level BPE tells "▁" from a space)."""
    for metadata in (byte_level[1], sentencepiece, characters):
        tok = tokenizer(metadata, add_bos_token=False)
        expected = text if metadata is byte_level[1] else text.replace("▁", " ")
        begun = "<bos>" if special and metadata is characters else ""
        assert tok.decode(tok.encode(text, special, parse)) == begun + expected


@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_streaming_is_decoding(byte_level, sentencepiece, data, skip):
    """Any ids, valid UTF-8 or not: what the stream gives, joined, is decode; and only unfinished characters wait."""
    tok = tokenizer(data.draw(st.sampled_from([byte_level[1], sentencepiece])))
    low = st.integers(0, min(300, tok.vocab_size - 1))  # mostly single bytes
    ids = data.draw(st.lists(st.one_of(low, st.integers(0, tok.vocab_size - 1)), max_size=40))
    stream, text = tok.detokenizer(skip_special_tokens=skip), ""
    for i, id in enumerate(ids):
        text += stream.add(id)
        whole = tok.decode(ids[: i + 1], skip_special_tokens=skip)
        assert whole == text or (whole[: len(text)] == text and set(whole[len(text) :]) == {"�"})
    assert text + stream.finish() == tok.decode(ids, skip_special_tokens=skip)


def test_streaming_holds_back_no_more_than_a_character(sentencepiece):
    """An emoji appears with its last byte; a byte that spoils it frees U+FFFD at once."""
    tok = tokenizer(sentencepiece)
    byte = range(3, 259)
    stream = tok.detokenizer()
    assert [stream.add(byte[b]) for b in "🦙".encode()] == ["", "", "", "🦙"]
    assert [stream.add(byte[b]) for b in (0xF0, 0x9F, 0x41)] == ["", "", "�A"]
    assert [stream.add(byte[0xE2]), stream.finish()] == ["", "�"]


def test_invalid_utf8_decodes_to_replacement_characters(sentencepiece):
    """Bytes that are no text become U+FFFD, as Python's decoder has it."""
    tok = tokenizer(sentencepiece)
    data = b"a\xff\xc3(\xed\xa0\x80\xf4\x90\x80\x80b\xe2\x82"
    assert tok.decode([3 + byte for byte in data]) == data.decode("utf-8", "replace")


def test_lone_surrogates_are_replaced(byte_level):
    """A str that is no UTF-8 text (as JSON may hold) does not fail; a surrogate pair is its character."""
    tok = tokenizer(byte_level[1])
    assert tok.decode(tok.encode("a\ud83db")) == "a�b"
    assert tok.encode("\ud83e\udd99") == tok.encode("🦙")


def test_pickled(byte_level, sentencepiece):
    """A tokenizer goes to another process as its metadata, and is the same there."""
    for metadata in (byte_level[1], sentencepiece):
        tokenizer = Tokenizer(SimpleNamespace(metadata={**metadata, "tokenizer.chat_template": "x"}))
        copy = pickle.loads(pickle.dumps(tokenizer))
        text = "a <b> c\nd é" + "".join(tokenizer.special_tokens)
        assert copy.encode(text) == tokenizer.encode(text) and copy.eog_token_ids == tokenizer.eog_token_ids
        assert copy.chat_template == "x"


def test_special_tokens_are_parsed_or_plain_text(byte_level):
    """Control tokens only on request; user-defined tokens always; skip_special_tokens leaves out the first kind."""
    tok = tokenizer(byte_level[1])
    end, call = tok.vocab_size - 2, tok.vocab_size - 1
    text = "a<|endoftext|><tool_call>b"
    parsed, plain = tok.encode(text), tok.encode(text, parse_special_tokens=False)
    assert parsed.count(end) == parsed.count(call) == 1 and end not in plain and call in plain
    assert tok.decode(parsed) == tok.decode(plain) == text
    assert tok.decode(parsed, skip_special_tokens=True) == "a<tool_call>b"


def test_plain_text_never_becomes_a_control_token(sentencepiece):
    """Not even where the control token's score would win: "</s>" in a prompt must not end anything."""
    metadata = dict(sentencepiece)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "</", "s>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], NORMAL, NORMAL]
    metadata["tokenizer.ggml.scores"] = [*metadata["tokenizer.ggml.scores"], -1.0, -2.0]
    tok = tokenizer(metadata)
    assert 2 not in tok.encode("</s>", parse_special_tokens=False)
    assert tok.encode("</s>", add_special_tokens=False) == [2]


@pytest.mark.parametrize("prefix", [True, False])
def test_space_prefix(sentencepiece, prefix):
    """A space goes before text at the start and after a special token, and comes off again; a stream that continues
    text keeps its first space."""
    tok = tokenizer(sentencepiece, add_space_prefix=prefix)
    inner = tokenizer(sentencepiece, add_space_prefix=False)
    first, second = (inner.encode(" " * prefix + text, False) for text in ("def f", "return"))
    ids = tok.encode("def f</s>return")
    assert ids == [1, *first, 2, *second]
    assert tok.decode(ids) == "<s>def f</s>return"
    assert tok.decode(ids, skip_special_tokens=True) == "def freturn"
    space = inner.encode(" x", False)
    stream = tok.detokenizer(previous_id=first[-1])
    assert "".join(map(stream.add, space)) == " x"
    assert tok.decode(space) == ("x" if prefix else " x")


def test_remove_extra_whitespaces(sentencepiece):
    """tokenizer.ggml.remove_extra_whitespaces trims and collapses runs of spaces, as SentencePiece does."""
    tok = tokenizer(sentencepiece, remove_extra_whitespaces=True)
    assert tok.encode("  a   b ") == tokenizer(sentencepiece).encode("a b")


def test_begin_and_end_tokens(byte_level, sentencepiece):
    """add_bos_token and add_eos_token are honoured; absent, they mean what the tokenizer's kind means."""
    assert tokenizer(sentencepiece).encode("") == [1]
    assert tokenizer(sentencepiece, add_bos_token=False, add_eos_token=True).encode("") == [2]
    assert tokenizer(sentencepiece, add_eos_token=True).encode("", add_special_tokens=False) == []
    assert tokenizer(byte_level[1]).encode("") == []
    assert tokenizer(byte_level[1], pre="llama-bpe", bos_token_id=5).encode("") == [5]
    assert tokenizer(byte_level[1], pre="llama-bpe", bos_token_id=5, add_bos_token=False).encode("") == []


def test_ignore_merges(byte_level):
    """With llama-bpe a word that is a token is that token, though no merges lead to it."""
    _, metadata = byte_level
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist()
    metadata = {**metadata, "tokenizer.ggml.tokens": [*tokens, "zqxj"], "tokenizer.ggml.token_type": [*types, NORMAL]}
    whole = [len(tokens)]
    assert tokenizer(metadata, pre="llama-bpe", add_bos_token=False).encode("zqxj") == whole
    assert tokenizer(metadata, pre="gpt-2").encode("zqxj") != whole


def test_merges_of_what_is_no_token_are_passed_over(byte_level):
    """A merge whose parts or result are missing from the vocabulary changes nothing, nor one that is no pair."""
    model, metadata = byte_level
    good, longest = metadata["tokenizer.ggml.merges"], max(metadata["tokenizer.ggml.tokens"], key=len)
    for merges in (["Ġ 漢", "漢 字", "nopair", *good, "Z Z"], [f"{longest} {longest}", *good]):
        assert tokenizer(metadata, merges=merges).encode("def ZZ(self):") == model.encode("def ZZ(self):").ids


def test_phi3_special_tokens_swallow_white_space(sentencepiece):
    """Phi-3's added tokens do, <s> does not; in other architectures none does."""
    text = "</s> \n x<s> y"
    phi3 = tokenizer({**sentencepiece, "general.architecture": "phi3"})
    assert phi3.decode(phi3.encode(text, False)) == "</s>x<s> y"
    assert tokenizer(sentencepiece).decode(tokenizer(sentencepiece).encode(text, False)) == text


def test_characters_known_only_inside_tokens(sentencepiece):
    """A token is found though its characters are no tokens; such a character alone becomes its bytes."""
    metadata = dict(sentencepiece)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "漢字"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], NORMAL]
    metadata["tokenizer.ggml.scores"] = [*metadata["tokenizer.ggml.scores"], -900.0]
    tok = tokenizer(metadata, add_space_prefix=False)
    assert tok.encode("漢字", False) == [tok.vocab_size - 1]
    assert tok.encode("漢", False) == [3 + byte for byte in "漢".encode()]


def test_without_byte_tokens_unknown_text_is_the_unknown_token():
    """SentencePiece without byte fallback."""
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "▁a"],
        "tokenizer.ggml.scores": [0, 0, 0, -3, -2, -1],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, NORMAL, NORMAL, NORMAL],
    }
    assert tokenizer(metadata).encode("a漢字a") == [1, 5, 0, 4]


def test_tokens_that_are_not_utf8(byte_level):
    """The reader gives such tokens' bytes as lone surrogates; they decode to these bytes."""
    _, metadata = byte_level
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist()
    raw = b"\xff<".decode("utf-8", "surrogateescape")
    tok = tokenizer(
        {**metadata, "tokenizer.ggml.tokens": [*tokens, raw], "tokenizer.ggml.token_type": [*types, NORMAL]}
    )
    assert tok.decode([len(tokens)]) == "�<"
    assert tok.decode(tok.encode("plain")) == "plain"


def test_end_of_generation_tokens(byte_level):
    """Those the metadata names and the well-known ones; gpt-oss's <|end|> closes a message, not the answer."""
    _, metadata = byte_level

    def ends(*names, **fields):
        tokens = [*metadata["tokenizer.ggml.tokens"][:300], *names]
        changed = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": 7}
        tok = tokenizer({**metadata, **changed}, **fields)
        return {tokens[id] for id in tok.eog_token_ids} - {tokens[7]}, tok

    assert ends("<|im_end|>", "<|end|>", "other")[0] == {"<|im_end|>", "<|end|>"}
    assert ends("a", "b", "c", eot_token_id=300, eom_token_id=302)[0] == {"a", "c"}
    harmony, tok = ends("<|return|>", "<|call|>", "<|end|>", "<|channel|>")
    assert harmony == {"<|return|>", "<|call|>"}
    assert tok.decode([302, 303, 300], skip_special_tokens=True) == "<|end|><|channel|>"


def test_attributes(byte_level, sentencepiece):
    """Sizes and ids; SentencePiece's usual ids where the file names none, and None where there is none."""
    tok = tokenizer(sentencepiece)
    assert (tok.unk_token_id, tok.bos_token_id, tok.eos_token_id, tok.pad_token_id) == (0, 1, 2, None)
    assert tok.eog_token_ids == frozenset({2})
    assert tok.vocab_size == len(sentencepiece["tokenizer.ggml.tokens"])
    assert tokenizer(byte_level[1]).bos_token_id is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"model": "hybriddna"},
            UnsupportedModelError,
            "'hybriddna'; supported are bert, gemma4, gpt2, llama, plamo2, rwkv, t5",
        ),
        ({"model": None}, UnsupportedModelError, "supported are bert, gemma4, gpt2, llama, plamo2, rwkv, t5"),
        ({"pre": "martian"}, UnsupportedModelError, r"'martian'; supported are .*llama-bpe.*qwen2"),
        ({"tokens": None}, GGUFError, "tokenizer.ggml.tokens"),
        ({"tokens": []}, GGUFError, "tokenizer.ggml.tokens"),
        ({"tokens": [1, 2]}, GGUFError, "tokenizer.ggml.tokens"),
        ({"merges": None}, GGUFError, "tokenizer.ggml.merges"),
        ({"token_type": [1, 1]}, GGUFError, "token_type is .*; allowed are arrays of 602, .* not of 2"),
        ({"token_type": 3}, GGUFError, "token_type is 3; allowed are arrays of integers"),
        ({"bos_token_id": "x"}, GGUFError, "bos_token_id is 'x'; allowed are integers"),
        ({"add_bos_token": [1]}, GGUFError, r"add_bos_token is \[1\]; allowed are true and false"),
        ({"model": ["gpt2"]}, GGUFError, r"model is \['gpt2'\]; allowed are strings"),
        ({"merges": [1.0]}, GGUFError, r"merges is \[1.0\]; allowed are arrays of strings"),
        ({"pre": 7}, GGUFError, "pre is 7; allowed are strings"),
        ({"add_bos_token": True}, GGUFError, "no tokenizer.ggml.bos_token_id"),
    ],
)
def test_bad_metadata_is_named(byte_level, changes, error, message):
    """What is missing, wrong or unknown is in the message, with what is known."""
    with pytest.raises(error, match=message):
        tokenizer(byte_level[1], **changes)


def test_vocabularies_that_would_take_for_ever(sentencepiece):
    """Tokens of thousands of lengths have millions of ways to join, and such control tokens are looked for at each
    character: both are refused, at once."""
    lengths = ["a" * length for length in range(2, 2000)]
    tokens = [*sentencepiece["tokenizer.ggml.tokens"], *lengths]
    scores = [*sentencepiece["tokenizer.ggml.scores"].tolist(), *[0.0] * len(lengths)]
    types = sentencepiece["tokenizer.ggml.token_type"]
    for kind, message in ((NORMAL, "lengths: too many"), (CONTROL, "at most 1024 characters, not of 1999")):
        start = time.process_time()
        with pytest.raises(GGUFError, match=message):
            tokenizer(sentencepiece, tokens=tokens, scores=scores, token_type=[*types, *[kind] * len(lengths)])
        assert time.process_time() - start < 5


def test_special_token_texts(byte_level, sentencepiece):
    """Under Hugging Face's names, None where the file has none; `repr` shows those it has; `len` is the size."""
    tok = tokenizer(sentencepiece)
    assert (tok.unk_token, tok.bos_token, tok.eos_token, tok.pad_token) == ("<unk>", "<s>", "</s>", None)
    assert tok.special_tokens_map == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert len(tok) == tok.vocab_size
    tok = tokenizer(byte_level[1])
    assert repr(tok) == "Tokenizer(gpt2, vocab_size=602, eos_token='<|endoftext|>')"
    assert tok.bos_token is None


@settings(max_examples=50, deadline=None)
@given(text=TEXTS)
def test_tokens_and_ids(byte_level, sentencepiece, text):
    """Tokens as the vocabulary writes them are the ids' and give them back; their texts make up the text."""
    for metadata in (byte_level[1], sentencepiece):
        tok = tokenizer(metadata, add_space_prefix=False)
        ids, tokens = tok.encode(text), tok.tokenize(text, add_special_tokens=True)
        assert tokens == tok.convert_ids_to_tokens(ids) and tok.convert_tokens_to_ids(tokens) == ids
        assert [tok.get_vocab()[token] for token in tokens] == ids
        assert tok.convert_ids_to_tokens(np.array(ids, int), skip_special_tokens=True) == tok.tokenize(
            text.replace("</s>", "")
        )
        joined = "".join(tok.to_str_tokens(ids))
        assert joined == tok.decode(ids) or "\ufffd" in joined


def test_call(byte_level):
    """One text gives a list of ids, several lists, arrays where asked for; padding and truncation to a length."""
    tok = tokenizer(byte_level[1])
    texts = ["def f(x):", "a", ""]
    ids = [tok.encode(text) for text in texts]
    end, longest = tok.eos_token_id, len(ids[0])
    assert tok(texts[0]) == {"input_ids": ids[0], "attention_mask": [1] * longest}
    assert tok(texts).input_ids == tok(iter(texts))["input_ids"] == ids
    padded = tok(texts, padding=True, return_tensors="np")
    assert padded.input_ids.shape == (3, longest) and padded.input_ids.dtype == np.int64
    assert padded.input_ids[1].tolist() == [*ids[1], *[end] * (longest - 1)]
    assert padded.attention_mask.sum(1).tolist() == [longest, 1, 0]
    assert tok(texts[0], return_tensors="np").input_ids.shape == (1, longest)
    assert tok(texts, truncation=True, max_length=2).input_ids == [ids[0][:2], ids[1], []]
    assert len(tok("a", padding="max_length", max_length=7).input_ids) == 7
    assert tok([]).input_ids == []
    ending = tokenizer(byte_level[1], add_eos_token=True)
    assert ending(texts[0], truncation=True, max_length=3).input_ids == [*ids[0][:2], end]


def test_decoding_of_several(byte_level):
    """batch_decode takes lists and arrays; decode one id, too."""
    tok = tokenizer(byte_level[1])
    ids = tok.encode("def f(x):")
    assert tok.batch_decode([ids, np.array(ids), []]) == ["def f(x):", "def f(x):", ""]
    assert tok.decode(ids[0]) == tok.decode(np.int64(ids[0])) == tok.to_str_tokens(ids)[0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda tok: tok(5), TypeError, "text is 5; allowed are a str, or several"),
        (lambda tok: tok([1, 2]), TypeError, "text must be a str, not int"),
        (lambda tok: tok("x", return_tensors="pt"), ValueError, "return_tensors is 'pt'; allowed are \"np\""),
        (lambda tok: tok(["a", "def f"], return_tensors="np"), ValueError, "pass padding=True"),
        (lambda tok: tok("x", padding="left"), ValueError, "padding is 'left'; allowed are"),
        (lambda tok: tok("x", padding="max_length"), ValueError, "needs max_length"),
        (lambda tok: tok("x", truncation=True), ValueError, "needs max_length"),
        (lambda tok: tok.encode(["a"]), TypeError, r"not list; tokenizer\(texts\) takes several"),
        (lambda tok: tok.decode("ab"), TypeError, "token ids hold 'ab'; allowed are integers"),
        (lambda tok: tok.decode([[1]]), TypeError, r"hold \[1\]; .* batch_decode takes several"),
        (lambda tok: tok.decode(np.array([1.5])), TypeError, "hold 1.5; allowed are integers"),
        (lambda tok: tok.convert_ids_to_tokens(9999), ValueError, "9999 is outside the vocabulary"),
        (lambda tok: tok.convert_tokens_to_ids(["漢"]), ValueError, "'漢' is not in the vocabulary; tokenize"),
        (lambda tok: tok.apply_chat_template("hi"), TypeError, "messages is 'hi'; allowed is a list"),
        (lambda tok: tok.apply_chat_template([], return_tensors="pt"), TypeError, "takes no 'return_tensors'"),
        (lambda tok: Tokenizer("model.gguf"), TypeError, "allowed is an open file"),
    ],
)
def test_usual_mistakes(byte_level, call, error, message):
    """Each is named, with what is allowed."""
    with pytest.raises(error, match=message):
        call(tokenizer(byte_level[1]))


def test_bad_arguments(byte_level):
    """Ids outside the vocabulary and text that is no str are named."""
    tok = tokenizer(byte_level[1])
    for id in (-1, tok.vocab_size):
        with pytest.raises(ValueError, match=f"token id {id} is outside the vocabulary of {tok.vocab_size} tokens"):
            tok.decode([id])
    with pytest.raises(TypeError, match="not bytes"):
        tok.encode(b"x")


def test_import_does_not_load_the_libraries():
    """tokenizers and jinja2 cost nothing until they are used."""
    code = "import sys, rocforge.text.tokenizer; print({'tokenizers', 'jinja2'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
