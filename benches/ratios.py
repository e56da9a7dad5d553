"""How long the CPU's work takes in units of a fixed computation, beside what is kept of this machine.

    python benches/ratios.py                # compare: the exit status is 1 where something takes 15 % longer
    python benches/ratios.py --save         # keep these ratios in benches/history/

Times differ from machine to machine and with what else a machine does; their ratio to a computation of the same kind in
the same run hardly does. Work and reference take turns in many short rounds, on one thread; the time for which the
thread waited for a core does not count, and the lower quartile of the ratios does. What is too slow is measured twice
more before it is said to be. Kept is the median of three measurements. Where no ratios of this kind of machine are
kept, the highest of all machines count, and twice of that is too slow.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import history
import numpy as np
from threadpoolctl import threadpool_limits

import rocforge as rf

DEMO = Path(__file__).parents[1] / "examples" / "demo_model" / "demo-11M-Q8_0.gguf"
LOSS, LOSS_ELSEWHERE = 1.15, 2.0
"""What a ratio may grow to, times the kept one: of this kind of machine, and of others."""
SECONDS, TRIES = 8.0, 3
"""What one measurement takes, and how often what is too slow is measured."""


class Work(NamedTuple):
    """Something of rocforge's, and the reference that it is measured in."""

    run: Callable[[], object]
    reference: Callable[[], object]


def references() -> dict[str, Callable[[], object]]:
    """Fixed computations of a few milliseconds, none of them of rocforge."""
    rng = np.random.default_rng(0)
    square, matrix, vector = (rng.standard_normal(n, np.float32) for n in ((640, 640), (2048, 4096), 4096))
    packed = rng.integers(0, 256, 1 << 19, np.uint8)

    def unpack() -> object:
        return (packed & 15).astype(np.float32) * 0.5 + (packed >> 4)

    def interpret() -> object:
        counts: dict[str, int] = {}
        for number in range(8000):
            key = str(number % 97)
            counts[key] = counts.get(key, 0) + len(key)
        return counts

    return {
        "gemm": lambda: square @ square,
        "gemv": lambda: matrix @ vector,
        "unpack": unpack,
        "interpret": interpret,
    }


def works() -> dict[str, Work]:
    """By name. Each run is of some milliseconds."""
    refs, rng = references(), np.random.default_rng(0)
    model, _ = rf.load(DEMO, device="cpu")
    engine = rf.Engine(model, cache_tokens=1 << 14)
    prompt, values = rng.integers(0, 4096, 32), rng.standard_normal((128, 1024), np.float32)
    packed = rf.quantize(values, "Q8_0")

    def step() -> None:
        if not engine.busy:
            engine.add(list(range(1, 13)), rf.SamplingParams(max_tokens=500, temperature=0, ignore_eos=True))
        engine.step()

    return {
        "decode, one step": Work(step, refs["gemv"]),
        "prefill, 32 tokens": Work(lambda: model(prompt), refs["gemm"]),
        "linear, 8 rows of x": Work(lambda: values[:8] @ packed.T, refs["unpack"]),
        "dequantize": Work(packed.dequantize, refs["unpack"]),
        "open a file": Work(lambda: rf.open_gguf(DEMO).close(), refs["interpret"]),
    }


def _waited() -> int:
    """Nanoseconds for which this thread could run and had no core."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    except (OSError, IndexError):
        return 0


def seconds(run: Callable[[], object]) -> float:
    """What a run takes, less the time for which it waited for a core."""
    start = time.perf_counter()
    waited = _waited()
    run()
    waited = _waited() - waited
    return time.perf_counter() - start - waited / 1e9


def measure(works: dict[str, Work], limit: float = SECONDS) -> dict[str, float]:
    """Ratios by name, of rounds that take about `limit` seconds together."""
    for work in works.values():
        work.run()  # the first one unpacks weights, say
    found: dict[str, list[float]] = {name: [] for name in works}
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        for name, work in works.items():
            found[name].append(seconds(work.run) / seconds(work.reference))
    return {name: round(float(np.quantile(ratios, 0.25)), 3) for name, ratios in found.items()}


def measure_to_keep(works: dict[str, Work]) -> dict[str, float]:
    """The median of three measurements."""
    found = [measure(works) for _ in range(3)]
    return {name: statistics.median(ratios[name] for ratios in found) for name in works}


def bounds(kept: list[history.Run], machine: str) -> dict[str, float]:
    """What each ratio may be at most: by the newest run of this machine, else by the highest of all."""
    ours = [run for run in kept if run.ratios and run.machine == machine]
    if ours:
        return {name: LOSS * ratio for name, ratio in ours[-1].ratios.items()}
    names = {name for run in kept for name in run.ratios}
    return {name: LOSS_ELSEWHERE * max(run.ratios.get(name, 0.0) for run in kept) for name in names}


def check(
    works: dict[str, Work], bounds: dict[str, float], limit: float = SECONDS
) -> tuple[dict[str, float], set[str]]:
    """Ratios, the lowest of all tries, and the names of those that were above their bounds in each.

    Every try after the first is of what was too slow in all so far, and takes half the time.
    """
    found = measure(works, limit)
    for _ in range(TRIES - 1):
        if slow := _above(found, bounds):
            again = measure({name: works[name] for name in slow}, limit / 2)
            found |= {name: min(found[name], again[name]) for name in slow}
    return found, _above(found, bounds)


def _above(ratios: dict[str, float], bounds: dict[str, float]) -> set[str]:
    return {name for name, ratio in ratios.items() if ratio > bounds.get(name, np.inf)}


def this_run(ratios: dict[str, float]) -> history.Run:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    now = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M}"
    source = "python benches/ratios.py"
    return history.Run(history.machine(), now, commit, source, history.versions(), ratios=ratios)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", action="store_true", help="keep the ratios in benches/history/")
    options = parser.parse_args()
    machine = history.machine()
    allowed = bounds(history.runs(), machine)
    with threadpool_limits(1):
        ratios, slow = (measure_to_keep(works()), set()) if options.save else check(works(), allowed)
    print(f"{machine}: time over a reference computation's")
    for name, ratio in ratios.items():
        verdict = "SLOWER" if name in slow else ""
        print(f"{name:20} {ratio:8.3f}  at most {allowed.get(name, np.nan):8.3f}  {verdict}".rstrip())
    if options.save:
        print(f"kept as {this_run(ratios).save()}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
