"""Prefill and decode on the CPU beside other processes, with one BLAS thread, with all, and as rocforge chooses.

    python benches/busy_cpu.py [model.gguf]

Without a model it is the demo model. Prints tokens a second as a table.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DEMO = Path(__file__).parents[1] / "examples" / "demo_model" / "demo-11M-Q8_0.gguf"
SPIN = [sys.executable, "-c", "while True: pass"]
MEASURE = """
import sys
from contextlib import nullcontext
import rocforge as rf
from rocforge.device.blas_threads import BlasThreads
if sys.argv[2] != "chosen":  # without the choice, BLAS has what its variable says
    BlasThreads.limited = lambda self: nullcontext()
model, tokenizer = rf.load(sys.argv[1], device="cpu", progress=False)
sampling = dict(temperature=0, ignore_eos=True)
for tokens in (8, 64):  # first those that unpack the weights
    *_, last = rf.stream_generate(model, tokenizer, list(range(5, 133)), max_tokens=tokens, **sampling)
print(128 / last.stats.time_to_first_token, last.stats.tokens_per_second)
"""


@contextlib.contextmanager
def beside(others: int) -> Iterator[None]:
    """That many processes which never wait."""
    processes = [subprocess.Popen(SPIN) for _ in range(others)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(model: Path, threads: str) -> list[float]:
    """Tokens a second of a prompt of 128 tokens, and of 64 tokens after it."""
    limit = {"OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} if threads != "chosen" else {}
    command = [sys.executable, "-c", MEASURE, str(model), threads]
    result = subprocess.run(command, env=os.environ | limit, check=True, capture_output=True, text=True)
    return [float(word) for word in result.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, default=DEMO)
    model, cores = parser.parse_args().model, len(os.sched_getaffinity(0))
    print("| other processes | BLAS threads | prefill | decode |\n|---|---|---:|---:|")
    for others in (0, 1, cores):
        with beside(others):
            for threads in ("1", str(cores), "chosen"):
                prefill, decode = measure(model, threads)
                print(f"| {others} | {threads} | {prefill:,.0f} | {decode:,.1f} |", flush=True)


if __name__ == "__main__":
    main()
