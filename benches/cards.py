"""Expected decode rates of Llama 70B in Q4_K_M over several cards: the table of docs/cards.md. Nothing is measured.

    python benches/cards.py

A step is the bytes that each card reads, at the rate that its reads reach, the launches of a step, and the collectives:
two all-reduces a layer, one of the embedding, a broadcast and an all-gather of the logits. Cards and launches are those
of docs/amd.md; links are published, and what a small collective costs is assumed, but between two H200, where
bench_collectives.py has measured it.
"""

from __future__ import annotations

from typing import NamedTuple

from amd_cards import CARDS, H200, Card

from rocforge.formats.planar import planar_row_nbytes
from rocforge.selftest.synthetic import SHAPES, type_of

SHAPE = SHAPES["llama-3.1-70b"]
RECIPE = "Q4_K_M"
LAUNCHES_A_LAYER = {"alone": 5, "NCCL": 7, "peer memory": 5}
"""Beside the collectives: behind NCCL's norms are launches of their own."""
LAUNCHES_A_STEP = 9
"""Beside the layers': inputs, angles, embedding, norm, output, joining, sampling."""
COUNTS = (2, 4, 8)


class Link(NamedTuple):
    """How cards of one kind are connected.

    Attributes:
        name: the bus.
        rate: bytes a second from a card to its neighbour.
        small: seconds that a collective of next to no bytes costs, for two cards: assumed.
        more: for each further card: assumed.
        peer: seconds of a sum over peer memory, with the norm after it: assumed.
        memory: bytes of a card.
    """

    name: str
    rate: float
    small: float
    more: float
    peer: float
    memory: float


LINKS = {
    "MI300X": Link("xGMI, 64 GB/s", 64e9, 14e-6, 1.5e-6, 7e-6, 192e9),
    "RX 7900 XTX": Link("PCIe 4.0 x16, 25 GB/s", 25e9, 20e-6, 3e-6, 10e-6, 24e9),
    "PRO W7900": Link("PCIe 4.0 x16, 25 GB/s", 25e9, 20e-6, 3e-6, 10e-6, 48e9),
    "H200": Link("NVLink 4, 450 GB/s", 450e9, 7e-6, 1e-6, 4e-6, 141e9),
}


def weight_nbytes() -> int:
    """Bytes that a step reads of the weights; of the embedding it reads next to nothing."""
    heads, kv = SHAPE.heads * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim
    sizes = {"attn_q": (heads, SHAPE.dim), "attn_k": (kv, SHAPE.dim), "attn_v": (kv, SHAPE.dim)}
    sizes |= {"attn_output": (SHAPE.dim, heads), "ffn_gate": (SHAPE.ffn, SHAPE.dim), "ffn_up": (SHAPE.ffn, SHAPE.dim)}
    sizes |= {"ffn_down": (SHAPE.dim, SHAPE.ffn)}
    total = SHAPE.vocabulary * planar_row_nbytes(SHAPE.dim, type_of(RECIPE, "output.weight", 0, SHAPE))
    for layer in range(SHAPE.layers):
        for name, (rows, columns) in sizes.items():
            total += rows * planar_row_nbytes(columns, type_of(RECIPE, f"blk.{layer}.{name}.weight", layer, SHAPE))
    return total


def collectives(link: Link, cards: int, requests: int, small: float) -> float:
    """Seconds of a step's collectives; `small` is what one of few bytes costs."""
    row = 4.0 * SHAPE.dim * requests
    all_reduce = small + 2 * (cards - 1) / cards * row / link.rate
    logits = small + (cards - 1) / cards * 4 * SHAPE.vocabulary * requests / link.rate
    return (2 * SHAPE.layers + 1) * all_reduce + logits + small


def step(card: Card, cards: int, requests: int, *, peer: bool = False) -> float:
    """Seconds of a decode step of layers that are cut."""
    reading = weight_nbytes() / cards / card.read_rate
    sums = "alone" if cards == 1 else "peer memory" if peer else "NCCL"
    launching = (LAUNCHES_A_LAYER[sums] * SHAPE.layers + LAUNCHES_A_STEP) * card.launch
    if cards == 1:
        return reading + launching
    link = LINKS[card.name]
    return (
        reading
        + launching
        + collectives(link, cards, requests, link.peer if peer else link.small + (cards - 2) * link.more)
    )


def layers_step(card: Card, cards: int, requests: int) -> float:
    """Seconds of a decode step of layers dealt out, which go one after another."""
    link = LINKS[card.name]
    sends = (cards - 1) * (link.small + 4 * SHAPE.dim * requests / link.rate)
    return step(card, 1, requests) + sends + link.small + 4 * SHAPE.vocabulary * requests / link.rate


def table() -> str:
    """Markdown."""
    lines = [
        "| card | link | cards | GB a card | tokens/s, 1 request | by peer memory | by layers | 16 requests |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for card in [card for card in (*CARDS, H200) if card.name in LINKS]:
        link = LINKS[card.name]
        for cards in (1, *COUNTS):
            a_card = weight_nbytes() / cards
            if a_card > 0.92 * link.memory:
                continue
            figures = [1 / step(card, cards, 1)]
            figures += (
                [1 / step(card, cards, 1, peer=True), 1 / layers_step(card, cards, 1)] if cards > 1 else [None] * 2
            )
            figures.append(16 / step(card, cards, 16))
            said = " | ".join("" if figure is None else f"{figure:,.0f}" for figure in figures)
            lines.append(f"| {card.name} | {link.name} | {cards} | {a_card / 1e9:.1f} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
