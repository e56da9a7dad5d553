"""Every architecture against llama.cpp's logits and against float64 arithmetic; and the ways of running a model."""

import numpy as np
import pytest
from golden import BOUNDS, CASES, build, load, reference, relative_error
from golden.models import MODELS, UNRECORDED, prompt

import rocforge as rf
from rocforge.load import load_model
from rocforge.nn.batch import Batch, Chunk

EXACT = 1e-5
VARIANTS = sorted({variant for variant, _ in MODELS})


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """(variant, recipe) -> path and model, built once for this module."""
    folder, models = tmp_path_factory.mktemp("models"), {}

    def get(variant, recipe):
        if (variant, recipe) not in models:
            path = folder / f"{variant}-{recipe}.gguf"
            build(path, variant, recipe)
            models[variant, recipe] = path, load_model(rf.open_gguf(path), device="cpu")
        return models[variant, recipe]

    return get


@pytest.mark.parametrize("variant, recipe", CASES)
def test_logits(model_of, variant, recipe):
    """Prompt and greedy steps, to 2e-5 of llama.cpp in F32 and 8e-2 quantized, and to 1e-5 of float64 in both."""
    path, model = model_of(variant, recipe)
    golden = load(variant, recipe)
    logits = model(golden["tokens"])[golden["rows"]]
    assert logits.dtype == np.float32
    assert relative_error(logits, golden["logits"]) < BOUNDS[recipe]
    assert relative_error(logits, reference.logits(path, golden["tokens"])[golden["rows"]]) < EXACT


@pytest.mark.parametrize("variant, recipe", [case for case in MODELS if case[0] in UNRECORDED])
def test_logits_of_float64(model_of, variant, recipe):
    """Where llama.cpp's logits are not stored: to 1e-5 of float64."""
    path, model = model_of(variant, recipe)
    assert relative_error(model(prompt(variant)), reference.logits(path, prompt(variant))) < EXACT


def chunks_of(model, tokens, sizes):
    """Logits of one sequence, run in chunks of the given sizes over one cache."""
    cache, out, start = model.new_cache(4), [], 0
    for size in sizes:
        batch = Batch.of(cache, [Chunk(start, size, [3, 0, 2, 1])], all_logits=True)
        out.append(model(tokens[start : start + size], batch))
        start += size
    return np.concatenate(out)


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunked_and_cached_equal_whole(model_of, variant):
    """A prompt in chunks, and token by token from the cache, gives the logits of the whole, to 1e-5."""
    recipe = "F32" if (variant, "F32") in MODELS else "MIXED"
    _, model = model_of(variant, recipe)
    tokens = prompt(variant)[:40]
    whole = model(tokens)
    assert relative_error(chunks_of(model, tokens, [7, 16, 1, 16]), whole) < EXACT
    assert relative_error(chunks_of(model, tokens, [30] + [1] * 10), whole) < EXACT


@pytest.mark.parametrize("variant", VARIANTS)
def test_batched_equals_alone(model_of, rng, variant):
    """Sequences of different lengths, prompts and single tokens mixed, do not touch each other: to 1e-5."""
    recipe = "F32" if (variant, "F32") in MODELS else "MIXED"
    _, model = model_of(variant, recipe)
    sequences = [rng.integers(0, model.config.vocabulary, n) for n in (5, 33, 18)]
    alone = [model(s) for s in sequences]
    cache, tables = model.new_cache(5), [[0], [2, 4], [1]]
    first = Batch.of(cache, [Chunk(0, 17, tables[2])])
    model(sequences[2][:17], first)
    chunks = [Chunk(0, 5, tables[0]), Chunk(0, 33, tables[1]), Chunk(17, 1, tables[2])]
    logits = model(np.concatenate([sequences[0], sequences[1], sequences[2][17:]]), Batch.of(cache, chunks))
    for row, expected in zip(logits, alone, strict=True):
        assert relative_error(row, expected[-1]) < EXACT


def test_a_longer_context_takes_the_long_factors(model_of):
    """phi3 picks its rope factors by the context that is served."""
    path, _ = model_of("phi3", "F32")
    original = rf.open_gguf(path).metadata["phi3.rope.scaling.original_context_length"]
    short, long = (
        load_model(rf.open_gguf(path), device="cpu", context=n).blk[0].attn.rope for n in (original, original + 1)
    )
    assert not np.allclose(short.frequencies, long.frequencies)


def test_unknown_architecture(tmp_path):
    """The architecture is named, with those that are supported."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "rwkv5")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    with pytest.raises(rf.UnsupportedModelError, match=r"'rwkv5' is not supported; supported are afmoe, .*gpt-oss, "):
        load_model(rf.open_gguf(tmp_path / "m.gguf"))


@pytest.mark.parametrize("tokens", [[], [[1, 2]], np.zeros((1, 2), int), 3])
def test_tokens_must_be_flat(model_of, tokens):
    """Empty and two-dimensional tokens, and what is no sequence, are refused with their shape."""
    _, model = model_of("llama", "F32")
    with pytest.raises(ValueError, match="tokens of shape"):
        model(tokens)


@pytest.mark.parametrize("tokens", [[1.7, 2.2], ["a"], [True]])
def test_tokens_must_be_integers(model_of, tokens):
    """They are not rounded."""
    _, model = model_of("llama", "F32")
    with pytest.raises(TypeError, match=r"tokens are .*; allowed are integers"):
        model(tokens)


def test_text_is_not_tokens(model_of):
    """Text is told how it becomes tokens."""
    _, model = model_of("llama", "F32")
    with pytest.raises(TypeError, match=r"tokens is 'abc'; allowed are token ids: model\(tokenizer\.encode\(text\)\)"):
        model("abc")


def test_token_outside_the_vocabulary(model_of):
    """An id past the vocabulary is named."""
    _, model = model_of("llama", "F32")
    with pytest.raises(IndexError, match=str(model.config.vocabulary)):
        model([0, model.config.vocabulary])


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_that_are_wanted(model_of, rng, variant):
    """Of a batch in which one sequence wants its last logits, or none does, these are those of the whole, to 1e-5."""
    recipe = "F32" if (variant, "F32") in MODELS else "MIXED"
    _, model = model_of(variant, recipe)
    first, second = (rng.integers(0, model.config.vocabulary, n) for n in (9, 20))
    cache, both = model.new_cache(2), np.concatenate([first, second[:14]])
    for wanted in (False, True):
        chunks = [Chunk(0, 9, [0], wants_logits=wanted), Chunk(0, 14, [1], wants_logits=False)]
        logits = model(both, Batch.of(cache, chunks))
        assert logits.shape == (wanted, model.config.vocabulary)
    assert relative_error(logits[0], model(first)[-1]) < EXACT
    last = model(second[14:], Batch.of(cache, [Chunk(14, 6, [1])]))
    assert relative_error(last[0], model(second)[-1]) < EXACT
