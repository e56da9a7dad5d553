"""Packed keys and values on a device: what is stored against the host's, attention against float64 on what is held."""

from __future__ import annotations

from dataclasses import replace

import cupy as cp
import numpy as np
import pytest
from simulated import needs_mma
from test_attention import attention_64

import rocforge as rf
from rocforge.device import tuning
from rocforge.device.cards import card_of, has_fp8
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import PagedKV
from rocforge.ops.attention import attend, paged_attention, rotate_and_store
from rocforge.ops.attention_pattern import attention_heads, attention_pattern
from rocforge.ops.rope import rope_frequencies
from rocforge.ops.state import PackedRows
from rocforge.selftest.weights import relative_error

pytestmark = pytest.mark.slow

FP8 = "fp8_e4m3" if has_fp8(card_of(0)) else "q4_0"
TYPES = [("q4_0", "q8_0", (8, 2, 128)), ("q8_0", FP8, (3, 1, 96))]
CHUNKS = [
    Chunk(69, 1, [7, 2, 11]),
    Chunk(0, 37, [3, 9]),
    Chunk(0, 1, [6]),
    Chunk(33, 20, [1, 14]),
    Chunk(63, 1, [5, 0]),
]
"""Decodes, prompts and their chunks, at the edges of blocks."""


def on_host(rows):
    """float32 (slots, heads, dim) of what a device holds."""
    return replace(rows, data=rows.data.get())[:] if isinstance(rows, PackedRows) else rows.get().astype(np.float32)


def given(rng, batch: Batch, heads: int) -> list[np.ndarray]:
    """Queries, keys and values of the batch's tokens; some of the keys' elements are large in all of them."""
    layer = batch.state_of(0)
    _, kv_heads, dim = layer.keys.shape
    q, k, v = (rng.standard_normal((len(batch.positions), n, dim), np.float32) for n in (heads, kv_heads, kv_heads))
    k[..., 3] += 20
    return [q, k, v]


@pytest.mark.parametrize("key_type, value_type, shape", TYPES)
def test_stored_and_attended(key_type, value_type, shape):
    """The cache is the host's, and results of both attention kernels and of the pattern are those of what it holds."""
    heads, kv_heads, dim = shape
    rng = np.random.default_rng(dim)
    states = [PagedKV(kv_heads, dim, dim, key_type, value_type)]
    caches = [KVCache(states, 15), KVCache(states, 15, device="gpu")]
    before = [Chunk(0, chunk.start, chunk.table) for chunk in CHUNKS if chunk.start]
    frequencies = rope_frequencies(dim, neox=True)
    for chunks in (before, CHUNKS):
        here, there = (Batch.of(cache, chunks) for cache in caches)
        parts = given(rng, here, heads)
        expected = rotate_and_store(*parts, here.state_of(0), here.rotation(frequencies))
        arrays = [cp.asarray(part) for part in parts]
        q = rotate_and_store(*arrays, there.state_of(0), there.rotation(frequencies))
        assert relative_error(q, expected) < 1e-5
    layer = there.state_of(0)
    held = [on_host(rows) for rows in (layer.keys, layer.values)]
    for ours, theirs in zip(held, (here.state_of(0).keys[:], here.state_of(0).values[:]), strict=True):
        assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 2e-3  # a few round to the other side
    expected, rows = [], 0
    for chunk in CHUNKS:
        slots = [chunk.table[t // 32] * 32 + t % 32 for t in range(chunk.length)]
        rows, queries = rows + chunk.count, q.get()[rows : rows + chunk.count]
        expected.append(attention_64(queries, held[0][slots], held[1][slots]))
    expected = np.concatenate(expected)
    single = np.isin(np.arange(len(expected)), [0, 38, 59])  # whose queries are in 8 bits, where the keys are integers
    bounds = (2e-2 if key_type in ("q8_0", "q4_0") else 2e-3), 2e-3
    for rows, bound in zip((single, ~single), bounds, strict=True):
        y = paged_attention(q, layer).get()[rows]
        assert np.linalg.norm(y - expected[rows]) / np.linalg.norm(expected[rows]) < bound
    by_pattern = attention_heads(attention_pattern(q, layer), layer)
    assert relative_error(by_pattern, expected) < 1e-3


@needs_mma
@pytest.mark.parametrize("key_type, value_type, shape", [("q8_0", "q4_0", (8, 1, 256)), ("q4_0", "q8_0", (3, 1, 128))])
def test_on_the_matrix_unit(key_type, value_type, shape):
    """The same where integers are multiplied there, by one wave and by two that share out the elements."""
    with tuning.trying(decode_matrix_packed=True):
        test_stored_and_attended(key_type, value_type, shape)
        test_one_launch_with_rope_and_store()


def test_one_launch_with_rope_and_store():
    """`attend` of one query a sequence is `rotate_and_store`, then `paged_attention`, bit for bit, in the cache too."""
    key_type, value_type, (heads, kv_heads, dim) = TYPES[0]
    rng, frequencies = np.random.default_rng(3), rope_frequencies(dim)
    caches = [KVCache([PagedKV(kv_heads, dim, dim, key_type, value_type)], 8, device="gpu") for _ in range(2)]
    prompt, parts = (
        [cp.asarray(rng.standard_normal((tokens, n, dim), np.float32)) for n in (heads, kv_heads, kv_heads)]
        for tokens in (200, 2)
    )
    results = []
    for cache in caches:
        before = Batch.of(cache, [Chunk(0, 200, range(7))])
        rotate_and_store(*prompt, before.state_of(0), before.rotation(frequencies))
        batch = Batch.of(cache, [Chunk(200, 1, range(7)), Chunk(0, 1, [7])])
        layer, rotation = batch.state_of(0), batch.rotation(frequencies)
        if cache is caches[0]:
            results.append(paged_attention(rotate_and_store(*parts, layer, rotation), layer))
        else:
            results.append(attend(*parts, layer, rotation))
    assert cp.array_equal(*results)
    for ours, theirs in zip(*((cache.paged[0].keys, cache.paged[0].values) for cache in caches), strict=True):
        assert cp.array_equal(ours, theirs)


def test_what_a_packed_cache_cannot_be(monkeypatch):
    """Heads that are no whole runs, and a card without the type: each is said."""
    with pytest.raises(rf.UnsupportedModelError, match="whole runs of 32 elements, and the model's have 80"):
        KVCache([PagedKV(1, 80, 80, "q8_0")], 1, device="gpu")
    monkeypatch.setattr("rocforge.nn.cache.has_fp8", lambda card: False)
    with pytest.raises(rf.UnsupportedModelError, match=r"has no fp8_e4m3, which gfx942, .* have; q8_0 takes as much"):
        KVCache([PagedKV(1, 80, 80, None, "fp8_e4m3")], 1, device="gpu")
