"""Tokenizers of checkpoints: the ids that the tokenizers library gives, and GGUF's keys for what it says."""

import json
import struct

import numpy as np
import pytest
from checkpoint_files import VOCAB, tokenizer, write
from tokenizers import Tokenizer as Fast

from rocforge.checkpoints.vocabulary import tokenizer_metadata
from rocforge.errors import CheckpointError, UnsupportedModelError
from rocforge.text.tokenizer import Tokenizer
from rocforge.text.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

TEXT = "the band and <tool>then<|end|> it's  2024\n\n  Ünder"


class File:
    """What a Tokenizer takes for an open file."""

    def __init__(self, metadata):
        self.metadata = metadata


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "qwen2", "qwen2")


def test_byte_level(folder):
    """Tokens, merges, types, special ids and the template; ids past the tokenizer's are unused."""
    metadata = tokenizer_metadata(folder, "qwen2", VOCAB)
    assert metadata["tokenizer.ggml.pre"] == "qwen2" and metadata["tokenizer.ggml.model"] == "gpt2"
    types = metadata["tokenizer.ggml.token_type"]
    assert types[:262].tolist() == [NORMAL] * 262
    assert types[262:265].tolist() == [CONTROL, CONTROL, USER_DEFINED] and set(types[265:]) == {UNUSED}
    assert metadata["tokenizer.ggml.bos_token_id"] == 262 and metadata["tokenizer.ggml.eos_token_id"] == 263
    assert metadata["tokenizer.chat_template"] == "{{ messages[0].content }}"
    fast = Fast.from_file(str(folder / "tokenizer.json"))
    assert Tokenizer(File(metadata)).encode(TEXT) == fast.encode(TEXT).ids
    assert metadata["tokenizer.ggml.add_bos_token"] is metadata["tokenizer.ggml.add_eos_token"] is False


def test_a_begin_token(folder):
    """A template that puts one before a text."""
    data, token = tokenizer(), {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    single = [token, {"Sequence": {"id": "A", "type_id": 0}}]
    names = {"<|begin|>": {"id": "<|begin|>", "ids": [262], "tokens": ["<|begin|>"]}}
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": names}
    template["pair"] = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    data["post_processor"] = {"type": "Sequence", "processors": [data["post_processor"], template]}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    metadata = tokenizer_metadata(folder, "qwen2", VOCAB)
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert Tokenizer(File(metadata)).encode(TEXT) == Fast.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids


def test_ends_of_generation_config(folder):
    """Tokens that end a turn, which only generation_config.json lists."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [263, 264, 5]}))
    metadata = tokenizer_metadata(folder, "qwen2", VOCAB)
    assert [metadata[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "eom")] == [263, 264, 5]
    assert Tokenizer(File(metadata)).eog_token_ids >= {263, 264, 5}


def sentencepiece_json():
    """A SentencePiece model as a tokenizer.json: spaces are letters, what is unknown falls back to bytes."""
    data = tokenizer()
    letters = [*"▁abdehint", "▁t", "he", "▁the", "an", "and"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("a", "n"), ("an", "d")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters]
    data["added_tokens"] = [
        {**data["added_tokens"][0], "id": i, "content": text, "special": True} for i, text in enumerate(tokens[:3])
    ]
    data["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    data["pre_tokenizer"] = data["post_processor"] = None
    data["model"] = {
        "type": "BPE",
        "vocab": {text: i for i, text in enumerate(tokens)},
        "merges": [" ".join(pair) for pair in merges],
        "unk_token": "<unk>",
        "byte_fallback": True,
        "fuse_unk": True,
    }
    return data


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_as_json(folder, prefix):
    """Scores are the order of merges, so that the ids are those of the tokenizers library."""
    data = sentencepiece_json()
    if not prefix:
        data["normalizer"] = data["normalizer"]["normalizers"][1]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").unlink()
    metadata = tokenizer_metadata(folder, "llama", 280)
    types = metadata["tokenizer.ggml.token_type"]
    assert types[:4].tolist() == [UNKNOWN, CONTROL, CONTROL, BYTE] and metadata["tokenizer.ggml.model"] == "llama"
    ours = Tokenizer(File(metadata))
    fast = Fast.from_file(str(folder / "tokenizer.json"))
    for text in ("the band and then it hid", "a  é hat"):
        assert ours.encode(text, add_special_tokens=False) == fast.encode(text).ids


def field(number, value):
    """A field of a protocol buffers message: bytes, a float or an int under 128."""
    if isinstance(value, bytes):
        return bytes([number << 3 | 2, len(value)]) + value
    return (
        bytes([number << 3 | 5]) + struct.pack("<f", value) if isinstance(value, float) else bytes([number << 3, value])
    )


def piece(text, score, kind=None):
    return field(1, field(1, text.encode()) + field(2, score) + (b"" if kind is None else field(3, kind)))


def test_sentencepiece_model(folder):
    """Pieces with scores and types, tokens that were added, and no space before a text where the model says so."""
    pieces = [piece("<unk>", 0.0, 2), piece("<s>", 0.0, 3), piece("</s>", 0.0, 3), piece("<0x41>", 0.0, 6)]
    pieces += [piece("▁the", -1.5), piece("▁▁", -2.0, 4)]
    (folder / "tokenizer.model").write_bytes(b"".join(pieces) + field(3, field(3, 0)))
    added = {"5": {"content": "▁▁", "special": False}, "6": {"content": "<turn>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    metadata = tokenizer_metadata(folder, "llama", 8)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert tokens == ["<unk>", "<s>", "</s>", "<0x41>", "▁the", "  ", "<turn>", "[PAD7]"]
    assert types.tolist() == [UNKNOWN, CONTROL, CONTROL, BYTE, NORMAL, USER_DEFINED, CONTROL, UNUSED]
    assert metadata["tokenizer.ggml.scores"].tolist() == [0, 0, 0, 0, -1.5, -1000, -1000, -10000]
    assert metadata["tokenizer.ggml.add_space_prefix"] is False and metadata["tokenizer.ggml.model"] == "llama"


def test_malformed(folder):
    """No SentencePiece model, no JSON, another kind of tokenizer, an unknown pre-tokenizer: the file is named."""
    path, data = folder / "tokenizer.json", tokenizer()
    path.write_text(json.dumps({**data, "pre_tokenizer": {"type": "Whitespace"}}))
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json: its pre-tokenizer is unknown: \['Whitespace'\]"):
        tokenizer_metadata(folder, "llama", VOCAB)
    path.write_text(json.dumps({**data, "model": {"type": "Unigram", "vocab": []}}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is of type Unigram; supported are BPE and WordPiece"):
        tokenizer_metadata(folder, "llama", VOCAB)
    for text, problem in (
        ("{", "is no JSON"),
        ("[]", "holds a list"),
        ("{}", "the tokenizer cannot be read: KeyError"),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=problem):
            tokenizer_metadata(folder, "llama", VOCAB)
    for data in (b"", b"\x0a\xff\xff", b"\x0a" + b"\xff" * 12, b"\x0b\x01"):
        (folder / "tokenizer.model").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"tokenizer\.model is no SentencePiece model"):
            tokenizer_metadata(folder, "llama", VOCAB)


def test_types_are_those_of_files(folder):
    """Arrays have the types that llama.cpp reads."""
    metadata = tokenizer_metadata(folder, "qwen2", VOCAB)
    assert metadata["tokenizer.ggml.token_type"].dtype == np.int32
