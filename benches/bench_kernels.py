"""Times the kernels around the weights on the GPU: norms, rope, attention, experts, sampling.

    python benches/bench_kernels.py [--json FILE] [NAME ...]

Each figure is the median over replays of a graph that holds one launch a layer, over as many layers as make their data
larger than the caches; beside it, the share of the read bandwidth, or the rate of arithmetic, that it comes to.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cupy as cp
import numpy as np

from rocforge.batch import Batch, Chunk
from rocforge.cache import KVCache
from rocforge.ops import attention_device
from rocforge.ops.activation import swiglu
from rocforge.ops.attention import paged_attention, rotate_and_store
from rocforge.ops.experts_device import takes_int8
from rocforge.ops.gemm import product_halves
from rocforge.ops.moe import Matrices, experts, group_by_expert, route
from rocforge.ops.norm import rms_norm, rms_norm_quantized
from rocforge.ops.operands import quantize_activations
from rocforge.ops.rope import rope_frequencies
from rocforge.ops.sampling import Sampler, logprobs_device
from rocforge.quant import QTYPES, QuantizedArray, row_nbytes
from rocforge.sampling import SamplingParams

CACHES = 256 << 20
"""Bytes that are more than any level of cache holds."""


def seconds(launches: list[Callable[[], Any]], replays: int = 15) -> float:
    """Median seconds of one of the launches, which are captured together and replayed."""
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        for launch in launches:
            launch()
        stream.synchronize()
        stream.begin_capture()
        kept = [launch() for launch in launches]
        graph = stream.end_capture()
        start, end = cp.cuda.Event(), cp.cuda.Event()
        times = []
        for _ in range(replays + 2):
            start.record()
            graph.launch()
            end.record()
            end.synchronize()
            times.append(cp.cuda.get_elapsed_time(start, end) / 1000 / len(launches))
    del kept
    return statistics.median(times[2:])


def read_bandwidth() -> float:
    """Bytes a second of a kernel that reads 4 GiB, 16 bytes a load, and does nothing else."""
    code = """extern "C" __global__ void read(const float4* x, float* y, size_t n) {
        float sum = 0;
        for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
            sum += x[i].x + x[i].y + x[i].z + x[i].w;
        if (sum == 12345.678f) *y = sum;
    }"""
    kernel, x, y = cp.RawKernel(code, "read"), noise((1 << 30,)), cp.zeros(1, np.float32)
    return x.nbytes / seconds([lambda: kernel((132 * 16,), (512,), (x, y, np.uint64(x.size // 4)))])


def product_rate() -> float:
    """Float16 operations a second of the library's own product of 8192 cubed, which no graph can hold."""
    (a, w), times = (noise((8192, 8192), np.float16) for _ in range(2)), []
    for _ in range(12):
        start, stop = cp.cuda.Event(), cp.cuda.Event()
        start.record()
        product_halves(a, w)
        stop.record()
        stop.synchronize()
        times.append(cp.cuda.get_elapsed_time(start, stop) / 1e3)
    return 2 * 8192**3 / statistics.median(times[2:])


def noise(shape: tuple[int, ...], dtype: Any = np.float32) -> cp.ndarray:
    """Random numbers, the same million over and over."""
    some = cp.asarray(np.random.default_rng(0).standard_normal(1_000_003, np.float32).astype(dtype))
    array = cp.empty(shape, dtype)
    flat = array.reshape(-1)
    for start in range(0, flat.size, some.size):
        flat[start : start + some.size] = some[: flat.size - start]
    return array


def cache_of(kv_heads: int, head_dim: int, tokens: int) -> KVCache:
    """As many layers as exceed the caches, full of random numbers."""
    layer = 4 * tokens * kv_heads * head_dim
    layers = max(2, min(64, -(-CACHES // layer)))
    cache = KVCache(layers, kv_heads, head_dim, -(-tokens // 32), dtype=np.float16, device="gpu")
    for array in (cache.keys, cache.values):
        array[...] = noise(array.shape, np.float16)
    return cache


def decode_attention(batch: int, context: int, heads: int, kv_heads: int, head_dim: int) -> tuple[float, float]:
    """Seconds, and bytes read a second."""
    blocks = -(-context // 32)
    cache = cache_of(kv_heads, head_dim, batch * blocks * 32)
    tables = np.random.default_rng(0).permutation(batch * blocks).reshape(batch, blocks)
    step = Batch.of(cache, [Chunk(context - 1, 1, table) for table in tables])
    q = noise((batch, heads, head_dim))
    layers = range(len(cache.keys))
    time = seconds([lambda layer=layer: paged_attention(q, step, layer) for layer in layers])
    return time, 4 * batch * context * kv_heads * head_dim / time


def prefill_attention(tokens: int, heads: int, kv_heads: int, head_dim: int) -> tuple[float, float]:
    """Seconds, and floating-point operations a second, those above the diagonal not counted."""
    cache = KVCache(4, kv_heads, head_dim, -(-tokens // 32), dtype=np.float16, device="gpu")
    for array in (cache.keys, cache.values):
        array[...] = noise(array.shape, np.float16)
    step = Batch.of(cache, [Chunk(0, tokens, range(-(-tokens // 32)))])
    q = noise((tokens, heads, head_dim))
    time = seconds([lambda layer=layer: paged_attention(q, step, layer) for layer in range(4)])
    return time, 2 * tokens * tokens * heads * head_dim / time


def rows_of_floats(rows: int, columns: int) -> list[cp.ndarray]:
    """Different arrays of that shape, up to 16 of them."""
    count = max(2, min(16, CACHES // (4 * rows * columns)))
    return [noise((rows, columns)) for _ in range(count)]


class Report:
    """Prints figures as they come, and keeps them."""

    def __init__(self, names: list[str]):
        self.names, self.figures = names, {}
        self.bandwidth = read_bandwidth()
        print(f"read: {self.bandwidth / 1e12:.2f} TB/s")

    def wants(self, name: str) -> bool:
        return not self.names or name in self.names

    def add(self, name: str, time: float, nbytes: float | None = None, rate: float | None = None) -> None:
        more = ""
        if nbytes is not None:
            more = f"{nbytes / 1e12:6.2f} TB/s {nbytes / self.bandwidth:5.0%}"
        if rate is not None:
            more += f"{rate / 1e12:6.1f} TFLOP/s"
        self.figures[name] = {"seconds": time, "bytes_a_second": nbytes, "operations_a_second": rate}
        print(f"{name:52} {time * 1e6:9.2f} us {more}", flush=True)


def attention(report: Report) -> None:
    for shape in [
        (1, 128, 32, 8, 128),
        (1, 1024, 32, 8, 128),
        (1, 4096, 32, 8, 128),
        (1, 32768, 32, 8, 128),
        (8, 4096, 32, 8, 128),
        (64, 1024, 32, 8, 128),
        (1, 4096, 32, 8, 64),
        (1, 4096, 64, 8, 128),
        (1, 4096, 32, 32, 96),
        (1, 4096, 16, 8, 256),
    ]:
        report.add("decode batch {} context {} heads {}/{} x {}".format(*shape), *decode_attention(*shape))
    for shape in [(512, 32, 8, 128), (2048, 32, 8, 128), (8192, 32, 8, 128), (2048, 32, 8, 64), (2048, 16, 8, 256)]:
        time, rate = prefill_attention(*shape)
        report.add("prefill {} heads {}/{} x {}".format(*shape), time, rate=rate)


def shares(report: Report) -> None:
    """The decode kernel over where it begins to split sequences: what UNSPLIT was chosen by."""
    kept = attention_device.UNSPLIT
    for attention_device.UNSPLIT in (32, 64, 128, 256):
        for context in (64, 96, 128, 192, 256):
            name = f"unsplit {attention_device.UNSPLIT} decode batch 1 context {context}"
            report.add(name, *decode_attention(1, context, 32, 8, 128))
    attention_device.UNSPLIT = kept


def norms(report: Report) -> None:
    weight = cp.ones(4096, np.float32)
    for rows in (1, 64, 2048):
        xs = rows_of_floats(rows, 4096)
        time = seconds([lambda x=x: rms_norm(x, weight) for x in xs])
        report.add(f"rms_norm {rows} x 4096", time, 8 * rows * 4096 / time)
        report.add(
            f"rms_norm to int8 {rows} x 4096", seconds([lambda x=x: rms_norm_quantized(x, weight, 1e-5) for x in xs])
        )
    for rows in (1, 2048):
        xs = rows_of_floats(rows, 2 * 14336)
        time = seconds([lambda x=x: swiglu(x[:, :14336], x[:, 14336:]) for x in xs])
        report.add(f"swiglu {rows} x 14336", time, 12 * rows * 14336 / time)


def rope(report: Report) -> None:
    frequencies = rope_frequencies(128, 500000.0)
    for tokens in (1, 64, 2048):
        cache = KVCache(8, 8, 128, 128, dtype=np.float16, device="gpu")
        chunks = [Chunk(0, tokens, range(128))] if tokens > 64 else [Chunk(5, 1, [i]) for i in range(tokens)]
        step = Batch.of(cache, chunks)
        xs = [x.reshape(tokens, 48, 128) for x in rows_of_floats(tokens, 48 * 128)]
        step.cos_sin(frequencies)
        launches = [
            lambda x=x, i=i, step=step: rotate_and_store(x[:, :32], x[:, 32:40], x[:, 40:], step, i % 8, frequencies)
            for i, x in enumerate(xs)
        ]
        report.add(f"rope and store {tokens} x 48 heads x 128", seconds(launches))


def routing(report: Report) -> None:
    for tokens in (1, 2048):
        logits = rows_of_floats(tokens, 128)
        report.add(f"route {tokens} x 128, 8 used", seconds([lambda x=x: route(x, 8) for x in logits]))
        ids, _ = route(logits[0], 8)
        report.add(f"group {tokens} x 8 by 128 experts", seconds([lambda ids=ids: group_by_expert(ids, 128)] * 4))


EXPERTS = {
    "gpt-oss-20b": (32, 4, 2880, 2880, ("MXFP4", "MXFP4", "MXFP4"), "swiglu_oai"),
    "qwen3-30b-a3b": (128, 8, 2048, 768, ("Q4_K", "Q4_K", "Q6_K"), "swiglu"),
}
"""Published shapes: experts, those used, dim, ffn; formats of gate, up and down; the gated unit. gpt-oss has biases."""


def expert_matrices(rows: int, columns: int, count: int, qtype: str, biased: bool) -> Matrices:
    """Random bytes, of which float16 makes small scales."""
    shape = (count, rows, row_nbytes(columns, QTYPES[qtype]))
    some = np.random.default_rng(0).integers(0, 48, 1_000_003, dtype=np.uint8)
    weight = QuantizedArray(cp.resize(cp.asarray(some), shape), (count, rows, columns), qtype).to_device("gpu")
    return Matrices(weight, noise((count, rows)) if biased else None)


def expert_products(report: Report) -> None:
    """Gate, up, down and the sum of a layer; bytes are those of the chosen experts, each read once."""
    for name, (count, used, dim, ffn, qtypes, activate) in EXPERTS.items():
        shapes = [(ffn, dim), (ffn, dim), (dim, ffn)]
        layer = [
            expert_matrices(*shape, count, qtype, biased=activate == "swiglu_oai")
            for shape, qtype in zip(shapes, qtypes, strict=True)
        ]
        nbytes = sum(matrices.weight.nbytes for matrices in layer) / count
        for tokens in (1, 2, 4, 8, 16, 64, 512, 2048):
            x = noise((tokens, dim))
            x = quantize_activations(x) if takes_int8(tokens, *layer[:2]) else x
            routings = [route(noise_of(seed, tokens, count), used) for seed in range(16)]
            chosen = statistics.mean(len(np.unique(ids.get())) for ids, _ in routings)
            run = functools.partial(experts, x, gate=layer[0], up=layer[1], down=layer[2], activate=activate)
            time = seconds([functools.partial(run, ids=ids, weights=weights) for ids, weights in routings])
            operations = 6 * tokens * used * dim * ffn
            report.add(f"experts {name} {tokens} tokens", time, nbytes * chosen / time, operations / time)


def noise_of(seed: int, *shape: int) -> cp.ndarray:
    """Fresh numbers of a seed."""
    return cp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def sampling(report: Report) -> None:
    settings = {
        "greedy": {"temperature": 0.0},
        "plain": {"temperature": 0.8},
        "top_p": {"temperature": 0.8, "top_p": 0.95},
        "top_k 40, top_p, min_p": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
        "flat, top_p": {"temperature": 2.0, "top_p": 0.99},
    }
    for rows in (1, 64):
        rng = np.random.default_rng(3)
        logits = rng.standard_normal((rows, 128256), np.float32) * 2
        logits[:, rng.integers(0, 128256, 200)] += rng.uniform(3, 14, 200).astype(np.float32)
        device = cp.asarray(logits)
        for name, options in settings.items():
            sampler = Sampler([SamplingParams(seed=i, **options) for i in range(rows)], [0] * rows)
            report.add(f"sample {rows} x 128256 {name}", seconds([lambda s=sampler, x=device: s(x)] * 4))
        tokens = cp.zeros(rows, np.int32)
        report.add(f"logprobs {rows} x 128256, 20", seconds([lambda x=device, t=tokens: logprobs_device(x, t, 20)] * 4))


SUITES = {suite.__name__: suite for suite in (attention, norms, rope, routing, expert_products, sampling, shares)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SUITES)}; none for all")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    report = Report(options.names)
    for name, suite in SUITES.items():
        if report.wants(name):
            suite(report)
    if options.json:
        options.json.write_text(json.dumps(report.figures, indent=1))


if __name__ == "__main__":
    main()
