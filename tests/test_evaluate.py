"""Perplexity, comparison and embeddings: by their definitions, and llama.cpp's figure."""

import math

import numpy as np
import pytest
from adapters import merge, random_lora
from golden import build, demo

import rocforge as rf
from rocforge.nn.passes import hidden_states
from rocforge.nn.transformer import Transformer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small random model in two formats, as files."""
    folder = tmp_path_factory.mktemp("models")
    for recipe in ("F32", "Q4_K_M"):
        build(folder / f"{recipe}.gguf", "gemma2", recipe)
    return [folder / f"{recipe}.gguf" for recipe in ("F32", "Q4_K_M")]


@pytest.fixture(scope="module")
def models(files) -> list[Transformer]:
    """The models."""
    return [rf.load(path, device="cpu")[0] for path in files]


@pytest.fixture(scope="module")
def in_f32(tmp_path_factory) -> Transformer:
    """The demo model in F32."""
    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    demo.build(path, "F32")
    return rf.load(path, device="cpu")[0]


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_perplexity_is_its_definition(models, rng):
    """exp of the mean of -ln p over the second half of each window."""
    model, ids = models[0], rng.integers(5, 280, 100).tolist()
    found = rf.perplexity(model, ids, n_ctx=16)
    expected = []
    for start in range(0, 96, 16):
        window = ids[start : start + 16]
        log_p = log_softmax(model(np.array(window)))
        expected.append([-log_p[place, window[place + 1]] for place in range(8, 15)])
    np.testing.assert_allclose(found.nll, expected, atol=1e-4)
    assert float(found) == found.value == pytest.approx(math.exp(np.mean(expected)), rel=1e-5)
    assert found.error == pytest.approx(found.value * np.std(expected) / math.sqrt(41))
    np.testing.assert_array_equal(found.tokens.ravel(), ids[:96])
    assert f"PPL = {found.value:.4f} +/- {found.error:.5f}" in repr(found)
    assert rf.perplexity(model, ids, n_ctx=16, chunks=2).nll.shape == (2, 7)


def test_comparison_is_its_definition(models, rng):
    """The divergence from the base's distributions and what follows of it; of a model from itself it is nothing."""
    base, model = models
    ids = rng.integers(5, 280, 40).tolist()
    found = rf.compare(model, base, ids, n_ctx=32)
    tokens = np.array(ids[:32])
    p, q = (log_softmax(each(tokens))[16:31] for each in (base, model))
    np.testing.assert_allclose(found.kl[0], (np.exp(p) * (p - q)).sum(axis=1), atol=1e-5)
    np.testing.assert_array_equal(found.same_top[0], p.argmax(axis=1) == q.argmax(axis=1))
    chosen = np.arange(15), ids[17:32]
    np.testing.assert_allclose(found.p_difference[0], np.exp(q[chosen]) - np.exp(p[chosen]), atol=1e-5)
    assert found.kl_mean > 0 and f"Mean    KLD: {found.kl_mean:10.6f}" in str(found)
    alone = rf.compare(base, base, ids, n_ctx=32)
    assert alone.kl_mean == 0 and alone.top_agreement == 1 and "100.00%" in str(alone)


def test_long_sequences_and_many(models, rng, monkeypatch):
    """In passes of any size: a sequence longer than one takes several, and short ones share theirs."""
    model = models[0]
    sequences = [rng.integers(5, 280, length).tolist() for length in (3, 40, 1, 7, 8, 90)]
    monkeypatch.setattr("rocforge.nn.passes.PASS_TOKENS", 16)
    parts = list(hidden_states(model, sequences))
    assert [part.sequence for part in parts] == [0, 1, 1, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5]
    for number, ids in enumerate(sequences):
        states = np.concatenate([part.hidden for part in parts if part.sequence == number])
        np.testing.assert_allclose(states, model.hidden(np.array(ids)), atol=2e-4)


def test_embeddings(models):
    """Pooled hidden states of each text, with a norm of one; alike alone and among others."""
    model, texts = models[0], ["def f(x):", "a", "a list of words, and more of them"]
    states = [model.hidden(np.array(model.tokenizer.encode(text))) for text in texts]
    for pooling, pool in (("mean", lambda s: s.mean(axis=0)), ("last", lambda s: s[-1]), ("cls", lambda s: s[0])):
        vectors = rf.embed(model, texts, pooling, normalize=False)
        assert vectors.shape == (3, model.config.dim) and vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, [pool(s) for s in states], atol=2e-4)
        one = rf.embed(model, texts[0], pooling)
        np.testing.assert_allclose(one, vectors[0] / np.linalg.norm(vectors[0]), atol=1e-5)
    np.testing.assert_allclose(rf.embed(model, model.tokenizer.encode("a")), rf.embed(model, ["a"])[0], atol=1e-5)
    assert rf.embed(model, []).shape == (0, model.config.dim)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: rf.perplexity(m, [5] * 20, n_ctx=64), "the text has 20 tokens, and a window n_ctx=64"),
        (lambda m: rf.perplexity(m, [5] * 20, n_ctx=3), "n_ctx is 3; allowed are 4 to"),
        (lambda m: rf.perplexity(m, [5] * 20, n_ctx=8, chunks=0), "chunks is 0"),
        (lambda m: rf.perplexity(m, [5, -1] * 20, n_ctx=8), "token id outside 0 to 287"),
        (lambda m: rf.embed(m, ["a", []]), "a text has 0 tokens"),
        (lambda m: rf.embed(m, "a", "max"), "pooling is 'max'; allowed are mean, last, cls, rank"),
        (lambda m: rf.embed(m, ["a", 3.5]), "a text is of type float; allowed are a str and a list of token ids"),
    ],
)
def test_wrong_arguments(models, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(models[0])


def test_other_vocabularies(models, in_f32):
    with pytest.raises(ValueError, match="vocabularies of 288 and 4096 tokens"):
        rf.compare(models[0], in_f32, "def f(x):")


LLAMA_CPP = "PPL = 14.6428 +/- 1.92364"
"""Of demo-F32.gguf and excerpt.txt, which `python -m golden.demo FOLDER` writes (from tests/): what libllama 0.5.0
gives on a CPU, with a float32 cache and without flash attention, for the windows that llama-perplexity makes, of which
each begins with the begin token. Of Q8_0 it gives more: there it rounds what it multiplies to 8 bits on a CPU."""


def test_equals_llama_cpp(in_f32):
    """To the digits that it prints, over two windows of the held-out text."""
    found = rf.perplexity(in_f32, demo.heldout(demo.EXCERPT), chunks=2)
    assert str(found).startswith(LLAMA_CPP)


def test_with_an_adapter(files, rng):
    """As if it were merged into the weights; the base of a comparison, the same model, is without."""
    model, merged = (rf.load(files[0], device="cpu")[0] for _ in range(2))
    ids, lora = rng.integers(5, 280, 40).tolist(), random_lora(rng, model, ["attn_q", "ffn_down"])
    model.adapters["x"] = lora
    merge(merged, lora)
    found, expected = rf.compare(model, model, ids, n_ctx=16, lora="x"), rf.compare(merged, model, ids, n_ctx=16)
    np.testing.assert_allclose(found.kl, expected.kl, rtol=1e-3, atol=1e-6)
    assert found.kl_mean > 1e-3 and rf.perplexity(model, ids, n_ctx=16, lora="x").value == found.model.value
    np.testing.assert_allclose(rf.embed(model, ids, lora="x"), rf.embed(merged, ids), rtol=1e-3, atol=1e-6)
