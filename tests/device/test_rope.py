"""Rotary embedding on a device, alone and fused with head norms and the store into the paged cache."""

from __future__ import annotations

import cupy as cp
import numpy as np
import pytest

from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import PagedKV
from rocforge.ops.attention import rotate_and_store
from rocforge.ops.rope import rope, rope_frequencies, rotate
from rocforge.selftest.weights import relative_error


def rope_64(x: np.ndarray, positions: np.ndarray, frequencies) -> np.ndarray:
    """The rotation in float64, one pair at a time."""
    y = x.astype(np.float64)
    pairs = len(frequencies.frequencies)
    for i, frequency in enumerate(frequencies.frequencies):
        a, b = (i, i + pairs) if frequencies.neox else (2 * i, 2 * i + 1)
        cos, sin = (f(positions * frequency)[:, None] * frequencies.magnitude for f in (np.cos, np.sin))
        y[..., a], y[..., b] = x[..., a] * cos - x[..., b] * sin, x[..., b] * cos + x[..., a] * sin
    return y


def norm_64(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


@pytest.mark.parametrize("neox", [False, True])
@pytest.mark.parametrize("head_dim, dimensions", [(64, 64), (80, 32), (96, 96), (128, 128), (256, 64), (16, 10)])
def test_rope(head_dim: int, dimensions: int, neox: bool):
    """Positions reach 131,071, where a float32 angle would be wrong in the third digit."""
    rng = np.random.default_rng(head_dim)
    frequencies = rope_frequencies(dimensions, 500000.0, neox=neox, magnitude=1.25)
    x = rng.standard_normal((7, 3, head_dim), np.float32)
    positions = np.array([0, 1, 5, 4095, 8191, 100003, 131071], np.int32)
    y = rope(cp.asarray(x), cp.asarray(positions), frequencies)
    assert relative_error(y, rope_64(x, positions, frequencies)) < 1e-5


@pytest.mark.parametrize("neox", [False, True])
def test_sizes_at_random(rng, neox: bool):
    """Tokens, heads, positions and how much of a head is rotated, as nobody has thought of them."""
    for head_dim in (64, 80, 128):
        tokens, heads, pairs = rng.integers(1, [30, 9, head_dim // 2 + 1]).tolist()
        x, positions = rng.standard_normal((tokens, heads, head_dim), np.float32), rng.integers(0, 1 << 17, tokens)
        frequencies = rope_frequencies(2 * pairs, 10000.0, neox=neox)
        y = rope(cp.asarray(x), cp.asarray(positions, np.int32), frequencies)
        assert relative_error(y, rope_64(x, positions, frequencies)) < 1e-5


def test_rope_of_columns_of_a_wider_array():
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((5, 12, 64), np.float32)
    frequencies = rope_frequencies(64)
    positions = cp.arange(5, dtype=np.int32)
    y = rope(cp.asarray(wide)[:, 3:7], positions, frequencies)
    assert relative_error(y, rope_64(wide[:, 3:7], np.arange(5), frequencies)) < 1e-5


def test_too_many_elements():
    x = cp.zeros((1, 1, 16), np.float32)
    with pytest.raises(ValueError, match="32 elements are rotated"):
        rotate(x, cp.zeros((1, 16), np.float32), cp.zeros((1, 16), np.float32), False)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("heads, kv_heads, head_dim", [(4, 2, 64), (3, 1, 80), (2, 2, 128), (2, 1, 256)])
def test_rotate_and_store(heads: int, kv_heads: int, head_dim: int, norms: bool):
    """Two sequences in scattered blocks: keys and values lie in their slots, and nothing else has changed."""
    rng = np.random.default_rng(head_dim + norms)
    cache = KVCache([PagedKV(kv_heads, head_dim, head_dim)] * 2, 6, device="gpu")
    cache.paged[0].keys[...] = cache.paged[0].values[...] = 7
    batch = Batch.of(cache, [Chunk(30, 5, [4, 1]), Chunk(64, 1, [5, 0, 3])])
    slots = [4 * 32 + 30, 4 * 32 + 31, 32, 33, 34, 3 * 32]
    positions = np.array([30, 31, 32, 33, 34, 64])
    # as one product gives them: queries, keys and values side by side
    x = rng.standard_normal((6, heads + 2 * kv_heads, head_dim), np.float32)
    frequencies = rope_frequencies(head_dim // 2, neox=True)
    weights = [rng.standard_normal(head_dim, np.float32) for _ in range(2)]
    on_device = cp.asarray(x)
    parts = on_device[:, :heads], on_device[:, heads : heads + kv_heads], on_device[:, heads + kv_heads :]
    given = [cp.asarray(w) for w in weights] if norms else [None, None]
    q = rotate_and_store(*parts, batch.state_of(1), batch.rotation(frequencies), *given, eps=1e-5)
    q_in, k_in, v_in = x[:, :heads], x[:, heads : heads + kv_heads], x[:, heads + kv_heads :]
    if norms:
        q_in, k_in = norm_64(q_in, weights[0], 1e-5), norm_64(k_in, weights[1], 1e-5)
    assert relative_error(q, rope_64(q_in, positions, frequencies)) < 1e-5
    keys, values = cache.paged[0].layers[1]
    assert relative_error(keys[cp.asarray(slots)], rope_64(k_in, positions, frequencies)) < 1e-3
    assert (values.get()[slots] == v_in.astype(np.float16)).all()
    untouched = np.setdiff1d(np.arange(6 * 32), slots)
    assert (keys.get()[untouched] == 7).all() and (values.get()[untouched] == 7).all()
    assert (cache.paged[0].layers[0][0].get() == 7).all()


def test_a_negative_slot_is_not_stored():
    """Rows that fill up a batch of fixed size have no place in the cache."""
    cache = KVCache([PagedKV(1, 32, 32)], 2, device="gpu")
    batch = Batch.of(cache, [Chunk(0, 3, [1])])
    batch.paging[0].slots[1] = -1
    ones = cp.ones((3, 1, 32), np.float32)
    rotate_and_store(ones, ones, 2 * ones, batch.state_of(0), batch.rotation(rope_frequencies(32)))
    keys, values = (a.get()[:, 0, 0] for a in cache.paged[0].layers[0])
    assert list(np.flatnonzero(keys)) == list(np.flatnonzero(values)) == [32, 34]
    assert values[34] == 2
