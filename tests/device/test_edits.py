"""Edits in an engine's steps on a device: those that only compute are captured, the others called at every step."""

import os

import cupy as cp
import numpy as np
import pytest
from golden import build, relative_error

import rocforge as rf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches"),
    pytest.mark.any_wave,
]

PROMPT = [5, 40, 7]
factor = 0.5


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A small random model on the device, and its tokenizer."""
    path = tmp_path_factory.mktemp("models") / "model.gguf"
    build(path, "qwen3", "Q8_0")
    return rf.load(path, "gpu")


def wavy(y):
    return y * (1 + cp.cos(y)) * factor


def stepped(model, changes, steps, between=lambda step: None):
    """The logits of each step of a request under edits, and whether its decode steps are a graph in the end."""
    seen, step = [], 0
    params = rf.SamplingParams(max_tokens=steps, temperature=0, ignore_eos=True)
    with model.edit(changes), model.output.observe(seen.append), rf.Engine(model, cache_tokens=96) as engine:
        engine.add(PROMPT, params)
        while engine.busy:
            engine.step()
            between(step := step + 1)
        (plan,) = (plan for shape, plan in engine._runner._plans.items() if not shape.mixed)
        return [rf.asnumpy(logits) for logits in seen], plan._graph is not None


def test_captured_edits(loaded, monkeypatch):
    """Numbers, arrays and functions of arrays are captured, and give what they give kernel by kernel.

    Half way another number is put where a function reads it: the steps from then on have that one.
    """
    model = loaded[0]
    direction = cp.linspace(-2, 2, model.config.dim, dtype=np.float32)
    changes = {
        "blk.0.attn_output": 0.5,
        "blk.0.ffn_norm": rf.asnumpy(direction),
        "blk.1.attn_heads": wavy,
        "blk.1.attn_pattern": lambda pattern: pattern * 0.9,
        "blk.1": lambda y, x, batch: cp.where(batch.positions[:, None] > 2, y + direction, x),
    }

    def turn_up(step):
        monkeypatch.setitem(globals(), "factor", 0.5 if step < 4 else 2.0)

    captured, is_graph = stepped(model, changes, 8, turn_up)
    monkeypatch.setenv("ROCFORGE_GRAPHS", "0")
    turn_up(0)
    by_kernel, _ = stepped(model, changes, 8, turn_up)
    assert is_graph and len(captured) == len(by_kernel) >= 8
    for ours, theirs in zip(captured, by_kernel, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    monkeypatch.undo()
    assert relative_error(captured[0], rf.asnumpy(model(np.array(PROMPT)))[-1:]) > 1e-2


def test_edits_with_effects(loaded, tmp_path):
    """Those that keep, count, print or read values are called at every step, in an Engine and in rf.generate."""
    model, tokenizer = loaded
    kept, counted, printed, read = [], {"calls": 0}, tmp_path / "printed", []

    def count(y):
        counted["calls"] += 1
        return y

    def show(y):
        with printed.open("a") as file:
            print("called", file=file)
        return y

    changes = {
        "blk.0.attn_output": lambda y: kept.append(y) or y,
        "blk.0.ffn_down": count,
        "blk.1.attn_output": show,
        "blk.1.ffn_down": lambda y: read.append(float(y[0, 0])) or y,
    }
    logits, is_graph = stepped(model, changes, 5)
    assert not is_graph and len(logits) >= 5
    assert len(kept) == counted["calls"] == printed.read_text().count("called") == len(read) == len(logits)
    assert len(set(read)) > 3 and len({float(y.sum()) for y in kept}) > 3, "each step's own"
    kept.clear()
    for change, calls in ((changes["blk.0.attn_output"], 5), (0.5, 0)):
        with model.edit({"blk.0.attn_output": change}):
            rf.generate(model, tokenizer, PROMPT, max_tokens=5, temperature=0, ignore_eos=True)
        assert len(kept) >= calls
    assert not any(module.edits for _, module in model.named_modules())


def test_patterns_in_captured_steps(loaded):
    """What is seen of attention while a request is written is what it is of the whole text at once."""
    model, seen, prompt = loaded[0], [], PROMPT * 10
    params = rf.SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    with model.blk[1].attn_pattern.observe(seen.append), rf.Engine(model, cache_tokens=96) as engine:
        request = engine.add(prompt, params)
        while engine.busy:
            engine.step()
    with model.capture("blk.1.attn_pattern") as whole:
        model(np.array([*prompt, *request.output], np.int32))
    expected = rf.asnumpy(whole["blk.1.attn_pattern"])
    assert seen[1].shape[2] == 32 and seen[-1].shape[2] == 64
    for position, pattern in enumerate(seen[1:6], len(prompt)):
        row = rf.asnumpy(pattern)[:, 0]
        assert relative_error(row[:, : position + 1], expected[:, position, : position + 1]) < 5e-2
        assert not row[:, position + 1 :].any()


def test_assigned_weights(loaded):
    """Arrays of any kind come to the device in the form of those before, with their float16 copies; and back again."""
    model = loaded[0]
    layer, norm, before = model.blk[0].attn_q, model.blk[0].attn_norm, rf.asnumpy(model(np.array(PROMPT)))
    packed, floats = layer.weight, rf.asnumpy(layer.weight)
    packed.fp16 = cp.asarray(floats.astype(np.float16))
    for value in (rf.quantize(floats, "Q8_0"), floats, floats.astype(np.float64).tolist(), packed):
        layer.weight = value
        assert str(getattr(layer.weight, "device", "")) in ("gpu:0", "<CUDA Device 0>")
        if isinstance(value, rf.QuantizedArray):
            assert layer.weight.planar and layer.weight.fp16.shape == floats.shape
        assert relative_error(rf.asnumpy(model(np.array(PROMPT))), before) < 1e-2
    weight = norm.weight.copy()
    norm.weight *= 2
    assert relative_error(rf.asnumpy(model(np.array(PROMPT))), before) > 1e-2
    norm.weight = rf.asnumpy(weight)
    np.testing.assert_array_equal(rf.asnumpy(model(np.array(PROMPT))), before)
