"""Benchmarks: device time by events, and random arrays."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rocforge.device.libraries import cupy_module


def seconds(launches: Sequence[Callable[[], Any]], replays: int = 15) -> float:
    """Median seconds of one launch; the launches are captured together and replayed."""
    cupy = cupy_module()
    cupy.cuda.get_current_stream().synchronize()  # the arrays may have come by it
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for launch in launches:
            launch()
        stream.synchronize()
        stream.begin_capture()
        kept = [launch() for launch in launches]
        graph = stream.end_capture()
        times = seconds_of(graph.launch, replays)
    del kept
    return statistics.median(times) / len(launches)


def seconds_of(run: Callable[[], Any], runs: int = 15) -> list[float]:
    """Device seconds of each run on the current stream, after two warmup runs."""
    cuda, times = cupy_module().cuda, []
    for _ in range(runs + 2):
        start, stop = cuda.Event(), cuda.Event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(cuda.get_elapsed_time(start, stop) / 1e3)
    return times[2:]


def noise(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    """A CuPy array of random numbers, a million repeated, copied without a kernel."""
    cupy = cupy_module()
    some = cupy.asarray(np.random.default_rng(0).standard_normal(1_000_003, np.float32).astype(dtype))
    array = cupy.empty(shape, dtype)
    flat = array.reshape(-1)
    for start in range(0, flat.size, some.size):
        part = flat[start : start + some.size]
        part.data.copy_from_device_async(some.data, part.nbytes)
    return array
