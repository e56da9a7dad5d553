"""Times decode steps with LoRA adapters and without: none on the model, idle ones, one for all requests, several.

    python benches/bench_lora.py MODEL.gguf --batch 1,8,32 --rank 16
    python benches/bench_lora.py MODEL.gguf --device cpu

Random adapters of all matrices of attention and feed-forward. Microseconds of a step, the median over rounds, in which
the kinds take turns, and how much longer that is than without adapters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

import rocforge as rf
from rocforge.nn.layers import Linear
from rocforge.nn.transformer import Transformer

WARM, STEPS, ROUNDS = 6, 32, 7
"""Decode steps before those that are timed, in which the graph is captured; those; and rounds, the first dropped."""
ADAPTERS = 8
KINDS = ("without", "idle", "one", "several")


def random_lora(model: Transformer, rank: int, rng: np.random.Generator) -> rf.LoRA:
    """An adapter of every matrix of the blocks."""
    updates = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear) and path.startswith("blk.") and not path.endswith("_inp"):
            rows, columns = module.weight.shape
            updates[path] = rng.standard_normal((rank, columns)) / columns, rng.standard_normal((rows, rank)) / 100
    return rf.LoRA(updates)


def names(kind: str, batch: int) -> Sequence[str | None]:
    """The adapter of each request."""
    if kind in ("without", "idle"):
        return [None] * batch
    return [str(i % ADAPTERS) if kind == "several" else "0" for i in range(batch)]


def seconds_of_a_step(engine: rf.Engine, kind: str, batch: int) -> float:
    """The mean of a round's steps."""
    rng, tokens = np.random.default_rng(), STEPS + 2 * WARM
    requests = [
        engine.add(
            rng.integers(0, engine.model.config.vocabulary, 16).tolist(),
            rf.SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, lora=lora),
        )
        for lora in names(kind, batch)
    ]
    while any(len(request.output) < WARM for request in requests):
        engine.step()
    began = time.perf_counter()
    for _ in range(STEPS):
        engine.step()
    taken = time.perf_counter() - began
    engine.cancel_all()
    return taken / STEPS


@contextmanager
def engines(model: Transformer, other: Transformer, batch: int) -> Iterator[dict[str, rf.Engine]]:
    """By kind: of a model without adapters, and of one with them."""
    with (
        rf.Engine(model, cache_tokens=128 * batch, max_requests=batch) as without,
        rf.Engine(other, cache_tokens=128 * batch, max_requests=batch) as adapted,
    ):
        yield {kind: without if kind == "without" else adapted for kind in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", default="1,8,32", help="requests that decode at a time")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device")
    options = parser.parse_args()
    model, other = (rf.load(options.model, options.device)[0] for _ in range(2))
    rng = np.random.default_rng(0)
    for i in range(ADAPTERS):
        other.adapters[str(i)] = random_lora(other, options.rank, rng)
    print(f"{options.model}, {model.device}, {ADAPTERS} adapters of rank {options.rank}: us of a step")
    print("batch" + "".join(f"{kind:>18}" for kind in KINDS))
    for batch in map(int, options.batch.split(",")):
        with engines(model, other, batch) as by_kind:
            rounds = [{k: seconds_of_a_step(e, k, batch) for k, e in by_kind.items()} for _ in range(ROUNDS)][1:]
        medians = {kind: 1e6 * statistics.median(times[kind] for times in rounds) for kind in KINDS}
        base = medians["without"]
        print(f"{batch:>5}" + "".join(f"{us:>10.0f} ({us / base - 1:+5.0%})" for us in medians.values()), flush=True)


if __name__ == "__main__":
    main()
