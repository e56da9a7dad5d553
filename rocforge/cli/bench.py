"""`rocforge bench`: prefill and decode rates, in the terms of llama-bench.

Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/llama-bench. pp512 is a prompt of 512 random tokens,
tg128 is 128 tokens of decode from an empty context, pp512+tg128 one after the other; each runs once unmeasured first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from rocforge.cli.bench_results import Form, Measurement, Result, earlier_results, write
from rocforge.cli.errors import UsageError
from rocforge.cli.models import describe
from rocforge.cli.options import CacheTypeK, CacheTypes, CacheTypeV, Device, Fp16Weights, Switch, cache_types
from rocforge.engine.engine import Engine
from rocforge.selftest.figures import generation_seconds

Test = tuple[int, int]
"""Tokens of the prompt, and generated tokens."""


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="GGUF files, or hf:owner/repo[:quant].")],
    prompts: Annotated[
        list[str] | None, typer.Option("--n-prompt", "-p", metavar="N,...", help="Prompt tokens; default: 512.")
    ] = None,
    generations: Annotated[
        list[str] | None, typer.Option("--n-gen", "-n", metavar="N,...", help="Generated tokens; default: 128.")
    ] = None,
    pairs: Annotated[
        list[str] | None, typer.Option("-pg", metavar="PP,TG", help="A prompt, then generation; repeatable.")
    ] = None,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Repetitions of each test.")] = 5,
    batch: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Maximum tokens a step.")] = 512,
    form: Annotated[
        Form | None,
        typer.Option(
            "--output", "-o", help="Output format; default: a table on a terminal, else md.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Compare with the JSON of an earlier run, or with another MODEL.", show_default=False
        ),
    ] = None,
    device: Device = None,
    fp16_weights: Fp16Weights = Switch.auto,
    cache_type_k: CacheTypeK = None,
    cache_type_v: CacheTypeV = None,
) -> None:
    """Measure prefill and decode, as llama-bench does.

    Prints the mean of tokens per second ± the standard deviation.

    -p and -n take several sizes, separated by commas or by repeating the option; 0 skips that kind of test.
    """
    tests = _tests(prompts, generations, pairs)
    earlier = earlier_results(Path(compare)) if compare and compare.endswith((".json", ".jsonl")) else []

    def results(model: str) -> Iterator[Result]:
        types = cache_types(cache_type_k, cache_type_v)
        yield from _results(model, tests, repetitions, batch, device, fp16_weights, types)

    if compare and not earlier:
        earlier = [result.fields() for result in results(compare)]
    write((result for model in models for result in results(model)), form, earlier)


def _tests(prompts: list[str] | None, generations: list[str] | None, pairs: list[str] | None) -> list[Test]:
    """Sizes of the tests that the options ask for."""
    default = ([], []) if pairs else (["512"], ["128"])
    tests = [(size, 0) for size in _sizes("-p", default[0] if prompts is None else prompts)]
    tests += [(0, size) for size in _sizes("-n", default[1] if generations is None else generations)]
    for pair in pairs or []:
        sizes = _sizes("-pg", [pair])
        if len(sizes) != 2:
            raise UsageError(f"-pg is {pair!r}; allowed are two numbers of tokens, as in 512,128")
        tests.append((sizes[0], sizes[1]))
    tests = [test for test in tests if any(test)]
    if not tests:
        raise UsageError("-p and -n are 0, which leaves nothing to measure; allowed is one of them above 0")
    return tests


def _sizes(option: str, texts: list[str]) -> list[int]:
    words = [word for text in texts for word in text.split(",")]
    if wrong := [word for word in words if not word.strip().isdecimal()]:
        raise UsageError(f"{option} is {wrong[0]!r}; allowed are 0 or more tokens, separated by commas")
    return [int(word) for word in words]


def _results(
    name: str,
    tests: list[Test],
    repetitions: int,
    batch: int,
    device: str | None,
    fp16_weights: Switch,
    types: CacheTypes,
) -> Iterator[Result]:
    """Load a model and run its tests."""
    import rocforge as rf
    from rocforge.gguf.hub import resolve
    from rocforge.load import load_model

    longest = max(map(sum, tests))
    with rf.open_gguf(resolve(name)) as file:
        about = describe(file, name)
        model = load_model(file, device, None, sys.stderr.isatty(), fp16_weights.enabled, **types)
    if longest >= model.config.context:
        raise UsageError(f"{longest} tokens need a context of {longest + 1}; the model's is {model.config.context}")
    described, layers = rf.device_info(model.device), model.config.layers + 1
    with Engine(model, cache_tokens=longest + 2, max_batch_tokens=batch) as engine:
        for measurement in _measured(engine, tests, repetitions):
            yield Result(about, described, threads(), layers, batch, _types_of(engine), measurement)


def _types_of(engine: Engine) -> tuple[str, str]:
    """Of keys and of values in the KV cache; "" for a model that has none."""
    groups = engine.cache.paged if engine.cache else []
    keys, values = groups[0].state.rows_on(engine.device) if groups else (("", 0), ("", 0))
    return keys[0], values[0]


def _measured(engine: Engine, tests: list[Test], repetitions: int) -> Iterator[Measurement]:
    from tqdm import tqdm

    rng = np.random.default_rng()
    with tqdm(total=len(tests) * (repetitions + 1), leave=False, disable=not sys.stderr.isatty()) as bar:
        for prompt, generated in tests:
            seconds = []
            for _ in range(repetitions + 1):
                bar.set_description(Measurement(prompt, generated, ()).name)
                # the step of a prompt gives a token too: that of generation alone counts as none
                seconds.append(
                    generation_seconds(engine, rng, prompt or 1, generated + bool(prompt and generated) or 1)
                )
                bar.update()
            yield Measurement(prompt, generated, tuple(seconds[1:]))


def threads() -> int:
    """How many threads NumPy's products use: as the environment says, else one a processor."""
    said = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS")
    return int(said) if said and said.isdecimal() else len(os.sched_getaffinity(0))


COMMANDS = [bench]
