"""attention against the definition in float64, one query and head at a time; and over the paged cache."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import PagedKV
from rocforge.ops import attention as attention_module
from rocforge.ops.attention import alibi_slopes, attend, attention, paged_attention, store_kv


def reference(q, k, v, scale=None, causal=True, window=None, softcap=None, sinks=None, chunked=False, slopes=None):
    queries, heads, dim = q.shape
    tokens, kv_heads, _ = k.shape
    scale = scale or 1 / math.sqrt(dim)
    out = np.zeros(q.shape)
    for i in range(queries):
        here = tokens - queries + i
        first = 0 if window is None else here - here % window if chunked else here - window + 1
        for h in range(heads):
            scores = k[:, h * kv_heads // heads].astype(np.float64) @ q[i, h].astype(np.float64) * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            if slopes is not None:
                scores -= slopes[h] * np.abs(here - np.arange(tokens))
            for j in range(tokens):
                behind = j < first if causal else window and abs(here - j) >= window
                if (causal and j > here) or behind:
                    scores[j] = -np.inf
            weights = np.exp(scores - scores.max())
            total = weights.sum() + (np.exp(sinks[h] - scores.max()) if sinks is not None else 0)
            out[i, h] = weights / total @ v[:, h * kv_heads // heads].astype(np.float64)
    return out


def error(out, expected, size):
    """The norm of the difference over that of the same averages of the values' sizes, which do not cancel."""
    return np.linalg.norm(out - expected) / np.linalg.norm(size)


def draw(rng, queries, tokens, heads, kv_heads, dim):
    return (
        rng.standard_normal((queries, heads, dim)).astype(np.float32) * 2,
        rng.standard_normal((tokens, kv_heads, dim)).astype(np.float32),
        rng.standard_normal((tokens, kv_heads, dim)).astype(np.float32),
    )


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    queries=st.integers(1, 9),
    before=st.integers(0, 20),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    dim=st.sampled_from([1, 8, 33]),
    causal=st.booleans(),
)
def test_matches_definition(data, queries, before, kv_heads, group, dim, causal):
    """Any shape, with any combination of mask, window, cap, sinks, slopes and scale."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    heads = kv_heads * group
    q, k, v = draw(rng, queries, queries + before, heads, kv_heads, dim)
    options = {
        "scale": data.draw(st.sampled_from([None, 0.3])),
        "causal": causal,
        "window": data.draw(st.sampled_from([None, 1, 4])),
        "softcap": data.draw(st.sampled_from([None, 5.0])),
        "sinks": data.draw(st.sampled_from([None, rng.standard_normal(heads).astype(np.float32)])),
        "slopes": data.draw(st.sampled_from([None, alibi_slopes(heads)])),
    }
    expected, size = (reference(q, k, values, **options) for values in (v, np.abs(v)))
    assert error(attention(q, k, v, **options), expected, size) <= 1e-5


def test_tiles_equal_whole(rng, monkeypatch):
    """Queries in tiles give what they give at once."""
    q, k, v = draw(rng, 37, 50, 4, 2, 16)
    options = [{"window": 20}, {"window": 20, "chunked": True}]
    whole = [attention(q, k, v, **each) for each in options]
    monkeypatch.setattr(attention_module, "QUERY_TILE", 8)
    for each, expected in zip(options, whole, strict=True):
        np.testing.assert_allclose(attention(q, k, v, **each), expected, rtol=1e-5, atol=1e-6)


def test_misfit_names_shapes(rng):
    """Heads that are no multiple of kv_heads, or more queries than tokens."""
    for arguments in [(1, 4, 3, 2, 8), (5, 4, 2, 2, 8)]:
        with pytest.raises(ValueError, match="does not fit"):
            attention(*draw(rng, *arguments))


def test_layers_that_are_not_causal(rng):
    """Each token of whole sequences sees all of its own, or a window around it; the layers' keys are in one array."""
    for window in (None, 3):
        cache = KVCache([PagedKV(2, 16, 16, window=window, causal=False)] * 3, 8, block_size=4)
        assert len(cache.paged[0].keys) == 1
        batch = Batch.of(cache, [Chunk(0, n, table) for n, table in ((7, [0, 1]), (1, [5]), (10, [2, 3, 4]))])
        q, k, v = draw(rng, 18, 18, 4, 2, 16)
        for layer in range(3):
            out = attend(q, k * (layer + 1), v, batch.state_of(layer), None)
            for rows in (slice(0, 7), slice(7, 8), slice(8, 18)):
                expected = reference(q[rows], k[rows] * (layer + 1), v[rows], causal=False, window=window)
                np.testing.assert_allclose(out[rows], expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="a chunk starts behind 0"):
            Batch.of(cache, [Chunk(2, 5, [0, 1])])


@pytest.mark.parametrize("tables", [([0, 1], [2, 3, 4]), ([6, 1], [2, 5, 0])])
def test_paged_equals_dense(rng, tables):
    """Two sequences in one batch, their blocks in order or scattered, each attend to their own tokens alone."""
    cache = KVCache([PagedKV(2, 16, 16, window=5)] * 2, 8, block_size=4)
    lengths, counts = (7, 10), (3, 1)
    k, v = rng.standard_normal((2, sum(lengths), 2, 16)).astype(np.float32)
    whole = Batch.of(cache, [Chunk(0, n, table) for n, table in zip(lengths, tables, strict=True)])
    store_kv(k, v, whole.state_of(1))
    batch = Batch.of(cache, [Chunk(n - c, c, t) for n, c, t in zip(lengths, counts, tables, strict=True)])
    q = rng.standard_normal((sum(counts), 4, 16)).astype(np.float32)
    out = paged_attention(q, batch.state_of(1))
    np.testing.assert_allclose(out[:3], reference(q[:3], k[:7], v[:7], window=5), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[3:], reference(q[3:], k[7:], v[7:], window=5), rtol=1e-5, atol=1e-6)
    assert not cache.paged[0].keys[0].any()


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
)
def test_many_single_queries(data, lengths, kv_heads, group):
    """Sequences of any lengths that ask for one token each, between others that ask for more, with all options."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    heads, dim, size = kv_heads * group, 16, 4
    counts = [data.draw(st.integers(1, min(n, 3))) if data.draw(st.booleans()) else 1 for n in lengths]
    blocks = iter(data.draw(st.permutations(range(sum(-(-n // size) for n in lengths)))))
    tables = [[next(blocks) for _ in range(-(-n // size))] for n in lengths]
    seen = {"window": data.draw(st.sampled_from([None, 1, 4, 7])), "chunked": data.draw(st.booleans())}
    cache = KVCache([PagedKV(kv_heads, dim, dim, **seen)], sum(map(len, tables)), block_size=size)
    parts = [draw(rng, c, n, heads, kv_heads, dim) for n, c in zip(lengths, counts, strict=True)]
    q, k, v = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    whole = Batch.of(cache, [Chunk(0, n, t) for n, t in zip(lengths, tables, strict=True)])
    store_kv(k, v, whole.state_of(0))
    batch = Batch.of(cache, [Chunk(n - c, c, t) for n, c, t in zip(lengths, counts, tables, strict=True)])
    options = {
        "softcap": data.draw(st.sampled_from([None, 5.0])),
        "sinks": data.draw(st.sampled_from([None, rng.standard_normal(heads).astype(np.float32)])),
        "slopes": data.draw(st.sampled_from([None, alibi_slopes(heads)])),
    }
    expected = np.concatenate([reference(*part, **seen, **options) for part in parts])
    size = np.concatenate([reference(q, k, np.abs(v), **seen, **options) for q, k, v in parts])
    assert error(paged_attention(q, batch.state_of(0), **options), expected, size) <= 1e-5


def test_values_of_another_length_and_no_rotation(rng):
    """Values may be longer than keys; without a rotation queries and keys are stored and compared as they are."""
    cache = KVCache([PagedKV(2, 8, 12)], 2, block_size=4)
    q, k = draw(rng, 5, 5, 4, 2, 8)[:2]
    v = rng.standard_normal((5, 2, 12)).astype(np.float32)
    batch = Batch.of(cache, [Chunk(0, 5, [1, 0])])
    layer = batch.state_of(0)
    y = attend(q, k, v, layer, None)
    assert y.shape == (5, 4, 12)
    expected = [reference(q, k, part) for part in (v[..., :8], np.pad(v[..., 8:], ((0, 0), (0, 0), (0, 4))))]
    np.testing.assert_allclose(y, np.concatenate([expected[0], expected[1][..., :4]], -1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layer.keys[layer.slots], k)
