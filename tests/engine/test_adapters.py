"""Adapters by request: several in a batch, kept to a request's end, and apart in the prefix cache."""

import numpy as np
import pytest
from adapters import merge, random_lora
from golden import build

import rocforge as rf
from rocforge.load import load_model

EVERY = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output"]
GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    build(path, "llama-linear", "F32")
    return path


@pytest.fixture
def model(file):
    return load_model(rf.open_gguf(file), "cpu")


def finished(engine, between=lambda step: None):
    step = 0
    while engine.busy:
        engine.step()
        between(step := step + 1)


def generated(model, prompts, loras, tokens=8, between=lambda step: None):
    """Greedy tokens of requests that share steps."""
    with rf.Engine(model, cache_tokens=1024) as engine:
        requests = [
            engine.add(prompt, rf.SamplingParams(max_tokens=tokens, lora=lora, **GREEDY))
            for prompt, lora in zip(prompts, loras, strict=True)
        ]
        finished(engine, between)
    return [request.output for request in requests]


def test_each_request_has_its_own(file, model, rng):
    """In one batch, each text is that of a model with its adapter merged."""
    prompts = [rng.integers(0, 288, n).tolist() for n in (3, 40, 7, 12)]
    loras = {"a": random_lora(rng, model, EVERY, rank=4), "b": random_lora(rng, model, ["attn_v", "ffn_down"], rank=32)}
    model.adapters.update(loras)
    names = ["a", None, "b", "a"]
    together = generated(model, prompts, names)
    for prompt, name, output in zip(prompts, names, together, strict=True):
        alone = load_model(rf.open_gguf(file), "cpu")
        if name:
            merge(alone, loras[name])
        assert generated(alone, [prompt], [None]) == [output], name
    assert generated(model, prompts, [None] * 4) != together


def test_a_request_keeps_its_adapter(model, rng):
    """One that is taken away, or replaced, while a request runs, is that request's to its end; then it is gone."""
    prompt = [5, 40, 7]
    model.adapters["x"] = random_lora(rng, model, EVERY, size=1)
    (expected,) = generated(model, [prompt], ["x"])

    def replaced(step):
        if step == 3:
            del model.adapters["x"]
            model.adapters["x"] = random_lora(rng, model, EVERY, size=1)

    assert generated(model, [prompt], ["x"], between=replaced) == [expected]
    assert generated(model, [prompt], ["x"]) != [expected]
    del model.adapters["x"]
    assert not model._adapters.in_use() and not model._adapters.tables


def test_blocks_are_not_shared_across_adapters(model, rng):
    """A prompt in the cache is computed again with another adapter, and taken over with its own, or none again."""
    model.adapters["a"], model.adapters["b"] = (random_lora(rng, model, EVERY) for _ in range(2))
    prompt, found = list(range(70)), []
    with rf.Engine(model, cache_tokens=1024) as engine:
        for lora in (None, "a", "b", "a", None):
            request = engine.add(prompt, rf.SamplingParams(max_tokens=2, lora=lora, **GREEDY))
            finished(engine)
            found.append((request.num_cached_tokens, request.output))
        model.adapters["a"] = model.adapters["b"]  # under the same name another one
        request = engine.add(prompt, rf.SamplingParams(max_tokens=2, lora="a", **GREEDY))
        finished(engine)
    assert [count for count, _ in found] == [0, 0, 0, 64, 64] and request.num_cached_tokens == 0
    outputs = [output for _, output in found]
    assert outputs[1] == outputs[3] and outputs[0] == outputs[4] and request.output == outputs[2]


def test_an_unknown_adapter(model):
    """Is an error of the request's, before it is queued."""
    with rf.Engine(model, cache_tokens=64) as engine:
        with pytest.raises(ValueError, match=r"lora is 'x'; the model's adapters are none; model\.adapters\.load"):
            engine.add([1], rf.SamplingParams(lora="x"))
        assert not engine.busy
    with pytest.raises(TypeError, match="lora is 3; allowed are names of adapters"):
        rf.SamplingParams(lora=3)


def test_a_prompt_in_chunks(model, rng):
    """Chunks of a long prompt in several steps have their adapter in each."""
    model.adapters["x"] = random_lora(rng, model, EVERY)
    prompt = rng.integers(0, 288, 100).tolist()
    expected = int(np.argmax(model(np.array(prompt, np.int32), lora="x")[-1]))
    with rf.Engine(model, cache_tokens=256, max_batch_tokens=33) as engine:
        request = engine.add(prompt, rf.SamplingParams(max_tokens=1, lora="x", **GREEDY))
        finished(engine)
    assert request.output == [expected]
