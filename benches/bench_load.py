"""How fast a model loads onto a GPU, beside the fastest that its file can be read and its bytes be copied there.

    python benches/bench_load.py MODEL.gguf

The file is read once before, so it comes from the page cache as far as that holds it. Then a new process loads the
model and generates one token, twice: the first time it may have to compile kernels.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import rocforge as rf
from rocforge.device.arrays import cupy_module, on_device, resolve_device
from rocforge.load import load_model
from rocforge.loading.upload import READERS

PART = 8 << 20

FIRST_TOKEN = """
import sys, time
start = time.perf_counter()
import rocforge as rf
imported = time.perf_counter()
model, tokenizer = rf.load(sys.argv[1], "gpu")
loaded = time.perf_counter()
next(rf.stream_generate(model, tokenizer, "Once upon a time, in a country far away, there was", max_tokens=1))
done = time.perf_counter()
print(f"{done - start:.2f} s: import {imported - start:.2f}, load {loaded - imported:.2f}, token {done - loaded:.2f}")
"""


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read(path: Path) -> None:
    """All bytes of a file, into memory that is used again for each part, by as many threads as a load has."""
    size, buffers = path.stat().st_size, [bytearray(PART) for _ in range(READERS)]
    file = os.open(path, os.O_RDONLY)

    def read_share(reader: int) -> None:
        for start in range(reader * PART, size, READERS * PART):
            os.preadv(file, [buffers[reader]], start)

    try:
        with ThreadPoolExecutor(READERS) as executor:
            list(executor.map(read_share, range(READERS)))
    finally:
        os.close(file)


def copy_rate(nbytes: int) -> float:
    """Bytes a second from pinned memory to the device, of that many in all."""
    import cupyx

    cupy = cupy_module()
    source, target = cupyx.empty_pinned(PART, np.uint8), cupy.empty(PART, np.uint8)
    source[:] = 1
    with cupy.cuda.Stream(non_blocking=True) as stream:
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        for count in (1, max(nbytes // PART, 1)):
            start.record()
            for _ in range(count):
                target.data.copy_from_host_async(source.ctypes.data, PART, stream)
            stop.record()
            stop.synchronize()
    return count * PART / cupy.cuda.get_elapsed_time(start, stop) * 1e3


def load_times(file: rf.GGUFFile, device: str, fp16_weights: bool) -> list[float]:
    """Seconds of each of three loads; what the one before took of the device is given back outside the time."""
    times = []
    for _ in range(3):
        cupy_module().get_default_memory_pool().free_all_blocks()
        times.append(seconds(lambda: load_model(file, device, fp16_weights=fp16_weights)))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file, or a member of a split set")
    path, device = parser.parse_args().model, resolve_device("gpu")
    print(rf.device_info(device))
    with rf.open_gguf(path) as file, on_device(device):
        nbytes, files = file.nbytes, file.paths
        read_rate = sum(p.stat().st_size for p in files) / min(
            seconds(lambda: [read(p) for p in files]) for _ in range(2)
        )
        bounds = {"read, page cache": read_rate, "copy, pinned": copy_rate(4 << 30)}
        times = {kept: load_times(file, device, kept) for kept in (False, True)}
    for name, rate in bounds.items():
        print(f"{name:20} {rate / 1e9:7.2f} GB/s")
    for kept, name in ((False, "load"), (True, "load, float16 kept")):
        rate, all_times = nbytes / min(times[kept]), ", ".join(f"{t:.2f}" for t in times[kept])
        share = f"{rate / min(bounds.values()):.0%} of the slower of these"
        print(f"{name:20} {rate / 1e9:7.2f} GB/s, {share}: {all_times} s for {nbytes / 1e9:.2f} GB")
    for _ in range(2):
        command = [sys.executable, "-c", FIRST_TOKEN, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{'to the first token':20} {done.stdout.strip()}")


if __name__ == "__main__":
    main()
