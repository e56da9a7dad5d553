"""Times a product of the BLAS library on a rested card, and on one that has multiplied for seconds.

    python benches/bench_power.py
    python benches/bench_power.py --tokens 256 --rows 28672 --columns 4096 --seconds 4

TFLOP/s in float16, of random numbers. A card that reaches its power limit lowers its clock, so that prompts one after
another, and requests of many users, run at the second rate at best; a prompt now and then runs at the first.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from rocforge.device.blas import gemm
from rocforge.device.libraries import cupy_module

BURST = 20
"""Products at a time: some 10 ms on a large card."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=28672, help="of the weight")
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=3.0, help="of load, and of rest before it")
    options = parser.parse_args()
    cupy = cupy_module()
    shapes = (options.tokens, options.columns), (options.rows, options.columns)
    x, weight = (cupy.random.standard_normal(shape, np.float32).astype(np.float16) for shape in shapes)
    y = cupy.empty((options.tokens, options.rows), np.float32)
    work = 2 * options.tokens * options.rows * options.columns * BURST

    def teraflops() -> float:
        first, last = cupy.cuda.Event(), cupy.cuda.Event()
        first.record()
        for _ in range(BURST):
            gemm(x, weight, y)
        last.record()
        last.synchronize()
        return work / cupy.cuda.get_elapsed_time(first, last) / 1e9

    teraflops()  # what is loaded and allocated at first
    time.sleep(options.seconds)
    rested = loaded = teraflops()
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end:
        loaded = teraflops()
    print(f"rested {rested:.0f} TFLOP/s, after {options.seconds:g} s of load {loaded:.0f} ({loaded / rested:.0%})")


if __name__ == "__main__":
    main()
