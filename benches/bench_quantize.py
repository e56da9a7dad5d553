"""rf.quantize: bytes of float32 a second, on the host and on a device.

    pytest benches/bench_quantize.py --benchmark-enable

Each record's extra_info has mb_per_s, of the median round, and on the host mb_per_cpu_s, of a core's time, which other
work on the machine hardly changes. On a device 2,000 MB/s are wanted.
"""

import time

import numpy as np
import pytest

import rocforge as rf
from rocforge.device.libraries import import_cupy
from rocforge.formats.quantize import QUANTIZERS
from rocforge.ops.device.quantize import DEVICE_QTYPES

cp, reason = import_cupy()
HOST, DEVICE = (256, 4096), (14336, 4096)
"""Shapes of the weights: 4 and 235 MB of float32."""


def weights(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def importance(columns: int) -> np.ndarray:
    return np.random.default_rng(1).chisquare(1, columns).astype(np.float32)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_host(benchmark, name):
    """All cores, with importance weights."""
    x, weight = weights(HOST), importance(HOST[1])
    begin, rounds = time.process_time(), 3
    benchmark.pedantic(lambda: rf.quantize(x, name, weight), rounds=rounds)
    benchmark.extra_info["mb_per_cpu_s"] = rounds * x.nbytes / (time.process_time() - begin) / 1e6
    record(benchmark, x.nbytes)


@pytest.mark.skipif(cp is None, reason=f"needs a GPU: {reason}")
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", DEVICE_QTYPES)
def test_device(benchmark, name, weighted):
    """From floats in the device's memory to planar rows there; rf.quantize waits for the device."""
    x, weight = cp.asarray(weights(DEVICE)), importance(DEVICE[1]) if weighted else None
    benchmark.pedantic(lambda: rf.quantize(x, name, weight), rounds=5, warmup_rounds=2)
    record(benchmark, x.nbytes)


def record(benchmark, nbytes: int) -> None:
    if benchmark.stats:
        benchmark.extra_info["mb_per_s"] = nbytes / benchmark.stats.stats.median / 1e6
