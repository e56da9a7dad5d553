"""Benchmarks for candidates: launches over data larger than the caches, and a check of the first one's result."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rocforge.device.libraries import cupy_module
from rocforge.nn.state import PagedKV
from rocforge.ops.activation import swiglu
from rocforge.ops.attention import paged_attention
from rocforge.ops.linear import gated_linear, linear
from rocforge.selftest.attention import batches
from rocforge.selftest.products import floats
from rocforge.selftest.weights import random_weight, relative_error

MOST_COPIES = 16
CHECKED_ROWS = 64
"""Rows of a product that are compared with the host's."""


class Work(NamedTuple):
    """Launches of one computation on different memory, and the error of a result."""

    launches: list[Callable[[], Any]]
    error: Callable[[Any], float]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the benchmarks.

    Attributes:
        matrices: shapes (rows, columns) of weights.
        small_matrices: those with few rows.
        formats: of weights.
        contexts: (sequences, tokens of each) that decode attention sees.
        heads: query heads, key heads and elements of a head.
        cache_nbytes: that the launches of one measurement read together, at least.
        replays: of the graph that holds them.
    """

    matrices: tuple[tuple[int, int], ...]
    small_matrices: tuple[tuple[int, int], ...]
    formats: tuple[str, ...]
    contexts: tuple[tuple[int, int], ...]
    heads: tuple[int, int, int]
    cache_nbytes: int
    replays: int


FULL = Sizes(
    matrices=((4096, 4096), (14336, 4096), (4096, 14336)),
    small_matrices=((1024, 4096), (2048, 2048), (3072, 8192), (4096, 4096), (8192, 2048), (14336, 4096)),
    formats=("Q4_K", "Q8_0"),
    contexts=((1, 64), (1, 96), (1, 128), (1, 192), (1, 256), (1, 1024), (1, 4096), (8, 1024)),
    heads=(32, 8, 128),
    cache_nbytes=512 << 20,
    replays=15,
)
QUICK = Sizes(
    matrices=((64, 256),),
    small_matrices=((64, 256),),
    formats=("Q4_K",),
    contexts=((1, 64),),
    heads=(4, 2, 64),
    cache_nbytes=1 << 16,
    replays=2,
)
"""For a simulated card, or a trial run."""


def _copies(nbytes: int, sizes: Sizes) -> int:
    return max(2, min(MOST_COPIES, sizes.cache_nbytes // nbytes))


def product(qtype: str, shape: tuple[int, int], tokens: int, sizes: Sizes, rng: np.random.Generator) -> Work:
    """`linear` with a matrix of that format."""
    weight, x = random_weight(rng, qtype, shape), floats(rng, tokens, shape[1])
    there = cupy_module().asarray(x)
    expected = x.astype(np.float64) @ weight[:CHECKED_ROWS].dequantize().T
    copies = [weight.to_device("gpu") for _ in range(_copies(weight.nbytes, sizes))]
    return Work(
        [functools.partial(linear, there, w) for w in copies],
        lambda y: relative_error(y[:, :CHECKED_ROWS], expected),
    )


def gated(qtype: str, shape: tuple[int, int], tokens: int, sizes: Sizes, rng: np.random.Generator) -> Work:
    """`gated_linear` with two matrices of that format."""
    gate, up = (random_weight(rng, qtype, shape) for _ in range(2))
    x = floats(rng, tokens, shape[1]) / np.float32(np.sqrt(shape[1]))
    there = cupy_module().asarray(x)
    expected = swiglu(*(x @ w[:CHECKED_ROWS].dequantize().T for w in (gate, up)))
    copies = [(gate.to_device("gpu"), up.to_device("gpu")) for _ in range(_copies(2 * gate.nbytes, sizes))]
    return Work(
        [functools.partial(gated_linear, there, *pair) for pair in copies],
        lambda y: relative_error(y[:, :CHECKED_ROWS], expected),
    )


def decode(sequences: int, context: int, sizes: Sizes, rng: np.random.Generator) -> Work:
    """`paged_attention` of a token of each sequence."""
    heads, kv_heads, head_dim = sizes.heads
    nbytes = 4 * sequences * context * kv_heads * head_dim
    chunks = [(context - 1, 1)] * sequences
    pairs = [batches(rng, PagedKV(kv_heads, head_dim, head_dim), chunks) for _ in range(_copies(nbytes, sizes))]
    q = floats(rng, sequences, heads, head_dim)
    there, states = cupy_module().asarray(q), [[batch.state_of(0) for batch in pair] for pair in pairs]
    expected = paged_attention(q, states[0][0])
    return Work(
        [functools.partial(paged_attention, there, state) for _, state in states],
        lambda y: relative_error(y, expected),
    )


def cases(name: str, sizes: Sizes) -> list[Callable[[np.random.Generator], Work]]:
    """Factories of the benchmarks of a field of Tuning."""
    partial = functools.partial

    def products(shapes: Sequence[tuple[int, int]], *tokens: int) -> list[Callable[[np.random.Generator], Work]]:
        return [partial(product, q, shape, n, sizes) for n in tokens for shape in shapes for q in sizes.formats]

    if name in ("unsplit_tokens", "decode_blocks"):
        return [partial(decode, *context, sizes) for context in sizes.contexts]
    if name == "tile_blocks":
        return [partial(gated, q, shape, n, sizes) for n in (8, 16) for shape in sizes.matrices for q in sizes.formats]
    return {
        "gemv_threads": products(sizes.matrices, 1),
        "gemv_small_rows": products(sizes.small_matrices, 1),
        "gemv_wanted_threads": products(sizes.matrices, 2),
        "int8_tokens": products(sizes.matrices, 2, 3, 4, 8),
    }[name]
