"""Attention on a device against float64 arithmetic on the float16 keys and values that it reads."""

from __future__ import annotations

import os

import cupy as cp
import numpy as np
import pytest
from simulated import needs_mma

import rocforge as rf
from rocforge.device import tuning
from rocforge.device.arrays import asnumpy
from rocforge.engine.capture import GraphRecorder
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import PagedKV
from rocforge.ops.attention import alibi_slopes, attend, attention, paged_attention, rotate_and_store
from rocforge.ops.attention_pattern import attention_heads, attention_pattern
from rocforge.ops.rope import rope_frequencies
from rocforge.ops.state import BLOCK_SIZE, PagedLayer
from rocforge.selftest.weights import relative_error

pytestmark = pytest.mark.slow

SHAPES = [(2, 1, 64), (4, 4, 80), (6, 2, 96), (8, 2, 128), (16, 1, 128), (8, 1, 256), (8, 1, 512)]


def attention_64(q, k, v, scale=None, causal=True, window=None, softcap=None, sinks=None, chunked=False, slopes=None):
    """The last len(q) tokens of a sequence, a head and a query at a time."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    out = np.empty((*q.shape[:2], v.shape[2]))
    group = q.shape[1] // k.shape[1]
    scale = 1 / np.sqrt(q.shape[2]) if scale is None else scale
    for i in range(len(q)):
        own = len(k) - len(q) + i
        position = own if causal else min(own + (window or len(k)), len(k)) - 1
        first = 0 if window is None else own - own % window if chunked else max(0, own - window + 1)
        for h in range(q.shape[1]):
            scores = k[first : position + 1, h // group] @ q[i, h] * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            if slopes is not None:
                scores = scores - slopes[h] * np.abs(own - np.arange(first, position + 1))
            weights = np.exp(scores)
            weights /= weights.sum() + (0 if sinks is None else np.exp(np.float64(sinks[h])))
            out[i, h] = weights @ v[first : position + 1, h // group]
    return out


def filled(rng, kv_heads: int, head_dim: int, blocks: int, window=None, *, value_dim=None, **seen) -> KVCache:
    """A cache of one layer, full of random numbers: what lies beyond a sequence's end is no zero either."""
    state = PagedKV(kv_heads, head_dim, value_dim or head_dim, window=window, **seen)
    cache = KVCache([state], blocks, device="gpu")
    for array in (cache.paged[0].keys, cache.paged[0].values):
        array[...] = cp.asarray(rng.standard_normal(array.shape, np.float32).astype(np.float16))
    return cache


def check(rng, cache: KVCache, chunks: list[Chunk], heads: int, **options) -> None:
    """paged_attention of the chunks, in one op and by way of the pattern, against each sequence alone."""
    batch = Batch.of(cache, chunks)
    layer = batch.state_of(0)
    keys, values = layer.keys.get(), layer.values.get()
    q = rng.standard_normal((sum(c.count for c in chunks), heads, keys.shape[-1]), np.float32)
    given = {name: cp.asarray(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}
    y = paged_attention(cp.asarray(q), layer, **given)
    expected, rows = [], 0
    for chunk in chunks:
        slots = [chunk.table[t // BLOCK_SIZE] * BLOCK_SIZE + t % BLOCK_SIZE for t in range(chunk.start + chunk.count)]
        queries, rows = q[rows : rows + chunk.count], rows + chunk.count
        seen = {"window": layer.window, "causal": layer.causal, "chunked": layer.chunked}
        expected.append(attention_64(queries, keys[slots], values[slots], **seen, **options))
    assert relative_error(y, np.concatenate(expected)) < 1e-3
    pattern = attention_pattern(cp.asarray(q), layer, **given)
    assert pattern.shape == (heads, len(q), max(chunk.length for chunk in chunks))
    assert relative_error(attention_heads(pattern, layer), np.concatenate(expected)) < 1e-3


@pytest.mark.parametrize("heads, kv_heads, head_dim", SHAPES)
def test_decode(heads: int, kv_heads: int, head_dim: int):
    """One query a sequence: lengths around the edges of blocks, of splits, and of one token; tables out of order."""
    rng = np.random.default_rng(head_dim)
    cache = filled(rng, kv_heads, head_dim, 40)
    blocks = list(rng.permutation(40))
    lengths = [1, 32, 33, 100, 300, 5]
    chunks = [Chunk(n - 1, 1, [int(blocks.pop()) for _ in range(-(-n // 32))]) for n in lengths]
    check(rng, cache, chunks, heads)


@needs_mma
@pytest.mark.parametrize(
    "heads, kv_heads, head_dim",
    [(16, 2, 64), (4, 4, 128), (8, 1, 128), (6, 2, 192), (16, 1, 256), (16, 2, 256), (8, 1, 512)],
)
def test_decode_on_the_matrix_unit(heads: int, kv_heads: int, head_dim: int):
    """The same where waves have parts of a head's elements: one, two, three and four; heads that are few and many."""
    with tuning.trying(decode_matrix_group=0):
        test_decode(heads, kv_heads, head_dim)


@pytest.mark.parametrize("heads, kv_heads, head_dim", SHAPES)
def test_prefill(heads: int, kv_heads: int, head_dim: int):
    """Chunks of a prompt, at its start and later, of sizes around those of tiles; and a decoding sequence with them."""
    rng = np.random.default_rng(head_dim)
    cache = filled(rng, kv_heads, head_dim, 16)
    chunks = [Chunk(0, 37, [3, 9]), Chunk(31, 3, [5, 0]), Chunk(70, 1, [7, 2, 11]), Chunk(33, 20, [1, 14])]
    check(rng, cache, chunks, heads)


@pytest.mark.parametrize("head_dim", [64, 128, 256, 512])
def test_prefill_behind_a_prefix(head_dim: int):
    """Rows of several blocks and keys of several tiles, of two sequences; a window begins within a tile."""
    rng = np.random.default_rng(head_dim)
    cache = filled(rng, 1, head_dim, 16, window=170)
    check(rng, cache, [Chunk(200, 24, [3, 9, 1, 14, 5, 0, 12]), Chunk(130, 5, [7, 2, 11, 4, 13])], heads=8)


def test_sizes_at_random(rng):
    """Sequences, chunks of them and windows as nobody has thought of them, of some shapes of heads."""
    for heads, kv_heads, head_dim in rng.permutation(SHAPES[:5])[:3].tolist():
        window = [None, int(rng.integers(1, 100))][rng.integers(2)]
        cache, blocks, chunks = filled(rng, kv_heads, head_dim, 30, window), rng.permutation(30).tolist(), []
        for start in rng.integers(0, 150, 3).tolist():
            count = int(rng.choice([1, rng.integers(2, 40)]))
            chunks.append(Chunk(start, count, [blocks.pop() for _ in range(start + count + BLOCK_SIZE - 1 >> 5)]))
        check(rng, cache, chunks, heads)


OPTIONS = [
    {"window": 5},
    {"window": 40},
    {"window": 40, "chunked": True},
    {"softcap": 2.0},
    {"scale": 0.3},
    {"sinks": np.array([3.0, -20.0, 60.0, 0.5], np.float32)},
    {"window": 33, "softcap": 1.5, "scale": 0.2, "sinks": np.array([0.0, 1.0, -1.0, 2.0], np.float32)},
    {"slopes": alibi_slopes(4)},
    {"slopes": alibi_slopes(4), "window": 33, "softcap": 1.5, "sinks": np.array([0.0, 1.0, -1.0, 2.0], np.float32)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o))
def test_options(options: dict):
    rng = np.random.default_rng(1)
    options = dict(options)
    cache = filled(rng, 2, 64, 16, options.pop("window", None), chunked=options.pop("chunked", False))
    chunks = [Chunk(0, 50, [1, 5]), Chunk(129, 1, [0, 2, 3, 4, 6]), Chunk(60, 10, [8, 9, 7]), Chunk(3, 1, [10])]
    check(rng, cache, chunks, heads=4, **options)


def test_large_scores():
    """Scores in the hundreds, rising along the sequence, so that the running maximum changes at each step."""
    rng = np.random.default_rng(2)
    cache = filled(rng, 1, 64, 8)
    cache.paged[0].keys[...] = cp.linspace(-4, 4, 8 * 32).reshape(1, 8, 32, 1, 1) * cp.ones(64)
    batch = Batch.of(cache, [Chunk(255, 1, range(8)), Chunk(100, 20, range(4))])
    q = np.abs(rng.standard_normal((21, 2, 64), np.float32)) * 4
    keys, values = (array.get() for array in cache.paged[0].layers[0])
    expected = [attention_64(q[:1], keys, values), attention_64(q[1:], keys[:120], values[:120])]
    assert relative_error(paged_attention(cp.asarray(q), batch.state_of(0)), np.concatenate(expected)) < 1e-3


def test_lengths_are_read_by_the_launch():
    """Many splits, of which the lengths decide how many have work; the counters are ready again after each launch."""
    rng = np.random.default_rng(3)
    cache = filled(rng, 2, 64, 12)
    batch = Batch.of(cache, [Chunk(383, 1, range(12))])
    q = rng.standard_normal((1, 4, 64), np.float32)
    keys, values = (array.get() for array in cache.paged[0].layers[0])
    for length in [384, 1, 32, 200, 33, 384]:
        batch.lengths[...] = length
        with tuning.trying(unsplit_tokens=32):
            y = paged_attention(cp.asarray(q), batch.state_of(0))
        by_pattern = attention_heads(attention_pattern(cp.asarray(q), batch.state_of(0)), batch.state_of(0))
        expected = attention_64(q, keys[:length], values[:length])
        assert relative_error(y, expected) < 1e-3 and relative_error(by_pattern, expected) < 1e-3
    assert not cache.counters.any()


@pytest.mark.parametrize("head_dim", [64, 256])
def test_many_splits_share_their_sum(head_dim: int):
    """Up to 64 splits, whose last blocks share out the sum, all or one of them: the same bits each time, as different
    blocks are last; and the counters are ready again. On the simulator, where blocks do not overlap, the last has all.
    """
    rng = np.random.default_rng(12)
    cache = filled(rng, 1, head_dim, 64)
    batch = Batch.of(cache, [Chunk(2047, 1, range(64))])
    q = rng.standard_normal((1, 4, head_dim), np.float32)
    keys, values = (array.get().reshape(-1, 1, head_dim) for array in cache.paged[0].layers[0])
    for length in [2048, 1, 300, 288, 257, 1025, 64, 2048]:
        batch.lengths[...] = length
        with tuning.trying(unsplit_tokens=32, combine_nbytes=0, decode_blocks=64):
            y, again = (paged_attention(cp.asarray(q), batch.state_of(0)) for _ in range(2))
        assert relative_error(y, attention_64(q, keys[:length], values[:length])) < 1e-3
        assert (y == again).all() and not cache.counters.any()


def test_patterns_that_are_no_softmax(rng):
    """Of any numbers, as on the CPU: what lies before a window and past a sequence's end has no part."""
    chunks = [Chunk(60, 10, [6, 0, 7]), Chunk(0, 1, [1]), Chunk(99, 1, [2, 3, 4, 5]), Chunk(3, 40, [8, 9])]
    cache, host = filled(rng, 2, 64, 10, 30), KVCache([PagedKV(2, 64, 64, window=30)], 10)
    for ours, theirs in zip(cache.paged[0].layers[0], host.paged[0].layers[0], strict=True):
        theirs[...] = ours.get()
    pattern = rng.standard_normal((4, 52, 103)).astype(np.float32)
    sums = attention_heads(cp.asarray(pattern), Batch.of(cache, chunks).state_of(0))
    assert relative_error(sums, attention_heads(pattern[..., :100], Batch.of(host, chunks).state_of(0))) < 1e-5


class StaticBatch:
    """Metadata of a step that is captured: in buffers whose sizes, not contents, are those of the launch.

    Rows past the sequences' own are padding: they belong to one more sequence, of length 0.
    """

    def __init__(self, cache: KVCache, tokens: int, sequences: int, blocks: int):
        self.cache, self.tokens, self.query_starts = cache, tokens, cp.zeros(sequences + 2, np.int32)
        self.lengths, self.tables = cp.zeros(sequences + 1, np.int32), cp.zeros((sequences + 1, blocks), np.int32)

    def write(self, chunks: dict[int, Chunk]) -> None:
        """The sequences with tokens, by their number; all others are idle."""
        counts, lengths, tables = np.zeros(len(self.lengths), np.int32), self.lengths.get() * 0, self.tables.get() - 1
        for number, chunk in chunks.items():
            counts[number], lengths[number] = chunk.count, chunk.length
            tables[number, : len(chunk.table)] = chunk.table
        counts[-1] = self.tokens - counts.sum()
        self.query_starts[1:], self.lengths[...], self.tables[...] = (
            cp.asarray(counts.cumsum()),
            *map(cp.asarray, (lengths, tables)),
        )

    def layer(self) -> PagedLayer:
        group = self.cache.paged[0]
        where = {"tables": self.tables, "lengths": self.lengths, "query_starts": self.query_starts}
        options = {"window": group.state.window, "block_size": BLOCK_SIZE, "queries": (1, self.tokens)}
        return PagedLayer(*group.layers[0], slots=None, counters=self.cache.counters, **where, **options)

    def expected(self, q: np.ndarray, chunks: dict[int, Chunk]) -> np.ndarray:
        keys, values = (array.get().reshape(-1, *array.shape[-2:]) for array in self.cache.paged[0].layers[0])
        out, row = np.zeros(q.shape), 0
        for _, chunk in sorted(chunks.items()):
            rows, row = slice(row, row + chunk.count), row + chunk.count
            slots = [chunk.table[t // BLOCK_SIZE] * BLOCK_SIZE + t % BLOCK_SIZE for t in range(chunk.length)]
            window = self.cache.paged[0].state.window
            out[rows] = attention_64(q[rows], keys[slots], values[slots], window=window)
        return out


MIXTURES: list[dict[int, Chunk]] = [
    {0: Chunk(0, 1, [3]), 2: Chunk(40, 60, [1, 2, 0, 4]), 5: Chunk(63, 1, [5, 6])},
    {0: Chunk(0, 17, [3]), 1: Chunk(31, 2, [7, 8]), 2: Chunk(5, 1, [9]), 4: Chunk(20, 30, [1, 2])},
    {3: Chunk(0, 68, [0, 1, 2])},
    {number: Chunk(number * 9, 1, [2 * number, 2 * number + 1]) for number in range(6)},
    {4: Chunk(1, 66, [0, 1, 2]), 5: Chunk(90, 1, [3, 4, 5])},
]
"""Of 68 tokens: sequences idle at the start, in between and at the end; padding of none, one, two and many rows."""


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")
def test_a_captured_launch_takes_any_mixture(window: int | None):
    """One launch of each kernel is captured, and replayed with others of as many tokens; padding gives zeros."""
    rng = np.random.default_rng(9)
    batch = StaticBatch(filled(rng, 2, 64, 16, window), 68, 6, 4)
    q = cp.zeros((68, 6, 64), np.float32)
    batch.write(MIXTURES[0])
    paged_attention(q, batch.layer())
    recorder = GraphRecorder("gpu")
    with recorder.memory():
        graph, y = recorder.capture(lambda: paged_attention(q, batch.layer()))
    for chunks in [*MIXTURES, *MIXTURES[::-1]]:
        batch.write(chunks)
        q[...] = cp.asarray(rng.standard_normal(q.shape, np.float32))
        y[...] = np.nan
        graph.launch(cp.cuda.get_current_stream())
        expected = batch.expected(q.get(), chunks)
        assert relative_error(y, expected) < 1e-3
        assert not y.get()[sum(chunk.count for chunk in chunks.values()) :].any()


def test_a_tile_finds_its_sequence_among_many(rng):
    """A search of two rounds or three: up to a wave's lanes squared of sequences, and more, most of them idle."""
    for sequences in (33, 70, 1023, 1024, 1030, 5000):
        batch = StaticBatch(filled(rng, 1, 16, 4), 400, sequences, 2)
        numbers = sorted(rng.choice(sequences, 9, replace=False).tolist())
        chunks = {number: Chunk(0, int(rng.integers(1, 45)), [0, 3]) for number in numbers}
        batch.write(chunks)
        q = rng.standard_normal((400, 5, 16), np.float32)
        assert relative_error(paged_attention(cp.asarray(q), batch.layer()), batch.expected(q, chunks)) < 1e-3


def test_a_sequence_of_length_zero_gives_zeros():
    rng = np.random.default_rng(4)
    batch = Batch.of(filled(rng, 1, 64, 2), [Chunk(40, 1, [0, 1]), Chunk(0, 1, [1])])
    batch.lengths[1] = 0
    y = paged_attention(cp.ones((2, 3, 64), np.float32), batch.state_of(0)).get()
    assert np.isfinite(y).all() and y[0].any() and not y[1].any()


def test_rounded_for_a_product():
    """Within half a step of int8 of what paged_attention gives, for one split and for many."""
    rng = np.random.default_rng(5)
    cache = filled(rng, 2, 64, 24)
    batch = Batch.of(cache, [Chunk(700, 1, range(22)), Chunk(20, 1, [23])])
    q = cp.asarray(rng.standard_normal((2, 6, 64), np.float32))
    expected = paged_attention(q, batch.state_of(0)).get().reshape(2, 384)
    weight = rf.quantize(rng.standard_normal((4, 384), np.float32), "Q8_0").to_device("gpu")
    y = paged_attention(q, batch.state_of(0), consumer=weight)
    planes = y.data.get().reshape(2, 10, 3, 16)
    values = planes[:, :8].transpose(0, 2, 1, 3).reshape(2, 12, 32).view(np.int8).astype(np.float64)
    scales = planes[:, 8].copy().view(np.float32).reshape(2, 12, 1)
    assert (np.abs((values * scales).reshape(2, 384) - expected) <= 0.501 * np.repeat(scales[..., 0], 32, 1)).all()


def test_fp16_for_a_product():
    """What the BLAS library multiplies comes in float16 from both kernels: the same, rounded."""
    rng = np.random.default_rng(6)
    cache = filled(rng, 2, 64, 32)
    batch = Batch.of(cache, [Chunk(0, 70, [1, 2, 3]), Chunk(700, 1, range(4, 26)), Chunk(20, 1, [26])])
    q = cp.asarray(rng.standard_normal((72, 6, 64), np.float32))
    weight = cp.asarray(rng.standard_normal((4, 384)).astype(np.float16))
    y = paged_attention(q, batch.state_of(0), consumer=weight)
    assert y.dtype == np.float16 and y.shape == (72, 384)
    assert cp.array_equal(y, paged_attention(q, batch.state_of(0)).astype(np.float16).reshape(72, 384))


@pytest.mark.parametrize("norms, neox", [(False, True), (True, False), (True, None), (False, None)])
def test_one_launch_with_rope_and_store(norms: bool, neox: bool | None):
    """`attend` of one query a sequence is `rotate_and_store`, then `paged_attention`, bit for bit, in the cache too.

    Where `neox` is None, nothing is rotated.
    """
    rng = np.random.default_rng(8)
    caches = [filled(np.random.default_rng(5), 2, 64, 24) for _ in range(2)]
    x = cp.asarray(rng.standard_normal((3, 6 + 2 + 2, 64), np.float32))
    weights = [cp.asarray(rng.standard_normal(64, np.float32)) if norms else None for _ in range(2)]
    results, eps = [], {"eps": 1e-5, "v_eps": 1e-6 if norms else None}
    for cache in caches:
        batch = Batch.of(cache, [Chunk(700, 1, range(22)), Chunk(0, 1, [0]), Chunk(20, 1, [23])])
        batch.lengths[1], batch.paging[0].slots[1] = 0, -1
        rotation = None if neox is None else batch.rotation(rope_frequencies(32, neox=neox))
        given = (x[:, :6], x[:, 6:8], x[:, 8:], batch.state_of(0), rotation)
        if cache is caches[0]:
            q = rotate_and_store(*given, *weights, **eps)
            results.append(paged_attention(q, batch.state_of(0)))
        else:
            results.append(attend(*given, q_norm=weights[0], k_norm=weights[1], **eps))
    assert np.array_equal(*[y.get() for y in results])
    if neox is None and not norms:
        assert np.array_equal(q.get(), x[:, :6].get())
    assert all(np.array_equal(a.get(), b.get()) for a, b in zip(*(c.paged[0].layers[0] for c in caches), strict=True))


@needs_mma
def test_options_and_stores_on_the_matrix_unit():
    """As in lanes: windows, caps, sinks, slopes, scores in the hundreds, and keys that the launch itself stores."""
    with tuning.trying(decode_matrix_group=0):
        for options in OPTIONS:
            test_options(options)
        test_large_scores()
        test_lengths_are_read_by_the_launch()
        test_many_splits_share_their_sum(256)
        test_a_sequence_of_length_zero_gives_zeros()
        test_rounded_for_a_product()
        test_one_launch_with_rope_and_store(True, True)


@needs_mma
@pytest.mark.parametrize("unsplit", [32, 128])
def test_windows_and_sinks_of_large_groups(unsplit: int):
    """As in gpt-oss: eight heads of 64 a key head, a sink each, a window that begins at any place of a block, before
    which tokens are not read; in one part, and in several."""
    rng = np.random.default_rng(13)
    cache = filled(rng, 2, 64, 64, window=128)
    lengths, blocks = [1, 127, 128, 129, 160, 161, 255, 300], rng.permutation(64).tolist()
    chunks = [Chunk(n - 1, 1, [blocks.pop() for _ in range(-(-n // 32))]) for n in lengths]
    sinks = np.concatenate([[60.0, -60.0], 3 * rng.standard_normal(14)]).astype(np.float32)
    with tuning.trying(decode_matrix_group=8, unsplit_tokens=unsplit):
        check(rng, cache, chunks, heads=16, sinks=sinks)


@pytest.mark.parametrize("count", [1, 9])
def test_queries_of_keys_in_the_cache(rng, count: int):
    """Without keys of their own, queries attend to those that are there, and leave them as they are; values that are
    normalized on their way into the cache are those of the NumPy code."""
    q, k, v = (rng.standard_normal((count, heads, 64), np.float32) for heads in (6, 2, 2))
    norms = [rng.standard_normal(64, np.float32) for _ in range(2)]
    results = {}
    for device in ("cpu", "gpu"):
        cache = KVCache([PagedKV(2, 64, 64)], 1, device=device)
        batch = Batch.of(cache, [Chunk(0, count, [0])])
        layer, rotation = batch.state_of(0), batch.rotation(rope_frequencies(64, neox=True))
        arrays = [a if device == "cpu" else cp.asarray(a) for a in (q, k, v, *norms)]
        q_norm, k_norm = arrays[3:]
        own = attend(*arrays[:3], layer, rotation, q_norm=q_norm, k_norm=k_norm, v_eps=1e-6)
        before = [asnumpy(a).copy() for a in cache.paged[0].layers[0]]
        shared = attend(arrays[0], None, None, layer, rotation, q_norm=q_norm)
        assert relative_error(shared, asnumpy(own)) < 1e-6
        assert all((asnumpy(a) == b).all() for a, b in zip(cache.paged[0].layers[0], before, strict=True))
        results[device] = [*before, asnumpy(own)]
    for a, b in zip(*results.values(), strict=True):
        assert relative_error(b, a) < 1e-3


@pytest.mark.parametrize(
    "queries, causal, window", [(1, True, None), (9, True, 4), (40, False, None), (40, False, 7), (1, False, None)]
)
def test_one_sequence(queries: int, causal: bool, window: int | None):
    """`attention` of arrays that lie in no cache."""
    rng = np.random.default_rng(6)
    q = rng.standard_normal((queries, 4, 64), np.float32)
    k, v = (rng.standard_normal((45, 2, 64), np.float32).astype(np.float16) for _ in range(2))
    y = attention(*(cp.asarray(a) for a in (q, k, v)), causal=causal, window=window)
    assert relative_error(y, attention_64(q, k, v, causal=causal, window=window)) < 1e-3


@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, options", [(2, 2, 32, {}), (4, 2, 64, {"slopes": alibi_slopes(4)})]
)
@pytest.mark.parametrize("window", [None, 1, 20, 65])
def test_not_causal(rng, heads: int, kv_heads: int, head_dim: int, options: dict, window: int | None):
    """Whole sequences, one of a single token, and one that ends with a tile of keys; windows around a token; slopes."""
    cache = filled(rng, kv_heads, head_dim, 12, window, causal=False)
    chunks = [Chunk(0, 45, [3, 9]), Chunk(0, 1, [0]), Chunk(0, 128, [4, 5, 7, 2]), Chunk(0, 7, [8])]
    check(rng, cache, chunks, heads, **options)


def test_head_dim_that_has_no_kernel():
    x = cp.zeros((2, 1, 72), np.float32)
    with pytest.raises(ValueError, match="head_dim is 72"):
        attention(x, x, x)
    q, k = cp.zeros((1, 32, 512), np.float32), cp.zeros((1, 1, 512), np.float32)
    with pytest.raises(ValueError, match="32 heads of 512 share a key; allowed are 12288 elements"):
        attention(q, k, k)


def test_what_a_window_has_left_behind_is_not_read(rng):
    """Tables may name anything for blocks before the window of a sequence's first query, in both kernels."""
    cache = filled(rng, 2, 64, 16, window=40)
    q = cp.asarray(rng.standard_normal((31, 4, 64), np.float32))
    tables = [3, 9, 2, 7], [1, 5, 0, 8]
    results = []
    for first, last in ((tables[0][:2], tables[1][:1]), ([-1, 1 << 28], [1 << 28])):
        chunks = [Chunk(110, 1, [*first, *tables[0][2:]]), Chunk(80, 30, [*last, *tables[1][1:]])]
        results.append(paged_attention(q, Batch.of(cache, chunks).state_of(0)).get())
    assert np.array_equal(*results)
