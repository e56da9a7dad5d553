"""The demo model: on the card it computes and writes what it does on the CPU, and graphs change nothing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.arrays import asnumpy
from rocforge.engine.engine import Engine
from rocforge.load import load
from rocforge.nn.transformer import Transformer
from rocforge.ops.device.plan import MAX_TILE_TOKENS
from rocforge.ops.sampling import SamplingParams
from rocforge.selftest.check import Check, Error, Outcome, Sizes
from rocforge.selftest.weights import relative_error

PROMPT = "class Stack:\n"
NAME = "demo-11M-Q8_0.gguf"
INT8, HALF = 5e-2, 5e-3
"""Of logits: activations in int8, and in float16; what keys, values and products are rounded to adds up over layers."""
GAP = 0.3
"""How far below the CPU's likeliest token one may be, in standard deviations of its logits: a tie but for rounding."""


def demo_model() -> Path:
    """Where the demo model is: in the package (a wheel), or beside it (a checkout).

    Raises:
        FileNotFoundError: it is in neither.
    """
    package = Path(__file__).resolve().parent
    for path in (package / NAME, package.parents[1] / "examples" / "demo_model" / NAME):
        if path.exists():
            return path
    raise FileNotFoundError(f"no {NAME} in {package} or in examples/demo_model of a checkout")


def checks(sizes: Sizes) -> list[Check]:
    models = functools.cache(lambda: tuple(load(demo_model(), device) for device in ("cpu", "gpu")))
    few = tuning.current().int8_tokens
    counts = (few, 40, MAX_TILE_TOKENS + 16) if sizes.measured else (few,)
    return [
        *(Check(f"logits of {n} tokens", functools.partial(_logits, models, n)) for n in counts),
        Check("text, greedily", functools.partial(_text, models, sizes.generated)),
        Check("graphs and single launches", functools.partial(_graphs, models, sizes.generated)),
    ]


def _logits(models: Callable[[], Any], count: int, rng: np.random.Generator) -> Outcome:
    """The median over rows of their relative errors, against the CPU's, which rounds nothing."""
    (cpu, _), (gpu, _) = models()
    tokens = rng.integers(0, cpu.config.vocabulary, count)
    errors = [relative_error(*rows) for rows in zip(asnumpy(gpu(tokens)), cpu(tokens), strict=True)]
    return Outcome({"logits": Error(float(np.median(errors)), INT8 if count <= tuning.current().int8_tokens else HALF)})


def written(model: Transformer, prompt: list[int], tokens: int, **options: Any) -> list[int]:
    """The tokens that a model adds to a prompt."""
    with Engine(model, cache_tokens=len(prompt) + tokens + 1) as engine:
        request = engine.add(prompt, SamplingParams(max_tokens=tokens, ignore_eos=True, **options))
        while engine.busy:
            engine.step()
    return request.output


def _text(models: Callable[[], Any], tokens: int, rng: np.random.Generator) -> Outcome:
    """Each token is the likeliest by the CPU after those before it, or ties with that but for rounding."""
    (cpu, tokenizer), (gpu, _) = models()
    prompt = tokenizer.encode(PROMPT)
    output, expected = (written(model, prompt, tokens, temperature=0) for model in (gpu, cpu))
    logits = cpu(np.array(prompt + output))[len(prompt) - 1 : -1]
    gaps = (logits.max(1) - logits[np.arange(len(output)), output]) / logits.std()
    equal = next((i for i, (a, b) in enumerate(zip(output, expected, strict=True)) if a != b), tokens)
    return Outcome(
        {"behind the likeliest": Error(float(gaps.max()), GAP)}, note=f"first {equal} of {tokens} as the CPU's"
    )


def _graphs(models: Callable[[], Any], tokens: int, rng: np.random.Generator) -> Outcome:
    """Sampled tokens, from replayed graphs and from kernels launched one by one."""
    _, (gpu, _) = models()
    prompt, options = (
        rng.integers(0, gpu.config.vocabulary, 20).tolist(),
        {"temperature": 1.0, "seed": 1, "top_p": 0.95},
    )
    graphs = written(gpu, prompt, tokens, **options)
    with _without_graphs():
        single = written(gpu, prompt, tokens, **options)
    return Outcome({"tokens": Error(float(np.mean(np.array(graphs) != single)), 0.0)})


@contextmanager
def _without_graphs() -> Iterator[None]:
    os.environ["ROCFORGE_GRAPHS"] = "0"
    try:
        yield
    finally:
        del os.environ["ROCFORGE_GRAPHS"]
