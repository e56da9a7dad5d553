"""Latent attention against the definition in float64: each head's keys and values made of latents, then attention."""

import numpy as np
import pytest

import rocforge as rf
from rocforge.nn import LatentAttention
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import PagedKV
from rocforge.ops.latent_attention import expanded_attention, head_linear, latent_attention, store_latents
from rocforge.ops.rope import Rotation, rope_frequencies
from rocforge.ops.temperature import Temperature

HEADS, RANK, OWN, SHARED, VALUES = 3, 24, 10, 6, 7
CHUNKS = [Chunk(0, 5, [3]), Chunk(0, 40, [1, 0]), Chunk(0, 1, [2])]


def filled(rng, key_type: str | None = None):
    """A layer whose cache has the chunks' rows, as float64, and the rows themselves, a sequence each."""
    cache = KVCache([PagedKV(1, RANK + SHARED, 0, key_type)], 4)
    tokens = sum(chunk.count for chunk in CHUNKS)
    layer = Batch.of(cache, CHUNKS).state_of(0)
    latents, keys = rng.standard_normal((tokens, RANK), np.float32), rng.standard_normal((tokens, SHARED), np.float32)
    store_latents(np.zeros((tokens, HEADS, OWN + SHARED), np.float32), latents, keys, layer, None)
    rows = np.concatenate([latents, keys], axis=1).astype(np.float64)
    return layer, np.split(rows, np.cumsum([chunk.count for chunk in CHUNKS])[:-1])


def by_definition(q, rows, k_b, v_b, scale, temperature):
    """One sequence: q (tokens, heads, OWN + SHARED), rows (tokens, RANK + SHARED)."""
    latents, shared, out = rows[:, :RANK], rows[:, RANK:], np.empty((len(q), HEADS, VALUES))
    for head in range(HEADS):
        keys = np.concatenate([latents @ k_b[head].astype(np.float64), shared], axis=1)
        values = latents @ v_b[head].astype(np.float64).T
        for i in range(len(q)):
            grown = 1 + temperature.scale * np.log(1 + i // temperature.length) if temperature else 1
            weights = np.exp(keys[: i + 1] @ q[i, head].astype(np.float64) * scale * grown)
            out[i, head] = weights / weights.sum() @ values[: i + 1]
    return out


@pytest.mark.parametrize("temperature", [None, Temperature(0.5, 8)])
def test_matches_definition(rng, temperature):
    """Prompts of three sequences; then the last token of each alone, as a decode step has it."""
    layer, rows = filled(rng)
    k_b = rng.standard_normal((HEADS, RANK, OWN), np.float32)
    v_b = rng.standard_normal((HEADS, VALUES, RANK), np.float32)
    q = [rng.standard_normal((len(part), HEADS, OWN + SHARED), np.float32) for part in rows]
    expected = [by_definition(*pair, k_b, v_b, 0.2, temperature) for pair in zip(q, rows, strict=True)]
    if temperature is not None:
        q = [part * temperature.factors(np.arange(len(part)))[:, None, None] for part in q]

    def attend(q, layer):
        absorbed = head_linear(q[..., :OWN], k_b)
        return head_linear(latent_attention(absorbed, q[..., OWN:], layer, 0.2), v_b)

    np.testing.assert_allclose(attend(np.concatenate(q), layer), np.concatenate(expected), rtol=1e-4, atol=1e-4)
    last = [Chunk(chunk.count - 1, 1, chunk.table) for chunk in CHUNKS]
    cache = KVCache([PagedKV(1, RANK + SHARED, 0)], 4)
    cache.paged[0].keys[0].reshape(-1, 1, RANK + SHARED)[...] = layer.keys
    y = attend(np.stack([part[-1] for part in q]), Batch.of(cache, last).state_of(0))
    np.testing.assert_allclose(y, np.stack([part[-1] for part in expected]), rtol=1e-4, atol=1e-4)


def test_expanded(rng):
    """Keys and values of heads, from storing to their results: of the chunks' own tokens, by the definition."""
    layer, rows = filled(rng)
    k_b = rng.standard_normal((HEADS, RANK, OWN), np.float32)
    v_b = rng.standard_normal((HEADS, VALUES, RANK), np.float32)
    q = [rng.standard_normal((len(part), HEADS, OWN + SHARED), np.float32) for part in rows]
    expected = [by_definition(*pair, k_b, v_b, 0.2, None) for pair in zip(q, rows, strict=True)]
    given = np.concatenate(rows).astype(np.float32)
    layer.keys[...] = 0
    y = expanded_attention(np.concatenate(q), given[:, :RANK], given[:, RANK:], layer, None, (k_b, v_b), 0.2)
    np.testing.assert_allclose(y, np.concatenate(expected), rtol=1e-4, atol=1e-4)


def test_storing(rng):
    """Latents are normalized, shared keys rotated, and queries parted; rows that are not written stay."""
    cache, frequencies = KVCache([PagedKV(1, RANK + SHARED, 0)], 2), rope_frequencies(SHARED)
    batch = Batch.of(cache, [Chunk(30, 4, [1, 0])])
    layer, q = batch.state_of(0), rng.standard_normal((4, HEADS, OWN + SHARED), np.float32)
    latents, keys, norm = (rng.standard_normal(shape, np.float32) for shape in ((4, RANK), (4, SHARED), (RANK,)))
    rotation = Rotation(*frequencies.cos_sin(batch.positions), False)
    own, rotated = store_latents(q, latents, keys, layer, rotation, norm, 1e-5)
    np.testing.assert_array_equal(own, q[..., :OWN])
    np.testing.assert_allclose(rotated, rf.rope(q[..., OWN:], batch.positions, frequencies), rtol=1e-6)
    scaled = store_latents(q, latents, keys, layer, rotation, norm, 1e-5, np.array([1, 2, 0.5, -1], np.float32))
    for part, plain in zip(scaled, (own, rotated), strict=True):
        np.testing.assert_allclose(part, plain * np.array([1, 2, 0.5, -1])[:, None, None], rtol=1e-6)
    rows = layer.keys[[62, 63, 0, 1], 0]
    np.testing.assert_allclose(rows[:, :RANK], rf.rms_norm(latents, norm, 1e-5), rtol=1e-6)
    np.testing.assert_allclose(rows[:, None, RANK:], rf.rope(keys[:, None], batch.positions, frequencies), rtol=1e-6)
    assert np.count_nonzero(layer.keys.any(axis=2)) == 4


def test_packed(rng):
    """A q8_0 cache, whose rows are whole runs of 32; q4_0 has other values than keys."""
    states = [PagedKV(1, 96, 0, "q8_0", "q4_0")]
    layer = Batch.of(KVCache(states, 2), [Chunk(0, 40, [1, 0])]).state_of(0)
    exact = Batch.of(KVCache([PagedKV(1, 96, 0)], 2), [Chunk(0, 40, [1, 0])]).state_of(0)
    latents, keys = rng.standard_normal((40, 80), np.float32), rng.standard_normal((40, 16), np.float32)
    q = rng.standard_normal((40, 2, 24), np.float32)
    absorbed, y = rng.standard_normal((40, 2, 80), np.float32), []
    for each in (layer, exact):
        _, rotated = store_latents(q, latents, keys, each, None)
        y.append(latent_attention(absorbed, rotated, each, 0.1))
    assert 0 < np.linalg.norm(y[0] - y[1]) / np.linalg.norm(y[1]) < 0.02
    with pytest.raises(rf.UnsupportedModelError, match="q4_0 spreads keys, of which latent"):
        KVCache([PagedKV(1, 96, 0, "q4_0")], 2)


def test_errors():
    layer = Batch.of(KVCache([PagedKV(1, RANK + SHARED, 0)], 1), [Chunk(0, 1, [0])]).state_of(0)
    q, latents, keys = (np.zeros(shape, np.float32) for shape in ((1, HEADS, OWN + SHARED), (1, RANK), (1, SHARED)))
    with pytest.raises(ValueError, match="store_latents: cache rows has the shape"):
        store_latents(q, latents[:, 1:], keys, layer, None)
    angles = np.ones((1, 2), np.float32)
    with pytest.raises(ValueError, match="4 elements are rotated; allowed are all 6 shared ones"):
        store_latents(q, latents, keys, layer, Rotation(angles, angles, False))
    with pytest.raises(ValueError, match="head_linear: x has the shape"):
        head_linear(q, np.zeros((HEADS, 4, OWN), np.float32))


def test_norm_may_be_watched(rng):
    """A latent's norm that is observed gives what it gives unobserved; and the cache's rows are all that there is."""
    attn = LatentAttention(16, HEADS, RANK, OWN, SHARED, VALUES, rope_frequencies(SHARED))
    attn.load_weights({path: rng.standard_normal(p.shape, np.float32) for path, p in attn.named_parameters()})
    cache, x = KVCache({attn: attn.state}, 1), rng.standard_normal((4, 16), np.float32)
    assert cache.nbytes == 32 * (RANK + SHARED) * 4
    batch = Batch.of(cache, [Chunk(0, 4, [0])])
    expected = attn(x, batch)
    with attn.capture("attn_kv_a_norm") as seen:
        np.testing.assert_array_equal(attn(x, batch), expected)
    assert seen["attn_kv_a_norm"].shape == (4, RANK)
