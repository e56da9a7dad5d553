"""Attention by way of its pattern: the same as in one op; and what a pattern has where."""

import numpy as np
import pytest

from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import PagedKV
from rocforge.ops.attention import alibi_slopes, paged_attention
from rocforge.ops.attention_pattern import attention_heads, attention_pattern

CHUNKS = [Chunk(0, 5, [2]), Chunk(9, 1, [0, 3], wants_logits=False), Chunk(6, 3, [5, 1])]
"""A prompt, a decode and a chunk of a prompt, in blocks of 8 tokens."""


def layer_and_queries(rng, window=None, chunked=False, causal=True):
    cache = KVCache([PagedKV(2, 6, 4, window=window, chunked=chunked, causal=causal)], 6, block_size=8)
    for array in (cache.paged[0].keys, cache.paged[0].values):
        array[...] = rng.standard_normal(array.shape)
    chunks = CHUNKS if causal else [Chunk(0, 5, [2]), Chunk(0, 4, [5, 1])]
    return Batch.of(cache, chunks).state_of(0), rng.standard_normal((9, 4, 6)).astype(np.float32)


@pytest.mark.parametrize(
    "seen", [(None,), (1,), (4,), (4, True), (None, False, False), (1, False, False), (4, False, False)]
)
@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 2.0, "scale": 0.7}, {"sinks": np.arange(4, dtype=np.float32)}, {"slopes": alibi_slopes(4)}],
)
def test_equals_attention_in_one_op(rng, seen, options):
    """Of several sequences at once, with windows, caps and sinks, in chunks, and not causal."""
    layer, q = layer_and_queries(rng, *seen)
    pattern = attention_pattern(q, layer, **options)
    assert pattern.shape == (4, 9, 10 if layer.causal else 5) and pattern.dtype == np.float32
    np.testing.assert_allclose(attention_heads(pattern, layer), paged_attention(q, layer, **options), atol=1e-6)


def test_slopes(rng):
    """Scores are less by the distance times the head's slope, on both sides of a token."""
    layer, q = layer_and_queries(rng, causal=False)
    pattern = attention_pattern(q, layer, slopes=alibi_slopes(4, 2.0))
    assert alibi_slopes(4, 2.0).tolist() == pytest.approx([2**-0.5, 0.5, 2**-1.5, 0.25])
    assert alibi_slopes(6, 8.0)[4:].tolist() == pytest.approx([2**-1, 2**-3])
    distance = np.abs(np.arange(5)[:, None] - np.arange(5))
    expected = attention_pattern(q, layer)[:, :5] * np.exp(-alibi_slopes(4, 2.0)[:, None, None] * distance)
    np.testing.assert_allclose(pattern[:, :5], expected / expected.sum(axis=-1, keepdims=True), atol=1e-6)


def test_what_is_where(rng):
    """A row is a token's, a column a position of its own sequence; zeros where nothing is seen; sinks take a share."""
    layer, q = layer_and_queries(rng, 4)
    pattern = attention_pattern(q, layer)
    positions = np.array([0, 1, 2, 3, 4, 9, 6, 7, 8])[:, None]
    seen = (np.arange(10) <= positions) & (np.arange(10) > positions - 4)
    assert (pattern[:, ~seen] == 0).all() and (pattern[:, seen] > 0).all()
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, atol=1e-6)
    assert (attention_pattern(q, layer, sinks=np.zeros(4, np.float32)).sum(axis=-1) < 1).all()


def test_a_pattern_of_ones_position(rng):
    """One that looks at a single position gives its value, of the window's first to the sequence's last; else zero."""
    layer, _ = layer_and_queries(rng, 4)
    pattern = np.zeros((4, 9, 10), np.float32)
    pattern[:, :, 7] = 1
    heads = attention_heads(pattern, layer)
    values = np.repeat(layer.values, 2, axis=1)
    assert not heads[:5].any(), "the sequence of 5 tokens has none at position 7"
    for row, slot in ((5, 7), (6, 5 * 8 + 7), (7, 5 * 8 + 7), (8, 5 * 8 + 7)):
        np.testing.assert_array_equal(heads[row], values[slot])
