"""What benches of a GPU share: the time of a launch, the card's limits, and random numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rocforge.device.libraries import import_cupy
from rocforge.ops.gemm import product_halves

cp, _reason = import_cupy()
if cp is None:
    pytest.skip(f"needs a GPU: {_reason}", allow_module_level=True)

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


def noise(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    """Random numbers, the same million over and over."""
    some = cp.asarray(np.random.default_rng(0).standard_normal(1_000_003, np.float32).astype(dtype))
    array = cp.empty(shape, dtype)
    flat = array.reshape(-1)
    for start in range(0, flat.size, some.size):
        flat[start : start + some.size] = some[: flat.size - start]
    return array
