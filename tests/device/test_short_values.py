"""Attention on a device where values are shorter than keys: its kernels, what is stored, and what is refused."""

from __future__ import annotations

import cupy as cp
import numpy as np
import pytest
from test_attention import check, filled

import rocforge as rf
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import PagedKV
from rocforge.ops.attention import attend, paged_attention, rotate_and_store
from rocforge.selftest.weights import relative_error

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dims, window", [((4, 2, 96, 64), None), ((8, 2, 192, 128), 40)])
def test_values_shorter_than_keys(rng, dims: tuple[int, ...], window: int | None):
    """In both kernels, the caches' rows and the results are as long as the values."""
    heads, kv_heads, key_dim, value_dim = dims
    cache = filled(rng, kv_heads, key_dim, 22, window, value_dim=value_dim)
    chunks = [Chunk(0, 37, [3, 9]), Chunk(31, 3, [5, 0]), Chunk(70, 1, [7, 2, 11]), Chunk(33, 20, [1, 14])]
    check(rng, cache, [*chunks, Chunk(299, 1, [4, 6, 8, 10, 12, 13, 15, 16, 17, 18])], heads)


@pytest.mark.parametrize("kind", [None, "q8_0", "q4_0"])
def test_short_values_are_stored(rng, kind: str | None):
    """By both kernels that store, from rows that lie apart: as on the host."""

    def in_two(q, k, v, layer, *options, **norms):
        return paged_attention(rotate_and_store(q, k, v, layer, *options, **norms), layer)

    state, chunks = PagedKV(2, 96, 64, kind or "f16", kind or "f16"), [Chunk(33, 1, [1, 0]), Chunk(0, 1, [2])]
    q, kv = rng.standard_normal((2, 4, 96), np.float32), rng.standard_normal((2, 2 * 160), np.float32)

    def result(run, device, asarray):
        q_there, kv_there = asarray(q), asarray(kv)
        k, v = kv_there[:, :192].reshape(2, 2, 96), kv_there[:, 192:].reshape(2, 2, 64)
        layer = Batch.of(KVCache([state], 3, device=device), chunks).state_of(0)
        return run(q_there, k, v, layer, None, v_eps=1e-5)

    expected = result(attend, "cpu", np.asarray)
    for run in (attend, in_two):
        y = result(run, "gpu", cp.asarray)
        assert y.shape == (2, 4, 64) and relative_error(y, expected) < (2e-2 if kind else 2e-3)


def test_values_longer_than_keys():
    """No kernel takes them, and it is said."""
    q, k, v = (cp.zeros((3, 2, dim), np.float32) for dim in (64, 64, 96))
    batch = Batch.of(KVCache([PagedKV(2, 64, 96)], 1, device="gpu"), [Chunk(0, 3, [0])])
    layer = batch.state_of(0)
    runs = (
        lambda: rf.attention(q, k, v),
        lambda: attend(q, k, v, layer, None),
        lambda: paged_attention(q, layer),
    )
    for run in runs:
        with pytest.raises(rf.UnsupportedModelError, match=r"keys have 64 elements and values 96; allowed .* shorter"):
            run()
