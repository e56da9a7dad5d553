"""Times what the host takes to queue a step, while the GPU has other work: what decides where the GPU is faster.

    python benches/bench_host.py                        # on a GPU
    tests/hipsim/run python benches/bench_host.py       # on the simulated device, whose work is not timed either

Microseconds a layer of Python, CuPy and the driver, for steps that are not captured: prompts, and steps of other sizes
than were seen before. Sizes of matrices do not matter to it, so those of the model are small.

Then microseconds of an engine's decode step, all requests going on, with kernels and graphs that do nothing: what
Python takes to schedule it, to say what it is, and to hand out its tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from random_gguf import SHAPES, write

import rocforge as rf
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.engine import step as engine_step
from rocforge.load import load_model
from rocforge.nn import Transformer
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.ops.state import BLOCK_SIZE

LAYERS, QUEUED, ROUNDS = 16, 5, 4
STEPS = {
    "prompt of 80": [(0, 80)],
    "prompt of 16": [(0, 16)],
    "8 sequences, a token each": [(40, 1)] * 8,
    "a prompt of 80, 7 sequences beside it": [(0, 80)] + [(40, 1)] * 7,
    "1 sequence, a token": [(40, 1)],
}
"""Of each chunk: where it starts, and how many tokens it has."""


def small_model(recipe: str) -> Transformer:
    """A llama of many layers and few elements, on the GPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.gguf"
        write(path, SHAPES["tiny"]._replace(layers=LAYERS, ffn=256), recipe)
        with rf.open_gguf(path) as file:
            return load_model(file, "gpu")


def batch_of(cache: KVCache, step: list[tuple[int, int]]) -> Batch:
    """Each chunk with cache blocks of its own."""
    chunks, free = [], iter(range(cache.paged[0].blocks))
    for start, count in step:
        chunks.append(Chunk(start, count, [next(free) for _ in range(-(-(start + count) // BLOCK_SIZE))]))
    return Batch.of(cache, chunks)


def queueing(model: Transformer, step: list[tuple[int, int]]) -> float:
    """Median seconds to queue the model's work for a step, a few of them before the device is waited for."""
    tokens, cp = sum(count for _, count in step), cupy_module()
    stream, times = cp.cuda.Stream(non_blocking=True), []
    with stream:
        cache = model.new_cache(64)
        batches = [batch_of(cache, step) for _ in range(QUEUED)]
        ids = cp.asarray(np.random.default_rng().integers(0, model.config.vocabulary, tokens, np.int32))
        for _ in range(ROUNDS):
            stream.synchronize()
            for batch in batches:
                start = time.perf_counter()
                model(ids, batch)
                times.append(time.perf_counter() - start)
        stream.synchronize()
    return statistics.median(times[QUEUED:])


@contextlib.contextmanager
def nothing_runs(model: Transformer, most: int) -> Iterator[None]:
    """In this context kernels and captured steps are passed over. Logits are zeros, and so are tokens."""
    logits = cupy_module().zeros((most, model.config.vocabulary), np.float32)
    rows: dict[int, Any] = {}

    def captured(plan: Any, graphs: bool) -> Any:
        return rows.setdefault(plan._shape.rows, logits[: plan._shape.rows])

    function = SimpleNamespace(kernel=lambda *args: None)
    overlaps = mock.patch("rocforge.device.overlap.overlaps", lambda device: False)
    loaded = mock.patch.object(Kernel, "_load", lambda *args: function)
    plan = mock.patch.multiple(engine_step._Plan, run=captured, captured=True)
    with overlaps, loaded, plan:
        yield


def decoding(model: Transformer, requests: int, steps: int = 200) -> float:
    """Median seconds of an engine's step."""
    params, times = rf.SamplingParams(temperature=0, ignore_eos=True), []
    with nothing_runs(model, requests), rf.Engine(model, cache_tokens=requests * 256, max_requests=requests) as engine:
        for prompt in np.random.default_rng().integers(0, 200, (requests, 5)).tolist():
            engine.add(prompt, params)
        for _ in range(steps):
            start = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - start)
    return statistics.median(times[steps // 2 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="Q4_K_M", help="of the weights, as in random_gguf.py")
    options = parser.parse_args()
    model = small_model(options.recipe)
    for name, step in STEPS.items():
        print(f"{name:42} {queueing(model, step) / LAYERS * 1e6:6.0f} us a layer", flush=True)
    for requests in (1, 8, 64, 256):
        print(f"{f'an engine decodes, {requests} requests':42} {decoding(model, requests) * 1e6:6.0f} us", flush=True)


if __name__ == "__main__":
    main()
