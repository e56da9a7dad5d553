"""On the ways of load, generate and serve CuPy compiles no kernel of its own: that would take hipcc and seconds."""

import os
import subprocess
import sys
from pathlib import Path

import golden
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]

EVERY_FORMAT = pytest.mark.skipif(
    "HIPSIM_ARCH" in os.environ and not os.environ.get("EVERY_TARGET"), reason="minutes of compiling; run each night"
)

TESTS = Path(__file__).resolve().parents[1]
SERVED = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from cupy.cuda import compiler
compiled = []
for name in ("_compile_with_cache_hip", "_compile_with_cache_cuda"):
    original = getattr(compiler, name)
    setattr(compiler, name, lambda source, *args, **more: compiled.append(source) or original(source, *args, **more))
import numpy as np
import rocforge as rf
from rocforge.load import load_model

SAMPLING = [
    dict(temperature=0, logprobs=2),
    dict(temperature=0.8, top_k=5, min_p=0.01),
    dict(temperature=0.7, top_p=0.9, presence_penalty=0.5, repetition_penalty=1.2),
    dict(temperature=1.0, logit_bias={{3: 2.0}}),
]


class Even:
    "Allows even tokens: a constraint, whose masks are made on the host."

    def bits(self):
        return np.full(100, 0x55555555, np.uint32)

    def accept(self, token):
        pass

    def close(self):
        pass


for fp16_weights in map(bool, map(int, sys.argv[2])):
    with rf.open_gguf(sys.argv[1]) as file:
        model = load_model(file, "gpu", fp16_weights=fp16_weights)
    tokens = np.random.default_rng(1).integers(0, model.config.vocabulary, 100).tolist()
    with rf.Engine(model, cache_tokens=2048, max_batch_tokens=72) as engine:
        for i, options in enumerate(SAMPLING):
            params = rf.SamplingParams(max_tokens=4, ignore_eos=True, seed=i, **options)
            engine.add(tokens[: 12 + 8 * i] + [i], params)  # prompts with one beginning, some cut in parts
        engine.add(tokens[:3], rf.SamplingParams(max_tokens=3, temperature=0), Even())
        while engine.busy:
            engine.step()
    edits = {{"blk.0.attn_output": 0.5, "blk.0": np.ones(model.config.dim)}}
    edits["blk.1"] = lambda y: rf.add(y, rf.scale(y, 2.0))
    with model.edit(edits), model.capture("blk.1.attn_pattern", "blk.0.attn_heads"):
        with rf.Engine(model, cache_tokens=64) as engine:
            engine.add(tokens[:3], rf.SamplingParams(max_tokens=4, temperature=0))
            while engine.busy:
                engine.step()
print(len(compiled), *compiled)
"""
"""Prompts in parts, mixed steps, decode steps as kernels and as graphs, every kind of sampling; edits and observers."""


@pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator takes minutes for a model")
@pytest.mark.parametrize(
    ("variant", "recipe", "fp16_weights"),
    [
        ("llama", "F32", "0"),
        pytest.param("llama-types", "MIXED", "01", marks=EVERY_FORMAT),
        ("qwen3moe", "Q4_K_M", "01"),
        ("gemma3", "Q8_0", "0"),
        ("gpt-oss", "Q8_0", "1"),
    ],
)
def test_no_kernel_of_cupys(tmp_path, variant, recipe, fp16_weights):
    """In a new process, where nothing has been compiled yet; without float16 weights, with them, or first one and then
    the other."""
    golden.build(tmp_path / "model.gguf", variant, recipe)
    command = [sys.executable, "-c", SERVED, str(tmp_path / "model.gguf"), fp16_weights]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HIPSIM_REPORT": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0"), done.stdout
