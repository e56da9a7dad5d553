"""How fast the card is: what it reads, what its BLAS library multiplies, and a model of random weights."""

from __future__ import annotations

import functools
import statistics
import time

import numpy as np

from rocforge.device.arrays import available_memory, device_info
from rocforge.device.libraries import cupy_module
from rocforge.device.timing import noise, seconds, seconds_of
from rocforge.engine.engine import Engine
from rocforge.load import load_model
from rocforge.ops.device.gemm import gemm_fp16
from rocforge.ops.linear import linear
from rocforge.ops.sampling import SamplingParams
from rocforge.selftest.check import Check, Figure, Outcome, Sizes
from rocforge.selftest.limits import Limits, limits_of
from rocforge.selftest.synthetic import SHAPES, RandomModel

PROMPTS, GENERATED, ROUNDS = (512, 2048), 128, 3
RECIPE = "Q4_K_M"


def checks(sizes: Sizes) -> list[Check]:
    if not sizes.measured:
        return []
    return [
        Check("read bandwidth", lambda rng: Outcome(figures={"read bandwidth": _bandwidth()})),
        Check("float16 products", lambda rng: Outcome(figures={"float16 products": _products()})),
        Check("a model of random weights", _model),
    ]


@functools.cache
def _limits() -> Limits:
    return limits_of(device_info("gpu").name)


@functools.cache
def _bandwidth() -> Figure:
    """What a float32 matrix, larger than any cache, is read at to be multiplied with a vector."""
    columns = 8192
    rows = min(2 << 30, available_memory("gpu:0") // 4) // (4 * columns)
    matrix, x = noise((rows, columns)), noise((1, columns))
    rate = matrix.nbytes / seconds([lambda: linear(x, matrix)])
    return Figure(rate / 1e9, "GB/s", _limits().bandwidth, "the memory's bandwidth")


@functools.cache
def _products() -> Figure:
    """What the BLAS library multiplies; smaller matrices where memory is short."""
    size = 8192 if available_memory("gpu:0") > 2 << 30 else 2048
    return Figure(library_product_rate(size) / 1e12, "TFLOP/s", _limits().products, "the matrix unit's rate")


def _model(rng: np.random.Generator) -> Outcome:
    """Tokens a second as llama-bench counts them, of Llama 3.2 1B's shapes; of a tiny model where memory is short."""
    name = "llama-3.2-1b" if available_memory("gpu:0") > 2 << 30 else "tiny"
    shape = SHAPES[name]
    weights = RandomModel(shape, RECIPE)
    model = load_model(weights, "gpu")
    read = sum(w.nbytes for key, w in weights.items() if shape.tied or key != "token_embd.weight")
    multiplied = sum(w.size for key, w in weights.items() if key.startswith("blk.") and w.ndim == 2)
    by_reading, by_products = _bandwidth().value * 1e9 / read, _products().value * 1e12 / (2 * multiplied)
    figures = {}
    with Engine(model, cache_tokens=max(PROMPTS) + 64, max_batch_tokens=max(PROMPTS)) as engine:
        for prompt in PROMPTS:
            rate = prompt / _median_seconds(engine, rng, prompt, 1)
            figures[f"pp{prompt}"] = Figure(rate, "tokens/s", by_products, "the rate of its GEMMs alone")
        rate = GENERATED / _median_seconds(engine, rng, 1, GENERATED)
        figures[f"tg{GENERATED}"] = Figure(rate, "tokens/s", by_reading, "the rate of reading its weights alone")
    return Outcome(figures={f"{name} {RECIPE}, {test}": figure for test, figure in figures.items()})


def _median_seconds(engine: Engine, rng: np.random.Generator, prompt: int, generated: int) -> float:
    """The first ones compile and capture, and do not count."""
    times = [generation_seconds(engine, rng, prompt, generated) for _ in range(ROUNDS + 2)]
    cupy_module().cuda.Device().synchronize()
    return statistics.median(times[2:])


def library_product_rate(size: int = 8192) -> float:
    """Float16 operations a second of the BLAS library's own product of matrices of that size, which no graph holds."""
    a, w = (noise((size, size), np.float16) for _ in range(2))
    return 2 * size**3 / statistics.median(seconds_of(lambda: gemm_fp16(a, w)))


def generation_seconds(engine: Engine, rng: np.random.Generator, prompt: int, generated: int) -> float:
    """Seconds from a random prompt of that many tokens to the last of the generated ones.

    The prompt is a new one each time: what the cache has seen would not be computed again.
    """
    tokens = rng.integers(0, engine.model.config.vocabulary, prompt).tolist()
    start = time.perf_counter()
    engine.add(tokens, SamplingParams(max_tokens=generated, temperature=0, ignore_eos=True))
    while engine.busy:
        engine.step()
    return time.perf_counter() - start
