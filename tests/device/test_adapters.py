"""Adapters on a device: against the CPU, in captured steps, and as they come and go while an engine runs."""

import os

import numpy as np
import pytest
from adapters import merge, random_lora
from golden import build, relative_error

import rocforge as rf
from rocforge.load import load_model

pytestmark = pytest.mark.slow

EVERY = ["attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp"]
EVERY += ["token_embd", "output"]
TOKENS = np.array([5, 40, 7, 123, 9], np.int32)
SAME = 2e-2
"""Relative error of logits: of int8 activations."""
CAPTURES = pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")


@pytest.fixture(scope="module", params=["qwen2", "phi3", "mixtral"])
def both(request, tmp_path_factory):
    """A small random model on the CPU and on the device."""
    path = tmp_path_factory.mktemp("models") / "model.gguf"
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


def outputs(model, loras, tokens=6, between=lambda step: None, **options):
    """Greedy tokens, and the logits that were seen of each step, of a request for each adapter's name or None."""
    seen, step = [], 0
    with (
        model.output.observe(lambda y: seen.append(rf.asnumpy(y))),
        rf.Engine(model, cache_tokens=512, **options) as engine,
    ):
        requests = [
            engine.add([5, 40, 7, i], rf.SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, lora=lora))
            for i, lora in enumerate(loras)
        ]
        while engine.busy:
            engine.step()
            between(step := step + 1)
    return [request.output for request in requests], seen


@CAPTURES
def test_captured_steps(model, rng, monkeypatch):
    """One batch of requests with adapters of different ranks, and without, bit for bit as kernel by kernel; and each
    request's tokens are those that it gets alone."""
    model.adapters["a"] = random_lora(rng, model, EVERY, rank=8)
    model.adapters["b"] = random_lora(rng, model, ["attn_q", "ffn_down"], rank=24)
    loras = ["a", None, "b", "a"]
    captured = outputs(model, loras)
    monkeypatch.setenv("ROCFORGE_GRAPHS", "0")
    by_kernel = outputs(model, loras)
    assert captured[0] == by_kernel[0]
    for ours, theirs in zip(captured[1], by_kernel[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    first = captured[1][0]
    for row, lora in enumerate(loras):
        alone = rf.asnumpy(model(np.array([5, 40, 7, row], np.int32), lora=lora))[-1]
        assert relative_error(first[row], alone) < SAME


@CAPTURES
def test_adapters_that_come_and_go(model, rng):
    """An adapter of the same modules changes no graph; one of others, or the last that goes, captures steps anew."""
    params = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
    names = ["attn_q", "ffn_up", "output"]
    model.adapters["a"] = random_lora(rng, model, names, size=1)
    with rf.Engine(model, cache_tokens=512) as engine:

        def run(lora, steps=3):
            """Steps of one more request, to its end, and the graph of steps with one request."""
            request = engine.add([5, 40, 7], rf.SamplingParams(**params, lora=lora))
            for _ in range(steps):
                engine.step()
            (plan,) = (plan for shape, plan in engine._runner._plans.items() if not shape.mixed)
            engine.cancel_all()
            return plan._graph, request

        run("a", 5)
        graph, request = run("a")
        assert graph is not None
        model.adapters["b"] = random_lora(rng, model, names, size=1)
        again, other = run("b")
        assert again is graph and other.output != request.output
        del model.adapters["a"]
        assert run("b")[0] is graph and run(None)[0] is graph
        model.adapters["c"] = random_lora(rng, model, ["attn_output"])
        run("c", 5)
        anew = run("c")[0]
        assert anew is not graph and anew is not None
        del request, other  # which would keep their adapters
        del model.adapters["b"], model.adapters["c"]
        run(None, 5)
        assert run(None)[0] is not anew and not model._adapters.tables


def test_a_request_keeps_its_adapter(model, rng):
    """One that is taken away, or replaced, while a request runs, is that request's to its end."""
    lora, other = (random_lora(rng, model, EVERY) for _ in range(2))
    model.adapters["x"] = lora
    expected = outputs(model, ["x"], 8)[0]

    def replace(step):
        if step == 3:
            del model.adapters["x"]
            model.adapters["x"] = other

    assert outputs(model, ["x"], 8, replace)[0] == expected
    assert outputs(model, ["x"], 8)[0] != expected


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
