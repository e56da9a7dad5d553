"""Whole models of published shapes on a GPU: loading, prefill, decode, batches, memory.

    pytest benches/bench_models.py --benchmark-enable --benchmark-json=models.json
    python benches/report.py models.json

Each record's extra_info has tokens a second, and for decode the share of the card's read bandwidth that the weights
alone come to. Files are written to ROCFORGE_BENCH_DIR (a temporary folder where it is not set) and kept there.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import pytest
from random_gguf import SHAPES, write

import rocforge as rf
from rocforge.arrays import _import_cupy
from rocforge.load import load_model
from rocforge.nn import Transformer

cp, _reason = _import_cupy()
if cp is None:
    pytest.skip(f"needs a GPU: {_reason}", allow_module_level=True)

MODELS = [
    ("llama-3.1-8b", "Q4_K_M"),
    ("llama-3.2-1b", "Q4_K_M"),
    ("llama-3.1-8b", "Q8_0"),
    ("llama-3.2-1b", "Q8_0"),
]
TOKENS = 128
"""Decode steps that are measured."""


@pytest.fixture(scope="module")
def bandwidth() -> float:
    """Bytes a second that a kernel reads which does nothing else."""
    from bench_kernels import read_bandwidth

    return read_bandwidth()


def bytes_in_use() -> int:
    """Device memory that is taken, by whatever, once CuPy has given back what it holds for later."""
    cp.get_default_memory_pool().free_all_blocks()
    free, total = cp.cuda.Device().mem_info
    return total - free


@pytest.fixture(scope="module", params=MODELS, ids=["-".join(model) for model in MODELS])
def path(request, tmp_path_factory) -> Path:
    name, recipe = request.param
    folder = os.environ.get("ROCFORGE_BENCH_DIR") or tmp_path_factory.getbasetemp()
    path = Path(folder) / f"{name}-{recipe}.gguf"
    if not path.exists():
        write(path, SHAPES[name], recipe)
    return path


def load(path: Path) -> Transformer:
    with rf.open_gguf(path) as file:
        model = load_model(file, "gpu")
    cp.cuda.Device().synchronize()
    return model


@pytest.fixture(scope="module")
def model(path) -> Transformer:
    return load(path)


def test_load(benchmark, path):
    """The file in the disk cache, the kernels compiled; and the device memory that the weights take."""
    before = bytes_in_use()
    model = benchmark.pedantic(load, (path,), rounds=1, warmup_rounds=1)
    benchmark.extra_info["bytes_a_second"] = path.stat().st_size / benchmark.stats["median"]
    benchmark.extra_info["file_bytes"] = path.stat().st_size
    benchmark.extra_info["weights_bytes"] = bytes_in_use() - before
    del model


def new_prompt(model, tokens: int) -> list[int]:
    """A new one each time: what the cache has seen is not computed again."""
    return np.random.default_rng().integers(0, model.config.vocabulary, tokens).tolist()


@pytest.mark.parametrize("tokens", [512, 2048])
def test_prefill(benchmark, model, tokens):
    """A prompt, to the first token."""
    with rf.Engine(model, cache_tokens=tokens + 64, max_batch_tokens=tokens) as engine:

        def run():
            engine.add(new_prompt(model, tokens), rf.SamplingParams(max_tokens=1, temperature=0))
            while engine.busy:
                engine.step()

        benchmark.pedantic(run, rounds=7, warmup_rounds=2)
    benchmark.extra_info["tokens_a_second"] = tokens / benchmark.stats["median"]


@pytest.mark.parametrize("batch, context", [(1, 1), (1, 4096), (8, 1), (32, 1), (64, 1)])
def test_decode(benchmark, model, path, bandwidth, batch, context):
    """128 steps that each give all of a batch's requests a token, after the prompts and the first few steps."""
    from bench_steps import start

    before = bytes_in_use()
    with rf.Engine(model, cache_tokens=batch * (context + TOKENS + 64), max_batch_tokens=2048) as engine:

        def steps():
            for _ in range(TOKENS):
                engine.step()

        setup = functools.partial(start, engine, batch, context, TOKENS)
        benchmark.pedantic(steps, setup=setup, rounds=3, warmup_rounds=1)
        engine_bytes, cache_bytes = bytes_in_use() - before, engine.cache.nbytes
    step = benchmark.stats["median"] / TOKENS
    unread = 0 if model.output.weight is None else model.token_embd.weight.nbytes
    benchmark.extra_info.update(
        batch=batch,
        context=context,
        tokens_a_second=batch / step,
        weights_share_of_bandwidth=(path.stat().st_size - unread) / step / bandwidth,
        cache_bytes=cache_bytes,
        engine_bytes_beside_cache=engine_bytes - cache_bytes,
    )
