"""Encoders, and decoders that give embeddings: against llama.cpp's vectors; batches; and what encoders refuse."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from golden import encoders, relative_error
from golden.encoders import ENCODERS
from test_families import unpack

import rocforge as rf
from rocforge.imatrix import collect_imatrix
from rocforge.load import load_model
from rocforge.nn import layers
from rocforge.nn.pooling import pooling_of
from rocforge.ops import activation

EXACT, BOUND, ROUNDED, SCORES = 1e-5, 5e-5, 1e-4, 3e-4
ROUNDS = ("bert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "nomic-bert-moe")
"""Architectures with GELU, where a sum on the edge of two float16 numbers becomes the one here, the other there."""


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """name -> model in F32, built once for this module."""
    folder, models = tmp_path_factory.mktemp("encoders"), {}

    def get(name):
        if name not in models:
            encoders.build(folder / f"{name}.gguf", name)
            models[name] = load_model(rf.open_gguf(folder / f"{name}.gguf"), device="cpu")
        return models[name]

    return get


@pytest.fixture
def rounded_gelu(monkeypatch):
    """GELU as llama.cpp has it on the CPU, whose argument and result are float16 from -10 to 10."""
    exact = activation.gelu

    def gelu(x):
        rounded = exact(x.astype(np.float16).astype(np.float32)).astype(np.float16).astype(np.float32)
        return np.where(x <= -10, np.float32(0), np.where(x >= 10, x, rounded))

    monkeypatch.setattr(activation, "gelu", gelu)
    monkeypatch.setattr(layers, "gelu", gelu)


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors(model_of, rounded_gelu, name):
    """Texts in one batch, pooled as the file says, to 5e-5 of llama.cpp's, which has each alone; 1e-4 where it rounds,
    and 3e-4 of a single score, of which much has cancelled."""
    model, expected = model_of(name), encoders.load(name)
    if ENCODERS[name].metadata.get("classifier.output_labels"):
        expected = activation.softmax(expected)
    vectors = rf.embed(model, encoders.texts(name), normalize=False)
    assert vectors.dtype == np.float32 and vectors.shape == expected.shape
    bound = ROUNDED if ENCODERS[name].arch in ROUNDS else BOUND
    assert relative_error(vectors, expected) < (SCORES if vectors.shape[1] == 1 else bound)


@pytest.mark.parametrize("name", ENCODERS)
def test_alone(model_of, name):
    """A text's vector does not depend on what it shares a batch with, or on how much of that fits into a pass."""
    model, texts = model_of(name), encoders.texts(name)
    together = rf.embed(model, texts)
    for text, vector in zip(texts, together, strict=True):
        assert relative_error(rf.embed(model, text), vector) < EXACT
    with rf.Engine(model, max_batch_tokens=8) as engine:
        vectors, passes = engine.embed([text.tolist() for text in texts])
        assert sum(1 for _ in passes) >= len(texts)
    assert engine.pooling == pooling_of(model) and relative_error(vectors, together) < EXACT


@pytest.mark.parametrize("name", ["bert-ranks", "nomic-bert-moe", "modern-bert"])
def test_quantized(tmp_path, name):
    """Packed weights give what their values do, to 1e-5."""
    packed, values = tmp_path / "packed.gguf", tmp_path / "values.gguf"
    encoders.build(packed, name, T.Q4_0)
    unpack(packed, values)
    vectors = [rf.embed(load_model(rf.open_gguf(p), device="cpu"), encoders.texts(name)) for p in (packed, values)]
    assert relative_error(*vectors) < EXACT


def test_tokens_see_those_after_them(model_of):
    """The first hidden state changes with the last token, in a long text too, which takes one pass."""
    model = model_of("bert")
    ids = np.arange(100, dtype=np.int32)
    changed = np.append(ids[:-1], 5)
    assert relative_error(model.hidden(changed)[0], model.hidden(ids)[0]) > 1e-3
    whole = rf.embed(model, ids, "cls", normalize=False)
    with rf.Engine(model) as engine:
        vectors, passes = engine.embed([ids.tolist()])
        assert sum(1 for _ in passes) == 1
    np.testing.assert_allclose(vectors[0], rf.embed(model, ids), atol=1e-6)
    np.testing.assert_allclose(whole, model.hidden(ids)[0], atol=1e-5)


def test_generates_nothing(model_of):
    """Logits, generation and scores are refused in a sentence; a text as long as the context is taken, a longer not."""
    model = model_of("bert")
    with rf.Engine(model) as engine:
        refused = (
            lambda: model([1, 2, 3]),
            lambda: model.logits(np.zeros((1, 192), np.float32)),
            lambda: engine.add([1, 2, 3]),
            lambda: engine.score([[1, 2, 3]], 1),
        )
        for call in refused:
            with pytest.raises(ValueError, match="bert is an encoder: it has no logits, and generates nothing"):
                call()
        assert engine.cache_blocks == (0, 0) and engine.cache.nbytes == 0
        vectors, passes = engine.embed([[1] * 128])
        assert list(passes) and vectors.any()
        with pytest.raises(ValueError, match="the prompt has 129 tokens; the limit is 128"):
            engine.embed([[1] * 129])


def test_window_of_another_kind(tmp_path):
    """A decoder's window in a file that says that attention is not causal."""
    from golden.families import FAMILIES, Skeleton, metadata

    from rocforge.models import build_model

    family = FAMILIES["cohere2"]
    keys = {**metadata(family), "attention.causal": False}
    with pytest.raises(rf.UnsupportedModelError, match="where attention is not causal"):
        build_model(Skeleton(family, keys))


def test_importance(model_of):
    """What each matrix multiplies is collected of an encoder too."""
    from types import SimpleNamespace

    tokenizer = SimpleNamespace(encode=lambda text: [ord(c) % 200 for c in text], bos_token_id=None)
    matrix = collect_imatrix(model_of("nomic-bert-moe"), tokenizer, "some text " * 13, chunk=60)
    assert matrix.inputs["blk.0.attn_qkv.weight"].sums.all() and matrix.inputs["blk.1.ffn_up_exps.weight"].counts.any()


@pytest.mark.filterwarnings("ignore:context is 129")
def test_learnt_positions(model_of, tmp_path):
    """A context beyond them is refused; other models are warned of it alone."""
    encoders.build(tmp_path / "bert.gguf", "bert")
    with pytest.raises(ValueError, match="context is 129; allowed is up to 128, the positions that are learnt"):
        load_model(rf.open_gguf(tmp_path / "bert.gguf"), device="cpu", context=129)


def test_saved(model_of, tmp_path):
    """What is saved gives the same vectors."""
    model = model_of("bert-ranks")
    model.save(tmp_path / "saved.gguf")
    again = load_model(rf.open_gguf(tmp_path / "saved.gguf"), device="cpu")
    np.testing.assert_array_equal(*(rf.embed(m, encoders.texts("bert")) for m in (model, again)))
