"""Times decode steps over the length of the context: one request's, or a batch's.

    python benches/bench_steps.py MODEL.gguf
    python benches/bench_steps.py MODEL.gguf --batch 8 --contexts 1,1000

Microseconds of a step, the median over rounds of new random prompts, and tokens a second. A prompt of the given length
comes first, and a few steps in which the graph is captured; the next steps are timed, which lengthen the context.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import cupy as cp
import numpy as np

import rocforge as rf
from rocforge.load import load_model

CONTEXTS = "1,32,64,96,120,160,224,300,420,600,1000,2000,4000"
WARM, ROUNDS = 6, 6
"""Decode steps before those that are timed, in which the graph is captured; rounds, of which the first is dropped."""


def start(engine: rf.Engine, batch: int, context: int, steps: int) -> None:
    """In place of what an engine has: new random prompts, past them and their first decode steps, `steps` to go."""
    engine.cancel_all()
    params = rf.SamplingParams(max_tokens=steps + 2 * WARM, temperature=0, ignore_eos=True)
    prompts = np.random.default_rng().integers(0, engine.model.config.vocabulary, (batch, context)).tolist()
    requests = [engine.add(prompt, params) for prompt in prompts]
    while any(len(request.output) < WARM for request in requests):
        engine.step()


def seconds_of_a_step(engine: rf.Engine, batch: int, context: int, steps: int) -> float:
    """Of one round: the mean of its steps."""
    start(engine, batch, context, steps)
    cp.cuda.Device().synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        engine.step()
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--batch", type=int, default=1, help="requests at a time")
    parser.add_argument("--contexts", default=CONTEXTS, help="tokens of the prompts, separated by commas")
    parser.add_argument("--steps", type=int, default=24, help="timed steps of a round")
    options = parser.parse_args()
    contexts = [int(context) for context in options.contexts.split(",")]
    with rf.open_gguf(options.model) as file:
        model = load_model(file, "gpu")
    room = options.batch * (max(contexts) + options.steps + 64)
    with rf.Engine(model, cache_tokens=room, max_batch_tokens=2048) as engine:
        for context in contexts:
            rounds = [seconds_of_a_step(engine, options.batch, context, options.steps) for _ in range(ROUNDS)]
            step = statistics.median(rounds[1:])  # the first may compile
            rate = options.batch / step
            took = f"{step * 1e6:9.1f} us a step {rate:9.1f} tokens/s"
            print(f"batch {options.batch} context {context:6} {took}", flush=True)


if __name__ == "__main__":
    main()
