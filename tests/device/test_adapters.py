"""Adapters on a device: against the CPU, in captured steps, and as they come and go while an engine runs."""

import os

import numpy as np
import pytest
from adapters import merge, random_lora
from gguf import GGMLQuantizationType
from golden import build, families, relative_error

import rocforge as rf
from rocforge.load import load_model

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]

EVERY = ["attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp"]
EVERY += ["token_embd", "output"]
TOKENS = np.array([5, 40, 7, 123, 9], np.int32)
GREEDY = {"temperature": 0, "ignore_eos": True}
SAME = 2e-2
"""Relative error of logits: of int8 activations."""
CAPTURES = pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")


@pytest.fixture(scope="module", params=["phi3", "mixtral", "olmo2", "gemma4-shared"])
def both(request, tmp_path_factory):
    """A small random model on the CPU and on the device."""
    path = tmp_path_factory.mktemp("models") / "model.gguf"
    if request.param in families.FAMILIES:
        families.build(path, request.param, GGMLQuantizationType.Q8_0)
    else:
        build(path, request.param, "Q8_0")
    return [load_model(rf.open_gguf(path), device) for device in ("cpu", "gpu")]


@pytest.fixture
def model(path):
    """A small random llama on the device."""
    return load_model(rf.open_gguf(path), "gpu")


def test_logits(both, rng):
    """Each kind of module is updated as merging the adapter into the weights updates it; else nothing changes."""
    host, model = both
    plain = rf.asnumpy(model(TOKENS))
    lora = random_lora(rng, host, EVERY)
    model.adapters["x"] = lora
    merged = merge(host, lora)(TOKENS)
    assert relative_error(rf.asnumpy(model(TOKENS, lora="x")), merged) < SAME
    assert relative_error(plain, merged) > 4 * SAME
    assert relative_error(rf.asnumpy(model(TOKENS)), plain) < SAME
    del model.adapters["x"]
    np.testing.assert_array_equal(rf.asnumpy(model(TOKENS)), plain)


def outputs(model, loras, tokens=4):
    """Greedy tokens, and the logits that were seen of each step, of a request for each adapter's name or None."""
    seen = []
    with (
        model.output.observe(lambda y: seen.append(rf.asnumpy(y))),
        rf.Engine(model, cache_tokens=256, max_requests=len(loras)) as engine,
    ):
        params = [rf.SamplingParams(max_tokens=tokens, lora=lora, **GREEDY) for lora in loras]
        requests = [engine.add([i], one) for i, one in enumerate(params)]
        while engine.busy:
            engine.step()
    return [request.output for request in requests], seen


@CAPTURES
def test_captured_steps(model, rng, monkeypatch):
    """One batch of requests with adapters of different ranks, and without, bit for bit as kernel by kernel; and each
    request's logits are those that it gets alone."""
    model.adapters["a"] = random_lora(rng, model, EVERY, rank=8)
    model.adapters["b"] = random_lora(rng, model, ["attn_q", "ffn_down"], rank=24)
    loras = ["a", None, "b"]
    captured = outputs(model, loras)
    monkeypatch.setenv("ROCFORGE_GRAPHS", "0")
    by_kernel = outputs(model, loras)
    assert captured[0] == by_kernel[0]
    for ours, theirs in zip(captured[1], by_kernel[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for row, lora in enumerate(loras):
        assert relative_error(captured[1][0][row], rf.asnumpy(model(np.array([row]), lora=lora))[0]) < SAME


@CAPTURES
def test_adapters_that_come_and_go(model, rng):
    """An adapter of the same modules changes no graph; one of others, or the last that goes, captures steps anew."""
    names = ["attn_q", "ffn_up", "output"]
    model.adapters["a"] = random_lora(rng, model, names, size=1)
    with rf.Engine(model, cache_tokens=64, max_requests=1) as engine:

        def run(lora):
            """A request's few steps, and their graph."""
            request = engine.add([5], rf.SamplingParams(max_tokens=3, lora=lora, **GREEDY))
            while engine.busy:
                engine.step()
            (plan,) = engine._runner._plans.values()
            return plan._graph, request

        graph, request = run("a")
        assert graph is not None
        model.adapters["b"] = random_lora(rng, model, names, size=1)
        again, other = run("b")
        assert again is graph and other.output != request.output
        del model.adapters["a"]
        assert run("b")[0] is graph and run(None)[0] is graph
        model.adapters["c"] = random_lora(rng, model, ["attn_output"])
        anew = run("c")[0]
        assert anew is not graph and anew is not None
        del request, other  # which would keep their adapters
        del model.adapters["b"], model.adapters["c"]
        assert run(None)[0] is not anew and not model._adapters.tables


def test_memory_is_freed(model, rng):
    """That of an adapter that is gone."""
    import cupy

    pool = cupy.get_default_memory_pool()
    model.adapters["x"] = random_lora(rng, model, EVERY)
    before = pool.used_bytes()
    for _ in range(3):
        model.adapters["x"] = random_lora(rng, model, EVERY)
    assert pool.used_bytes() <= before
    del model.adapters["x"]
    assert pool.used_bytes() < before
