"""Latent attention on a device against float64 arithmetic on the rows that it reads."""

from __future__ import annotations

from dataclasses import replace

import cupy as cp
import numpy as np
import pytest

import rocforge as rf
from rocforge.device import tuning
from rocforge.nn import LatentAttention
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import PagedKV
from rocforge.ops.device import head_linear as head_device
from rocforge.ops.device import latent_attention as latent_device
from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.latent_attention import head_linear, latent_attention, store_latents
from rocforge.ops.linear import linear
from rocforge.ops.rope import Rotation, rope_frequencies
from rocforge.ops.state import BLOCK_SIZE, PackedRows
from rocforge.ops.temperature import Temperature
from rocforge.selftest.weights import relative_error

pytestmark = pytest.mark.slow

SHAPES = [(20, 512, 64), (6, 80, 16)]
"""Heads, rank, shared elements: of GLM 4.7 Flash, and odd ones."""


def latent_attention_64(q, rows, rank: int, scale: float, temperature: Temperature | None) -> np.ndarray:
    """The last len(q) tokens of a sequence, a query at a time: q (tokens, heads, dim), rows (keys, dim)."""
    q, rows, out = q.astype(np.float64), rows.astype(np.float64), np.empty((*q.shape[:2], rank))
    for i in range(len(q)):
        position = len(rows) - len(q) + i
        grown = 1 if temperature is None else 1 + temperature.scale * np.log(1 + position // temperature.length)
        weights = np.exp(q[i] @ rows[: position + 1].T * scale * grown)
        out[i] = weights / weights.sum(axis=1, keepdims=True) @ rows[: position + 1, :rank]
    return out


def filled(rng, rank: int, shared: int, blocks: int) -> KVCache:
    """A cache of one layer, full of random numbers: what lies beyond a sequence's end is no zero either."""
    cache = KVCache([PagedKV(1, rank + shared, 0)], blocks, device="gpu")
    keys = cache.paged[0].keys
    keys[...] = cp.asarray(rng.standard_normal(keys.shape, np.float32).astype(np.float16))
    return cache


def check(rng, cache: KVCache, chunks: list[Chunk], heads: int, rank: int, temperature=None) -> None:
    """latent_attention of the chunks against each sequence alone."""
    batch = Batch.of(cache, chunks)
    layer = batch.state_of(0)
    rows, dim = layer.keys.get()[:, 0], layer.keys.shape[-1]
    q, scale = rng.standard_normal((sum(c.count for c in chunks), heads, dim), np.float32), 1.5 / np.sqrt(dim)
    scaled = q if temperature is None else q * batch.temperatures(temperature).get()[:, None, None]
    parts = cp.asarray(np.ascontiguousarray(scaled[..., :rank])), cp.asarray(np.ascontiguousarray(scaled[..., rank:]))
    y = latent_attention(*parts, layer, scale)
    expected, first = [], 0
    for chunk in chunks:
        slots = [chunk.table[t // BLOCK_SIZE] * BLOCK_SIZE + t % BLOCK_SIZE for t in range(chunk.length)]
        queries, first = q[first : first + chunk.count], first + chunk.count
        expected.append(latent_attention_64(queries, rows[slots], rank, scale, temperature))
    assert relative_error(y, np.concatenate(expected)) < 2e-3


@pytest.mark.any_wave
@pytest.mark.parametrize("heads, rank, shared", SHAPES)
def test_decode(heads: int, rank: int, shared: int):
    """One query a sequence: lengths around the edges of steps, blocks and splits; tables out of order."""
    rng = np.random.default_rng(rank)
    cache, blocks = filled(rng, rank, shared, 24), rng.permutation(24).tolist()
    chunks = [Chunk(n - 1, 1, [blocks.pop() for _ in range(-(-n // 32))]) for n in (1, 16, 33, 100, 260)]
    check(rng, cache, chunks, heads, rank)


@pytest.mark.any_wave
def test_prompts():
    """Chunks of a prompt, at its start and later, with a decoding sequence among them, and a temperature."""
    rng = np.random.default_rng(1)
    chunks = [Chunk(0, 19, [3]), Chunk(31, 3, [5, 0]), Chunk(70, 1, [7, 2, 8]), Chunk(33, 5, [1, 4])]
    check(rng, filled(rng, 80, 16, 9), chunks, 6, 80, Temperature(0.4, 16))


@pytest.mark.parametrize("splits", [1, 3])
def test_splits(splits: int, monkeypatch):
    """Of one sequence, unsplit and in parts that are combined; twice, since the counters are left as zeros."""
    monkeypatch.setattr(latent_device, "splits_of", lambda *sizes: splits)
    rng = np.random.default_rng(2)
    cache = filled(rng, 80, 16, 4)
    for length in (97, 128):
        check(rng, cache, [Chunk(length - 1, 1, [2, 0, 3, 1])], 20, 80)


@pytest.mark.any_wave
@pytest.mark.parametrize("neox", [False, True])
@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("temperature", [None, Temperature(0.4, 16)])
def test_storing(rng, neox: bool, rotates: bool, temperature: Temperature | None):
    """As on the CPU, where rows are parts of wider ones; a token without a slot is not stored."""
    tokens, heads, own, rank, shared = 5, 3, 24, 80, 16
    q = rng.standard_normal((tokens, heads, own + shared), np.float32)
    rows, norm = rng.standard_normal((tokens, rank + shared), np.float32), rng.standard_normal(rank, np.float32)
    frequencies, chunk, stored = rope_frequencies(shared, neox=neox), Chunk(30, tokens, [1, 0]), {}
    for device in ("cpu", "gpu"):
        cache = KVCache([PagedKV(1, rank + shared, 0)], 2, device=device)
        batch = Batch.of(cache, [chunk])
        layer, (x, wide, weight) = batch.state_of(0), (rf.to_device(a, device) for a in (q, rows, norm))
        rotation = Rotation(*frequencies.cos_sin(batch.positions), neox) if rotates else None
        factors = None if temperature is None else batch.temperatures(temperature)
        parts = store_latents(x, wide[:, :rank], wide[:, rank:], layer, rotation, weight, 1e-5, factors)
        stored[device] = [*map(rf.asnumpy, parts), rf.asnumpy(layer.keys)]
    for got, expected in zip(stored["gpu"], stored["cpu"], strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-3)
    layer.slots[...] = -1
    store_latents(x + 1, wide[:, :rank], wide[:, rank:], layer, rotation)
    np.testing.assert_array_equal(rf.asnumpy(layer.keys), stored["gpu"][2])


@pytest.mark.any_wave
@pytest.mark.parametrize(
    ("kind", "rows", "columns"),
    [("F32", 40, 64), ("Q4_0", 40, 64), ("Q8_0", 300, 640), ("Q4_K", 27, 256), ("Q8_0", 8, 1056)],
)
def test_head_linear(rng, kind: str, rows: int, columns: int, monkeypatch):
    """Each head's own matrix, of one token and of several; of packed ones on the matrix unit, some tokens at a time."""
    monkeypatch.setattr(head_device, "MAX_PAIRS", 210)
    monkeypatch.setattr(head_device, "KEPT_PAIRS", 100)
    values = rng.standard_normal((3, rows, columns), np.float32)
    weight = values if kind == "F32" else rf.quantize(values, kind)
    for tokens in (1, 4, 6, 9, 80):
        x = rng.standard_normal((tokens, 3, columns), np.float32)
        y = head_linear(cp.asarray(x), rf.to_device(weight, "gpu"))
        expected = np.einsum("thc,hrc->thr", x.astype(np.float64), np.asarray(weight, np.float64))
        assert relative_error(y, expected) < 1e-2


@pytest.mark.any_wave
@pytest.mark.parametrize("heads", [2, 3])
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_head_linear_for_a_product(rng, heads: int, tokens: int):
    """Of few tokens the result is rounded as the product after it takes it, where rows are whole cells: bit for bit."""
    weight = rf.quantize(rng.standard_normal((heads, 64, 96), np.float32), "Q8_0").to_device("gpu")
    after = rf.quantize(rng.standard_normal((40, heads * 64), np.float32), "Q8_0").to_device("gpu")
    x = cp.asarray(rng.standard_normal((tokens, heads, 96), np.float32))
    floats = head_linear(x, weight).reshape(tokens, -1)
    y = head_linear(x, weight, after)
    few = tokens <= tuning.current().experts_int8_tokens
    assert isinstance(y, PackedOperand) == (few and heads == 2)
    assert cp.array_equal(linear(y, after), linear(floats, after))


@pytest.mark.parametrize("rank", [40, 576])
def test_other_sizes(rank: int):
    """What the kernels are not made for is refused in a sentence."""
    layer = Batch.of(KVCache([PagedKV(1, rank + 16, 0)], 1, device="gpu"), [Chunk(0, 1, [0])]).state_of(0)
    with pytest.raises(ValueError, match=rf"latents are of {rank} elements and shared .* multiples of 16, and 576"):
        latent_attention(cp.zeros((1, 2, rank), np.float32), cp.zeros((1, 2, 16), np.float32), layer, 1.0)


def test_packed_cache(rng):
    """A q8_0 cache, which has half as many bytes: rows as the host has them, and what is made of these."""
    rank, shared, heads, chunk, rows = 80, 16, 6, Chunk(0, 40, [1, 0]), {}
    latents, keys = (rng.standard_normal((40, n), np.float32) for n in (rank, shared))
    q = rng.standard_normal((40, heads, rank + shared), np.float32)
    for device in ("cpu", "gpu"):
        cache = KVCache([PagedKV(1, rank + shared, 0, "q8_0", "q8_0")], 2, device=device)
        layer = Batch.of(cache, [chunk]).state_of(0)
        store_latents(*(rf.to_device(a, device) for a in (q, latents, keys)), layer, None)
        parts = (rf.to_device(np.ascontiguousarray(part), device) for part in (q[..., :rank], q[..., rank:]))
        rows[device] = rf.asnumpy(latent_attention(*parts, layer, 0.1))
    assert relative_error(rows["gpu"], rows["cpu"]) < 2e-3


EXPANDED = [Chunk(0, 19, [3]), Chunk(31, 3, [5, 0]), Chunk(70, 1, [7, 2, 8]), Chunk(33, 150, [1, 4, 6, 9, 10, 11])]
"""Chunks of prompts, at their start and later, one of more tokens than a block makes keys of; and a token alone."""


def put_rows(to, rows: np.ndarray) -> None:
    """Fill a layer's rows, of whatever type and device; of a packed type as the host packs them."""
    if not isinstance(to, PackedRows):
        to[...] = rf.to_device(rows.astype(to.dtype), "gpu" if isinstance(to, cp.ndarray) else "cpu")
        return
    packed = replace(to, data=np.zeros(to.data.shape, np.uint8))
    packed[:] = rows
    to.data[...] = rf.to_device(packed.data, "gpu" if isinstance(to.data, cp.ndarray) else "cpu")


def attention_layer(rng, heads: int, sizes: tuple[int, int, int, int], kind: str, device: str) -> LatentAttention:
    """A layer of random weights, whose heads' matrices have a format: F32, or a packed one."""
    rank, own, shared, values = sizes
    layer = LatentAttention(64, heads, rank, own, shared, values, rope_frequencies(shared))
    weights = {
        path: rng.standard_normal(p.shape, np.float32) / np.sqrt(p.shape[-1]) for path, p in layer.named_parameters()
    }
    for name in ("attn_k_b.weight", "attn_v_b.weight"):
        weights[name] = weights[name] if kind == "F32" else rf.quantize(weights[name], kind)
    layer.load_weights({path: rf.to_device(weight, device) for path, weight in weights.items()})
    return layer


@pytest.mark.any_wave
@pytest.mark.parametrize(
    "heads, sizes, kind, cached",
    [(3, (80, 32, 16, 48), "F32", None), (5, (96, 64, 32, 32), "Q8_0", "q8_0")],
)
def test_expanded(rng, heads: int, sizes: tuple[int, int, int, int], kind: str, cached: str | None):
    """Keys and values that prompts make of latents, those of chunks before included, give what latents do."""
    seed, x = rng.integers(1 << 30), rng.standard_normal((sum(chunk.count for chunk in EXPANDED), 64), np.float32)
    results = []
    for device, expands in (("cpu", False), ("gpu", False), ("gpu", True)):
        layer = attention_layer(np.random.default_rng(seed), heads, sizes, kind, device)
        with tuning.trying(expanded_queries=1 if expands else 1 << 20):
            cache = KVCache({layer: replace(layer.state, key_type=cached)}, 12, device=device)
            rows, given = cache.paged[0].layers[0][0], np.random.default_rng(seed)
            before = given.standard_normal((12 * BLOCK_SIZE, 1, sizes[0] + sizes[2]), np.float32)
            put_rows(rows, before)
            batch = Batch.of(cache, EXPANDED)
        assert bool(batch.expanded) == expands and (batch.expansion(layer) is not None) == expands
        results.append(rf.asnumpy(layer(rf.to_device(x, device), batch)))
    exact, absorbed, expanded = results
    assert relative_error(absorbed, exact) < 8e-3 and relative_error(expanded, exact) < 8e-3
    assert (absorbed != expanded).any()
