"""All-reduces between the GPUs of one machine: by RCCL or NCCL, and by rocforge's own kernels over peer memory.

    python benches/bench_collectives.py --cards 2

Microseconds of one all-reduce of float32 among others in a replayed graph, the median over replays, on random numbers;
and what crosses a card's links in each direction, 2 (cards - 1) / cards of the array, a second. Sums are checked first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from typing import Any

import numpy as np

from rocforge.device.distributed import NcclGroup
from rocforge.device.libraries import cupy_module

SIZES = [1 << bits for bits in range(14, 25)]
"""Bytes: 16 KiB to 16 MiB."""
IN_A_GRAPH, REPLAYS = 20, 30
BY = {"NCCL": "0", "peer memory": "1"}
"""What ROCFORGE_PEER_MEMORY is."""


def times(rank: int, cards: int, unique: bytes, by: str) -> dict[int, float]:
    """Seconds of an all-reduce by its bytes, as this card sees it."""
    os.environ["ROCFORGE_PEER_MEMORY"] = BY[by]
    cupy = cupy_module()
    found = {}
    with cupy.cuda.Device(rank), cupy.cuda.Stream(non_blocking=True):
        group = NcclGroup(rank, [f"gpu:{card}" for card in range(cards)])
        group.connect(unique)
        for nbytes in SIZES:
            parts = np.random.default_rng(0).normal(size=(cards, nbytes // 4)).astype(np.float32)
            x = cupy.asarray(parts[rank])
            if by != "NCCL" and (group._peers is None or not group._peers.takes(x)):
                break
            group.all_reduce(x)
            np.testing.assert_allclose(x.get(), parts.sum(0), rtol=1e-5, atol=1e-5)
            found[nbytes] = seconds(group, x)
    return found


def seconds(group: NcclGroup, x: Any) -> float:
    """Of one all-reduce of `x`, which is scaled down after each so that it stays finite."""
    cuda = cupy_module().cuda
    stream = cuda.get_current_stream()
    x *= 1 / group.size  # compiled before it is captured
    graphs = []
    for calls in (IN_A_GRAPH, 0):  # the second has the scaling alone
        stream.begin_capture()
        for _ in range(IN_A_GRAPH):
            if calls:
                group.all_reduce(x)
            x *= 1 / group.size
        graphs.append(stream.end_capture())
    taken: list[list[float]] = [[], []]
    for _ in range(REPLAYS):
        for graph, of in zip(graphs, taken, strict=True):
            begin, end = cuda.Event(), cuda.Event()
            begin.record()
            graph.launch()
            end.record()
            end.synchronize()
            of.append(cuda.get_elapsed_time(begin, end) / 1e3)
    both, scaling = map(statistics.median, taken)
    return (both - scaling) / IN_A_GRAPH


def measured(cards: int, by: str) -> dict[int, float]:
    """As `times`, of the card that took longest."""
    context = multiprocessing.get_context("spawn")
    unique = NcclGroup.new_id()
    with context.Pool(cards) as pool:
        all_cards = pool.starmap(times, [(rank, cards, unique, by) for rank in range(cards)], chunksize=1)
    return {nbytes: max(each[nbytes] for each in all_cards) for nbytes in all_cards[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cards", type=int, default=2)
    cards = parser.parse_args().cards
    found = {by: measured(cards, by) for by in BY}
    print("| KiB | " + " | ".join(f"{by}, us | GB/s" for by in BY) + " |\n| ---: |" + " ---: |" * 2 * len(BY))
    for nbytes in SIZES:
        crossing = 2 * (cards - 1) / cards * nbytes
        cells = [
            f"{took * 1e6:.1f} | {crossing / took / 1e9:.1f}" if (took := of.get(nbytes)) else " | "
            for of in found.values()
        ]
        print(f"| {nbytes >> 10:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
