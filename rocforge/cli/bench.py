"""`rocforge bench`: prefill and decode rates, in the terms of llama-bench.

Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/llama-bench. pp512 is a prompt of 512 random tokens,
tg128 is 128 tokens of decode from an empty context; both run once unmeasured first.
"""

from __future__ import annotations

import enum
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

from rocforge import __version__
from rocforge.cli.errors import UsageError
from rocforge.cli.models import ModelFile, describe
from rocforge.cli.options import Device, Fp16Weights, Model, Switch
from rocforge.cli.output import binary_size, count, write_json
from rocforge.engine.engine import Engine
from rocforge.selftest.figures import generation_seconds


class Form(str, enum.Enum):
    """How the results are written."""

    markdown = "md"
    json = "json"


@dataclass(frozen=True)
class Measurement:
    """One test: its sizes in tokens, and the seconds of each repetition."""

    prompt: int
    generated: int
    seconds: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"tg{self.generated}" if self.generated else f"pp{self.prompt}"

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [(self.generated or self.prompt) / seconds for seconds in self.seconds]

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """Half the interquartile range of the rates."""
        if len(self.rates) == 1:
            return 0.0
        low, _, high = statistics.quantiles(self.rates, n=4, method="inclusive")
        return (high - low) / 2


def bench(
    model: Model,
    prompts: Annotated[
        list[int] | None, typer.Option("--n-prompt", "-p", help="Prompt tokens; repeatable; default: 512.")
    ] = None,
    generations: Annotated[
        list[int] | None, typer.Option("--n-gen", "-n", help="Generated tokens; repeatable; default: 128.")
    ] = None,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Repetitions of each test.")] = 5,
    batch: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Maximum tokens a step.")] = 512,
    form: Annotated[Form, typer.Option("--output", "-o", help="Output format.")] = Form.markdown,
    device: Device = None,
    fp16_weights: Fp16Weights = Switch.auto,
) -> None:
    """Measure prefill and decode, as llama-bench does.

    Prints the median of tokens per second, and half the interquartile range.

    -p 0 and -n 0 skip that kind of test.
    """
    import rocforge as rf
    from rocforge.gguf.hub import resolve
    from rocforge.load import load_model

    tests = [(size, 0) for size in (prompts or [512]) if size] + [(0, size) for size in (generations or [128]) if size]
    if not tests or any(size < 0 for test in tests for size in test):
        raise UsageError("-p and -n must be 0 or more tokens, and not all 0")
    longest = max(map(max, tests))
    with rf.open_gguf(resolve(model)) as file:
        about = describe(file, model)
        loaded = load_model(file, device, None, sys.stderr.isatty(), fp16_weights.enabled)
    if longest >= loaded.config.context:
        raise UsageError(f"{longest} tokens need a context of {longest + 1}; the model's is {loaded.config.context}")
    with Engine(loaded, cache_tokens=longest + 1, max_batch_tokens=batch) as engine:
        results = list(_measured(engine, tests, repetitions))
    if form is Form.json:
        write_json([_fields(about, loaded.device, batch, result) for result in results])
    else:
        _write_markdown(about, loaded.device, results)


def _measured(engine: Engine, tests: list[tuple[int, int]], repetitions: int) -> Iterator[Measurement]:
    from tqdm import tqdm

    rng = np.random.default_rng()
    with tqdm(total=len(tests) * (repetitions + 1), desc="measuring", disable=not sys.stderr.isatty()) as bar:
        for prompt, generated in tests:
            seconds = []
            for _ in range(repetitions + 1):
                seconds.append(generation_seconds(engine, rng, prompt or 1, generated or 1))
                bar.update()
            yield Measurement(prompt, generated, tuple(seconds[1:]))


def _fields(about: ModelFile, device: str, batch: int, result: Measurement) -> dict[str, Any]:
    """A result under llama-bench's names, and the median with its spread."""
    return {
        "rocforge_version": __version__,
        "device": device,
        "model_filename": about.path,
        "model_type": f"{about.architecture} {about.quantization}",
        "model_size": about.size,
        "model_n_params": about.parameters,
        "n_batch": batch,
        "n_prompt": result.prompt,
        "n_gen": result.generated,
        "median_ts": result.median,
        "spread_ts": result.spread,
        "avg_ts": statistics.fmean(result.rates),
        "stddev_ts": statistics.stdev(result.rates) if len(result.rates) > 1 else 0.0,
        "samples_ns": [round(seconds * 1e9) for seconds in result.seconds],
        "samples_ts": result.rates,
    }


def _write_markdown(about: ModelFile, device: str, results: list[Measurement]) -> None:
    print("| model | size | params | device | test | t/s |\n| --- | ---: | ---: | --- | ---: | ---: |")
    for result in results:
        cells = [f"{about.architecture} {about.quantization}", binary_size(about.size), count(about.parameters), device]
        print(f"| {' | '.join(cells)} | {result.name} | {result.median:.2f} ± {result.spread:.2f} |")


COMMANDS = [bench]
