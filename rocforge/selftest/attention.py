"""Attention over the paged cache: decode, prompts, and the store before it, on the card against the host."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rocforge.device.libraries import cupy_module
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import PagedKV, blocks_for
from rocforge.ops.attention import alibi_slopes, attend, paged_attention
from rocforge.ops.latent_attention import expanded_attention, latent_attention, plan_expansion
from rocforge.ops.rope import rope_frequencies
from rocforge.ops.types import HeadGate
from rocforge.selftest.check import Check, Error, Outcome, Sizes
from rocforge.selftest.products import HALF, floats
from rocforge.selftest.weights import relative_error

Shape = tuple[int, int, int]


def checks(sizes: Sizes) -> list[Check]:
    named = {"heads {}/{} of {}".format(*shape): shape for shape in sizes.attention}
    decode = [(length - 1, 1) for length in sizes.contexts]
    n = sizes.prompt
    prompts = [(0, n), (n, n // 4), (70, 1), (33, 3)]
    options: dict[str, dict[str, Any]] = {
        "window": {"window": n // 3},
        "softcap": {"softcap": 20.0},
        "sinks": {"sinks": True},
        "slopes": {"slopes": alibi_slopes(sizes.attention[0][0])},
        "gates": {"gate": True},
        "all of these": {"window": n // 2, "softcap": 5.0, "scale": 0.2, "sinks": True},
    }
    whole = [(0, n), (0, 1), (0, n // 4)]
    encoders: dict[str, dict[str, Any]] = {"not causal": {}, "not causal, window": {"window": n // 3}}
    return [
        *(Check(f"decode, {name}", functools.partial(_paged, shape, decode, {})) for name, shape in named.items()),
        *(Check(f"prompts, {name}", functools.partial(_paged, shape, prompts, {})) for name, shape in named.items()),
        *(
            Check(f"with {name}", functools.partial(_paged, sizes.attention[0], [*decode, *prompts], given))
            for name, given in options.items()
        ),
        *(
            Check(name, functools.partial(_paged, sizes.attention[0], whole, {**given, "causal": False}))
            for name, given in encoders.items()
        ),
        *(
            Check(f"rotate, store, attend: {name}", functools.partial(_attend, shape, decode, prompts))
            for name, shape in named.items()
        ),
        Check("latents", functools.partial(_latents, sizes.latents, [*decode, *prompts])),
        Check("keys and values of latents", functools.partial(_expanded, sizes.latents, [*decode, *prompts])),
    ]


def batches(rng: np.random.Generator, state: PagedKV, chunks: list[tuple[int, int]]) -> tuple[Batch, Batch]:
    """The same chunks, blocks in random order, on caches of equal random content on the host and the device."""
    needed = [blocks_for(start + count) for start, count in chunks]
    blocks = iter(rng.permutation(sum(needed)).tolist())
    placed = [Chunk(*chunk, [next(blocks) for _ in range(n)]) for chunk, n in zip(chunks, needed, strict=True)]
    host, device = KVCache([state], sum(needed)), KVCache([state], sum(needed), device="gpu")
    pair = host.paged[0], device.paged[0]
    for here, there in zip(*((group.keys, group.values) for group in pair), strict=True):
        values = floats(rng, *here.shape).astype(np.float16)
        here[...] = values
        there.data.copy_from_device_async(cupy_module().asarray(values).data, values.nbytes)
    return Batch.of(host, placed), Batch.of(device, placed)


def _paged(shape: Shape, chunks: list[tuple[int, int]], options: dict[str, Any], rng: np.random.Generator) -> Outcome:
    heads, kv_heads, head_dim = shape
    options = dict(options)
    window, causal, gated = options.pop("window", None), options.pop("causal", True), options.pop("gate", False)
    here, there = batches(rng, PagedKV(kv_heads, head_dim, head_dim, window=window, causal=causal), chunks)
    q, asarray = floats(rng, len(here.positions), heads, head_dim), cupy_module().asarray
    given = {**options, "sinks": 2 * floats(rng, heads) if options.get("sinks") else None}
    gate = floats(rng, *q.shape) if gated else None
    expected = paged_attention(q, here.state_of(0), **given, gate=_gate(gate))
    given = {name: asarray(value) if isinstance(value, np.ndarray) else value for name, value in given.items()}
    y = paged_attention(asarray(q), there.state_of(0), **given, gate=_gate(gate, asarray)).get()
    return _by_sequence(chunks, here, y, expected, HALF)


def _gate(values: Any, asarray: Any = np.asarray) -> HeadGate | None:
    return None if values is None else HeadGate(asarray(values), "sigmoid")


def _by_sequence(
    chunks: list[tuple[int, int]], here: Batch, y: np.ndarray, expected: np.ndarray, tolerance: float
) -> Outcome:
    errors = {
        f"{start + count} tokens, the last {count}": Error(relative_error(y[span.rows], expected[span.rows]), tolerance)
        for (start, count), span in zip(chunks, here.state_of(0).spans, strict=True)
    }
    return Outcome(errors)


def _latents(shape: Shape, chunks: list[tuple[int, int]], rng: np.random.Generator) -> Outcome:
    """Queries and weights are rounded to float16."""
    heads, rank, shared = shape
    here, there = batches(rng, PagedKV(1, rank + shared, 0), chunks)
    absorbed, rotated = (floats(rng, len(here.positions), heads, n) for n in (rank, shared))
    asarray, scale = cupy_module().asarray, float(rank + shared) ** -0.5
    expected = latent_attention(absorbed, rotated, here.state_of(0), scale)
    y = latent_attention(asarray(absorbed), asarray(rotated), there.state_of(0), scale).get()
    return _by_sequence(chunks, here, y, expected, 2 * HALF)


def _expanded(shape: Shape, chunks: list[tuple[int, int]], rng: np.random.Generator) -> Outcome:
    """Prompts make them, which rounds them to float16; the host attends to the latents themselves."""
    heads, rank, shared = shape
    here, there = batches(rng, PagedKV(1, rank + shared, 0), chunks)
    own, value_dim, tokens = 2 * shared, 2 * shared, len(here.positions)
    weights: Any = [floats(rng, heads, *size) / np.float32(rank**0.5) for size in ((rank, own), (value_dim, rank))]
    q, latents, keys = (floats(rng, tokens, *size) for size in ((heads, own + shared), (rank,), (shared,)))
    asarray, scale, layer = cupy_module().asarray, float(own + shared) ** -0.5, there.state_of(0)
    expected = expanded_attention(q, latents, keys, here.state_of(0), None, weights, scale)
    plan = plan_expansion(layer, sum(blocks_for(start + count) for start, count in chunks))
    q, latents, keys, *weights = map(asarray, (q, latents, keys, *weights))
    y = expanded_attention(q, latents, keys, layer, None, weights, scale, plan).get()
    return _by_sequence(chunks, here, y, expected, 2 * HALF)


def _attend(
    shape: Shape, decode: list[tuple[int, int]], prompts: list[tuple[int, int]], rng: np.random.Generator
) -> Outcome:
    """With norms of heads and rope; new keys and values are rounded to float16, which the host's are not."""
    heads, kv_heads, head_dim = shape
    frequencies, errors = rope_frequencies(head_dim, 500000.0, neox=True), {}
    for name, chunks in (("decode", decode), ("prompts", prompts)):
        here, there = batches(rng, PagedKV(kv_heads, head_dim, head_dim), chunks)
        q, k, v = (floats(rng, len(here.positions), n, head_dim) for n in (heads, kv_heads, kv_heads))
        norms: dict[str, Any] = {"q_norm": floats(rng, head_dim), "k_norm": floats(rng, head_dim)}
        layer, layer_there = here.state_of(0), there.state_of(0)
        expected = attend(q, k, v, layer, here.rotation(frequencies), **norms)
        asarray = cupy_module().asarray
        norms = {key: asarray(norm) for key, norm in norms.items()}
        y = attend(asarray(q), asarray(k), asarray(v), layer_there, there.rotation(frequencies), **norms)
        errors[name] = Error(relative_error(y, expected), 2 * HALF)
        errors[f"keys of {name}"] = Error(relative_error(layer_there.keys, layer.keys), HALF)
        errors[f"values of {name}"] = Error(relative_error(layer_there.values, layer.values), HALF)
    return Outcome(errors)
