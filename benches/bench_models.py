"""Whole models of published shapes on a GPU: loading, prefill, decode, batches, memory.

    pytest benches/bench_models.py --benchmark-enable --benchmark-json=models.json
    python benches/report.py models.json --pages docs

Each record's extra_info has tokens a second, and for decode the share of the card's read bandwidth that the weights
alone come to. Models that the card's memory does not hold are skipped. Files are written to ROCFORGE_BENCH_DIR (a
temporary folder where it is not set) and kept there.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import measure
import pytest
from history import note_rate
from measure import cp
from published import PUBLISHED
from random_gguf import ALL, write

import rocforge as rf
from rocforge.device.arrays import available_memory
from rocforge.load import load_model
from rocforge.nn import Transformer
from rocforge.selftest.figures import library_product_rate

MODELS = [
    ("llama-3.1-8b", "Q4_K_M"),
    ("llama-3.2-1b", "Q4_K_M"),
    ("llama-3.1-8b", "Q8_0"),
    ("llama-3.2-1b", "Q8_0"),
    ("llama-3.1-8b", "Q5_K"),
    ("llama-3.1-8b", "IQ4_XS"),
    ("llama-3.1-8b", "IQ3_S"),
    ("llama-3.1-8b", "IQ2_XS"),
    ("qwen3-30b-a3b", "Q4_K_M"),
    ("gpt-oss-20b", "MXFP4_MOE"),
    ("gpt-oss-120b", "MXFP4_MOE"),
    *((name, "Q4_K_M") for name in PUBLISHED),
]
ROOM = {"llama-3.1-8b": 30e9, "llama-3.2-1b": 6e9, "qwen3-30b-a3b": 30e9, "gpt-oss-20b": 20e9, "gpt-oss-120b": 75e9}
ROOM |= {"qwen3.6-35b-a3b": 35e9, "qwen3.6-27b": 80e9, "gemma-4-26b-a4b": 30e9, "deepseek-v2-lite": 20e9}
"""Device memory in bytes that a model takes with float16 copies, its KV cache and graphs."""
TOKENS = 128
"""Decode steps that are measured."""


@pytest.fixture(scope="module")
def bandwidth() -> float:
    """Bytes a second that a kernel reads which does nothing else."""
    return measure.read_bandwidth()


@pytest.fixture(scope="module")
def product_rate() -> float:
    """Operations a second of the library's own product of 8192 cubed, in float16."""
    return library_product_rate()


def bytes_taken() -> int:
    """Device memory that is taken, by whatever. CuPy's pools keep what they have taken, so it is their most so far."""
    free, total = cp.cuda.Device().mem_info
    return total - free


def bytes_in_use() -> int:
    """The same once CuPy has given back what it holds for later."""
    cp.get_default_memory_pool().free_all_blocks()
    return bytes_taken()


@pytest.fixture(scope="module", params=MODELS, ids=["-".join(model) for model in MODELS])
def path(request, tmp_path_factory) -> Path:
    name, recipe = request.param
    if (free := available_memory("gpu:0")) < ROOM[name]:
        pytest.skip(f"{name} needs {ROOM[name] / 1e9:.0f} GB of device memory; {free / 1e9:.0f} GB are free")
    folder = os.environ.get("ROCFORGE_BENCH_DIR") or tmp_path_factory.getbasetemp()
    path = Path(folder) / f"{name}-{recipe}.gguf"
    if not path.exists():
        write(path, ALL[name], recipe)
    return path


def weights_read(path: Path, tokens: int, unit: str) -> float:
    """What a step of so many tokens reads of the layers' matrices, in `size` or `nbytes`: of experts those that such a
    number of tokens choose, if each is as likely."""
    shape = ALL[path.stem.rpartition("-")[0]]
    chosen = 1 - (1 - shape.used / shape.experts) ** tokens if shape.experts else 1.0
    with rf.open_gguf(path) as file:
        matrices = [file[name] for name in file if name.startswith("blk.") and file[name].ndim > 1]
        return sum(getattr(each, unit) * (chosen if each.ndim == 3 else 1.0) for each in matrices)


def load(path: Path, fp16_weights: bool | None = None) -> Transformer:
    with rf.open_gguf(path) as file:
        model = load_model(file, "gpu", fp16_weights=fp16_weights)
    cp.cuda.Device().synchronize()
    return model


@pytest.fixture(scope="module")
def model(path) -> Transformer:
    return load(path)


@pytest.mark.parametrize("fp16_weights", [True, False])
def test_load(benchmark, path, fp16_weights):
    """The file in the disk cache, the kernels compiled; and the device memory that the weights take."""
    before = bytes_in_use()
    model = load(path, fp16_weights)
    weights_bytes = bytes_in_use() - before
    del model

    def run():
        load(path, fp16_weights)

    # what the model before took is given back outside the time
    benchmark.pedantic(run, setup=lambda: bytes_in_use() and None, rounds=3)
    size = path.stat().st_size
    kept = "with fp16 copies" if fp16_weights else "packed only"
    note_rate(benchmark, f"load, {kept}", path.stem, size / benchmark.stats["median"] / 1e9, "GB/s")
    benchmark.extra_info.update(
        bytes_a_second=size / benchmark.stats["median"], file_bytes=size, weights_bytes=weights_bytes
    )


@pytest.mark.parametrize("tokens", [512, 2048])
def test_prefill(benchmark, model, path, product_rate, tokens):
    """A prompt, to the first token; weights multiply from the float16 values that are kept of them."""
    prefill(benchmark, model, path, product_rate, tokens, True)


def test_prefill_from_blocks(benchmark, path, product_rate):
    """The same where no float16 values are kept: each weight is unpacked for each prompt."""
    prefill(benchmark, load(path, fp16_weights=False), path, product_rate, 2048, False)


def prefill(benchmark, model, path, product_rate, tokens: int, fp16_weights: bool) -> None:
    from bench_steps import seconds_of_a_prompt

    before = bytes_in_use()
    with rf.Engine(model, cache_tokens=tokens + 64, max_batch_tokens=tokens) as engine:
        benchmark.pedantic(seconds_of_a_prompt, (engine, tokens), rounds=7, warmup_rounds=2)
        peak_bytes = bytes_taken() - before - engine.cache.nbytes
    rate = tokens / benchmark.stats["median"]
    note_rate(benchmark, f"prompt of {tokens:,} tokens{'' if fp16_weights else ', packed only'}", path.stem, rate)
    benchmark.extra_info.update(
        tokens=tokens,
        fp16_weights=fp16_weights,
        tokens_a_second=rate,
        share_of_product=2 * weights_read(path, 1, "size") * rate / product_rate,
        peak_bytes_beside_weights_and_cache=peak_bytes,
    )


@pytest.mark.parametrize("batch, context", [(1, 1), (1, 4096), (8, 1), (32, 1), (64, 1), (128, 1), (256, 1), (512, 1)])
def test_decode(benchmark, model, path, bandwidth, batch, context):
    """128 steps that each give all of a batch's requests a token, after the prompts and the first few steps."""
    from bench_steps import start

    before = bytes_in_use()
    options = {"max_batch_tokens": 2048, "max_requests": max(batch, 256)}
    with rf.Engine(model, cache_tokens=batch * (context + TOKENS + 64), **options) as engine:

        def steps():
            for _ in range(TOKENS):
                engine.step()

        setup = functools.partial(start, engine, batch, context)
        benchmark.pedantic(steps, setup=setup, rounds=3, warmup_rounds=1)
        cache_bytes = engine.cache.nbytes
        peak_bytes = bytes_taken() - before - cache_bytes
    step = benchmark.stats["median"] / TOKENS
    group = f"decode, {batch} request{'s' * (batch > 1)}{f', context of {context:,}' if context > 1 else ''}"
    note_rate(benchmark, group, path.stem, batch / step)
    read = weights_read(path, batch, "nbytes") + model.output.weight.nbytes
    benchmark.extra_info.update(
        batch=batch,
        context=context,
        tokens_a_second=batch / step,
        weights_share_of_bandwidth=read / step / bandwidth,
        cache_bytes=cache_bytes,
        peak_bytes_beside_weights_and_cache=peak_bytes,
    )
