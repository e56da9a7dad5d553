"""On a device, too, every module of a user's is called, and captured steps show their observers what they compute."""

import os

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from golden import build, families, relative_error
from meddling import Wrapped, modules_of, replace, waves

import rocforge as rf
from rocforge.load import load_model
from rocforge.nn import Linear

pytestmark = pytest.mark.slow

SIMULATED = "HIPSIM_ARCH" in os.environ
VARIANTS = ["qwen3", "gpt-oss", "gemma4-experts"]
if not SIMULATED:
    VARIANTS += ["gemma3", "llama3", "mixtral", "phi3", "qwen2"]
SAME, MOVED = 1e-2, 1.5e-2
"""Relative errors: of int8 rounded once more or once less; and what `waves` moves logits by at least."""
TOKENS = np.array([22, 250, 132, 107], np.int32)
"""For which gpt-oss's router has no two experts so near that rounding decides between them."""


@pytest.fixture(scope="module", params=VARIANTS)
def model(request, tmp_path_factory):
    """A small random model on the device."""
    path = tmp_path_factory.mktemp("models") / "model.gguf"
    if request.param in families.FAMILIES:
        families.build(path, request.param, GGMLQuantizationType.Q8_0)
    else:
        build(path, request.param, "Q8_0")
    return load_model(rf.open_gguf(path), "gpu")


def logits_of(model):
    return rf.asnumpy(model(TOKENS))


@pytest.mark.any_wave
def test_every_module_is_called(model):
    """Each module, replaced, observed and edited: it is called once, and what it gives is what goes on; nothing of that
    stays."""
    fused = logits_of(model)
    for path in modules_of(model):
        module, seen = dict(model.named_modules())[path], []
        with module.observe(seen.append):
            assert relative_error(logits_of(model), fused) < SAME, path
        assert len(seen) == 1, path
        wrapped = Wrapped(module, waves)
        replace(model, path, wrapped)
        moved = logits_of(model)
        assert wrapped.calls == 1 and relative_error(moved, fused) > MOVED, path
        replace(model, path, module)
        with model.edit({path: waves}):
            assert relative_error(logits_of(model), moved) < SAME, path
    np.testing.assert_array_equal(logits_of(model), fused)


@pytest.mark.any_wave
def test_what_was_seen_stays(model):
    """Where a product of many tokens is added to the stream in place: not to a stream that somebody has seen."""
    tokens, seen = np.random.default_rng(3).integers(4, 250, 70).astype(np.int32), []

    def remember(x):
        seen.append((x, rf.asnumpy(x)))
        return x

    class Keeps(Wrapped):
        def forward(self, x, *rest):
            return super().forward(remember(x), *rest)

    def called(path, module):
        before = dict(model.named_modules())[path]
        replace(model, path, module(before))
        try:
            model(tokens)
        finally:
            replace(model, path, before)

    with model.blk[0].observe(remember), model.token_embd.observe(remember):
        called("blk.1", lambda block: Wrapped(block, remember))
    assert len(seen) == 3
    norms = [path for path in modules_of(model) if path.endswith((".attn_norm", ".ffn_norm", ".post_attention_norm"))]
    for path in norms:
        called(path, Keeps)
        with model.edit({path: lambda y, x: y + 0 * remember(x)}):
            model(tokens)
    assert len(seen) == 3 + 2 * len(norms) >= 7
    for x, before in seen:
        np.testing.assert_array_equal(rf.asnumpy(x), before)


def generated(model, tokens=6):
    """Greedy tokens, and the logits that were seen of each step."""
    seen = []
    params = rf.SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    with model.output.observe(seen.append), rf.Engine(model, cache_tokens=64) as engine:
        request = engine.add([5, 40, 7], params)
        while engine.busy:
            engine.step()
    return request.output, [rf.asnumpy(logits) for logits in seen]


def meddled(model, block=1):
    """A module replaced, one edited and one observed; what was seen of the last, and the edit."""
    seen, prefix = [], f"blk.{block}"
    replaced = Wrapped(dict(model.named_modules())[f"{prefix}.attn_q"], waves)
    replace(model, f"{prefix}.attn_q", replaced)
    edit = model.edit({f"{prefix}.attn_output": waves})
    edit.__enter__()
    model.blk[block].attn_norm.observers = (seen.append,)
    return seen, edit


def restored(model, edit, block=1):
    replace(model, f"blk.{block}.attn_q", model.blk[block].attn_q.inner)
    edit.__exit__(None, None, None)
    del model.blk[block].attn_norm.observers


@pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")
def test_captured_steps(model, monkeypatch):
    """Replayed graphs give each observer each step's values, bit for bit those of steps kernel by kernel."""
    if "attn_qkv" in str(model.blk[1]):
        pytest.skip("the module that is replaced is attn_q")
    plain = generated(model)
    seen, edit = meddled(model)
    try:
        captured, observed = generated(model), [rf.asnumpy(y) for y in seen]
        monkeypatch.setenv("ROCFORGE_GRAPHS", "0")
        seen.clear()
        by_kernel, expected = generated(model), [rf.asnumpy(y) for y in seen]
    finally:
        restored(model, edit)
    assert len(plain[1]) == len(captured[1]) == len(observed) == len(expected) >= 6
    assert captured[0] == by_kernel[0]
    for ours, theirs in zip(captured[1] + observed, by_kernel[1] + expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert relative_error(captured[1][0], plain[1][0]) > MOVED


@pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")
def test_changes_between_steps(model):
    """A module replaced while a request is written is called from a step soon after; others' graphs stay."""
    params = rf.SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    with rf.Engine(model, cache_tokens=64) as engine:
        engine.add([5, 40, 7], params)
        for _ in range(4):
            engine.step()
        (plan,) = (plan for shape, plan in engine._runner._plans.items() if not shape.mixed)
        graph = plan._graph
        assert graph is not None
        other = Linear(4, 4)
        other.weight = np.zeros((4, 4), np.float32)  # a change of another tree
        engine.step()
        assert plan._graph is graph
        wrapped = Wrapped(model.output)
        model.output = wrapped
        try:
            for _ in range(4):
                engine.step()
        finally:
            model.output = wrapped.inner
        assert wrapped.calls == 2 and plan._graph is not graph  # once kernel by kernel, once as it is captured
