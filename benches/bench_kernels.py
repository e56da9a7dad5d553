"""Times the kernels around the weights on the GPU: norms, rope, attention, experts, recurrent layers, sampling.

    pytest benches/bench_kernels.py --benchmark-enable -s [-k attention] [--benchmark-json=kernels.json]

Each figure is the median over replays of a graph that holds one launch a layer, over as many layers as make their data
larger than the caches; beside it, the share of the read bandwidth, or the rate of arithmetic, that it comes to. They
are printed as they come, and are the extra_info of their suite's record.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from typing import Any

import numpy as np
import pytest
from measure import CACHES, cp, read_bandwidth

from rocforge.device import tuning
from rocforge.device.timing import noise, seconds
from rocforge.formats.blocks import QTYPES, row_nbytes
from rocforge.formats.kv_cache import CACHE_TYPES
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.latent_attention import LatentAttention
from rocforge.nn.state import PagedKV, Recurrent
from rocforge.ops.activation import swiglu
from rocforge.ops.attention import paged_attention, rotate_and_store
from rocforge.ops.device import norm as device_norm
from rocforge.ops.device.operands import as_operand
from rocforge.ops.device.plan import OperandForm, form_for
from rocforge.ops.device.sampling import Sampler, logprobs_device
from rocforge.ops.moe import experts, group_by_expert, route
from rocforge.ops.norm import rms_norm
from rocforge.ops.recurrent import gated_delta_net, gated_delta_rule
from rocforge.ops.rope import rope_frequencies
from rocforge.ops.sampling import SamplingParams
from rocforge.ops.types import ExpertMatrices, Matrices, NextNorm
from rocforge.quant import QuantizedArray


def cache_of(kv_heads: int, head_dim: int, tokens: int, kind: str = "f16", window: int | None = None) -> KVCache:
    """As many layers as exceed the caches, full of random numbers."""
    state = PagedKV(kv_heads, head_dim, head_dim, kind, kind, window=window)
    layer = -(-tokens // 32) * state.block_nbytes(32, "gpu:0")
    return filled(max(2, min(64, -(-CACHES // layer))), state, tokens)


def filled(layers: int, state: PagedKV, tokens: int) -> KVCache:
    cache = KVCache([state] * layers, -(-tokens // 32), device="gpu")
    for array in (cache.paged[0].keys, cache.paged[0].values):
        if array.dtype == np.float16:
            array[...] = noise(array.shape, np.float16)
        else:  # bytes that are finite scales too
            array[...] = cp.asarray(np.random.default_rng(0).integers(32, 48, array.shape[1:], np.uint8))
    return cache


def decode_attention(
    batch: int,
    context: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    kind: str = "f16",
    window: int | None = None,
    sinks: bool = False,
) -> tuple[float, float]:
    """Seconds, and bytes read a second."""
    blocks = -(-context // 32)
    cache = cache_of(kv_heads, head_dim, batch * blocks * 32, kind, window)
    tables = np.random.default_rng(0).permutation(batch * blocks).reshape(batch, blocks)
    step = Batch.of(cache, [Chunk(context - 1, 1, table) for table in tables])
    q, of_heads = noise((batch, heads, head_dim)), noise((heads,)) if sinks else None
    layers = [step.state_of(layer) for layer in range(len(cache.paged[0].layers))]
    time = seconds([lambda layer=layer: paged_attention(q, layer, sinks=of_heads) for layer in layers])
    return time, cache.nbytes / len(layers) * min(1, (window or context) / context) / time


def prefill_attention(
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    kind: str = "f16",
    value_dim: int | None = None,
    window: int | None = None,
) -> tuple[float, float]:
    """Seconds, and floating-point operations a second, those of what is not seen not counted."""
    value_dim, seen = value_dim or head_dim, min(window or tokens, tokens)
    cache = filled(4, PagedKV(kv_heads, head_dim, value_dim, kind, kind, window), tokens)
    step = Batch.of(cache, [Chunk(0, tokens, range(-(-tokens // 32)))])
    q = noise((tokens, heads, head_dim))
    time = seconds([lambda layer=layer: paged_attention(q, layer) for layer in map(step.state_of, range(4))])
    return time, (2 * tokens - seen) * seen * heads * (head_dim + value_dim) / time


def latent_prefill(
    tokens: int, before: int, heads: int, rank: int, own: int, shared: int, value_dim: int
) -> tuple[float, float]:
    """Of keys and values made of latents, for so many tokens behind others. Seconds, which include the making, and
    floating-point operations a second, which do not."""
    layers = [LatentAttention(64, heads, rank, own, shared, value_dim, rope_frequencies(shared)) for _ in range(4)]
    for layer in layers:
        layer.attn_kv_a_norm.weight = cp.ones(rank, np.float32)
        layer.attn_k_b.weight = expert_matrices(rank, own, heads, "Q8_0", biased=False).weight
        layer.attn_v_b.weight = expert_matrices(value_dim, rank, heads, "Q8_0", biased=False).weight
    blocks = -(-(before + tokens) // 32)
    cache = KVCache({layer: layer.state for layer in layers}, blocks, device="gpu")
    cache.paged[0].keys[...] = noise(cache.paged[0].keys.shape, np.float16)
    step = Batch.of(cache, [Chunk(before, tokens, range(blocks))])
    assert step.expanded, "so few tokens attend over the latents themselves"
    projected = [noise((tokens, heads * (own + shared))), noise((tokens, rank + shared))]
    time = seconds([lambda layer=layer: layer.mix(projected, step) for layer in layers])
    return time, (2 * before + tokens) * tokens * heads * (own + shared + value_dim) / time


def delta_net(tokens: int, sequences: int, key_heads: int, heads: int, dim: int) -> tuple[float, float]:
    """Seconds of a Gated DeltaNet between its projections, for sequences of so many tokens; and of its rule alone."""
    channels, rows = (2 * key_heads + heads) * dim, tokens * sequences
    state = Recurrent(((3, channels), (heads, dim, dim)))
    layers = max(2, min(64, -(-CACHES // (sequences * state.nbytes))))
    cache = KVCache([state] * layers, 0, slots=sequences, device="gpu")
    step = Batch.of(cache, [Chunk(tokens, tokens, [], slot=slot) for slot in range(sequences)])
    qkv, gate, beta, alpha = (noise((rows, n)) for n in (channels, heads * dim, heads, heads))
    conv, decay, bias, norm = noise((channels, 4)), -cp.ones(heads, np.float32), noise((heads,)), noise((dim,))
    states = [step.state_of(layer) for layer in range(layers)]
    rule, of, eps = (decay, bias), (key_heads, heads), 1e-6
    whole = [lambda s=s: gated_delta_net(qkv, gate, beta, alpha, conv, *rule, norm, s, of, (eps, eps)) for s in states]
    return seconds(whole), seconds([lambda s=s: gated_delta_rule(qkv, beta, alpha, *rule, s, of, eps) for s in states])


def rows_of_floats(rows: int, columns: int) -> list[Any]:
    """Different arrays of that shape, up to 16 of them."""
    count = max(2, min(16, CACHES // (4 * rows * columns)))
    return [noise((rows, columns)) for _ in range(count)]


class Report:
    """Prints figures as they come, and keeps them."""

    def __init__(self, bandwidth: float):
        self.bandwidth, self.figures = bandwidth, {}
        print(f"\nread: {self.bandwidth / 1e12:.2f} TB/s")

    def add(self, name: str, time: float, nbytes: float | None = None, rate: float | None = None) -> None:
        figure, more = {"microseconds": time * 1e6}, ""
        if nbytes is not None:
            figure["share_of_read"] = nbytes / self.bandwidth
            more = f"{nbytes / 1e12:6.2f} TB/s {nbytes / self.bandwidth:5.0%}"
        if rate is not None:
            figure["operations_a_second"] = rate
            more += f"{rate / 1e12:6.1f} TFLOP/s"
        self.figures[name] = figure
        print(f"{name:52} {time * 1e6:9.2f} us {more}", flush=True)


def attention(report: Report) -> None:
    for shape in [
        (1, 128, 32, 8, 128),
        (1, 1024, 32, 8, 128),
        (1, 4096, 32, 8, 128),
        (1, 32768, 32, 8, 128),
        (8, 4096, 32, 8, 128),
        (64, 1024, 32, 8, 128),
        (1, 4096, 32, 8, 64),
        (1, 4096, 64, 8, 128),
        (1, 4096, 32, 32, 96),
        (1, 4096, 16, 8, 256),
    ]:
        report.add("decode batch {} context {} heads {}/{} x {}".format(*shape), *decode_attention(*shape))
    time, rate = prefill_attention(512, 32, 8, 128)
    report.add("prefill 512 heads 32/8 x 128", time, rate=rate)
    for tokens in (2048, 8192):
        for shape in [(32, 8, 128), (32, 8, 64), (16, 8, 256), (16, 2, 512)]:
            time, rate = prefill_attention(tokens, *shape)
            report.add("prefill {} heads {}/{} x {}".format(tokens, *shape), time, rate=rate)
        time, rate = prefill_attention(tokens, 16, 16, 192, value_dim=128)
        report.add(f"prefill {tokens} heads 16/16 x 192, values 128", time, rate=rate)
        time, rate = prefill_attention(tokens, 16, 8, 256, window=1024)
        report.add(f"prefill {tokens} heads 16/8 x 256, window 1024", time, rate=rate)
    for tokens, before in [(2048, 0), (2048, 14336)]:
        time, rate = latent_prefill(tokens, before, 16, 512, 128, 64, 128)
        report.add(f"latent prefill {tokens} behind {before}, 16 heads, rank 512", time, rate=rate)


def groups(report: Report) -> None:
    """Decode of eight heads a key head, as Qwen 3.5 and 3.6 with experts, Gemma 4, gpt-oss and Qwen3 with experts."""
    for heads in [(16, 2, 256), (16, 2, 512), (64, 8, 64), (32, 4, 128)]:
        for batch, context in [(1, 100), (1, 1000), (1, 4096), (1, 32768), (64, 1000)]:
            name = "decode batch {} context {} heads {}/{} x {}".format(batch, context, *heads)
            report.add(name, *decode_attention(batch, context, *heads))
    for batch, context in [(1, 1000), (1, 32768), (64, 1000)]:
        name = f"decode batch {batch} context {context} heads 64/8 x 64, sinks, window 128"
        report.add(name, *decode_attention(batch, context, 64, 8, 64, window=128, sinks=True))


def packed(report: Report) -> None:
    """Attention over each type of the cache."""
    for kind in CACHE_TYPES:
        for shape in [(1, 4096, 32, 8, 128), (1, 32768, 32, 8, 128), (8, 4096, 32, 8, 128)]:
            name = "decode batch {} context {} heads {}/{} x {}".format(*shape)
            report.add(f"{name}, {kind}", *decode_attention(*shape, kind))
        time, rate = prefill_attention(8192, 32, 8, 128, kind)
        report.add(f"prefill 8192 heads 32/8 x 128, {kind}", time, rate=rate)


def shares(report: Report) -> None:
    """The decode kernel over where it begins to split sequences."""
    for unsplit in (32, 64, 128, 256):
        for context in (64, 96, 128, 192, 256):
            with tuning.trying(unsplit_tokens=unsplit):
                report.add(
                    f"unsplit {unsplit} decode batch 1 context {context}", *decode_attention(1, context, 32, 8, 128)
                )


def norms(report: Report) -> None:
    weight = cp.ones(4096, np.float32)
    for rows in (1, 64, 2048):
        xs = rows_of_floats(rows, 4096)
        time = seconds([lambda x=x: rms_norm(x, weight) for x in xs])
        report.add(f"rms_norm {rows} x 4096", time, 8 * rows * 4096 / time)
        report.add(
            f"rms_norm to int8 {rows} x 4096",
            seconds([lambda x=x: device_norm.rms_norm(x, weight, 1e-5, form=OperandForm.INT8) for x in xs]),
        )
        norm = NextNorm(weight, 1e-5, [])
        for parts, behind in ((1, [norm]), (2, [norm] * 3)):
            how = behind, None, [(norm, OperandForm.INT8)]
            launches = [
                functools.partial(device_norm.add_normed, x, [y] * parts, *how) for x, y in itertools.pairwise(xs)
            ]
            report.add(f"add_normed {rows} x 4096, parts {parts}, norm to int8", seconds(launches))
    for rows in (1, 2048):
        xs = rows_of_floats(rows, 2 * 14336)
        time = seconds([lambda x=x: swiglu(x[:, :14336], x[:, 14336:]) for x in xs])
        report.add(f"swiglu {rows} x 14336", time, 12 * rows * 14336 / time)


def rope(report: Report) -> None:
    frequencies = rope_frequencies(128, 500000.0)
    for tokens in (1, 64, 2048):
        cache = KVCache([PagedKV(8, 128, 128)] * 8, 128, device="gpu")
        chunks = [Chunk(0, tokens, range(128))] if tokens > 64 else [Chunk(5, 1, [i]) for i in range(tokens)]
        step = Batch.of(cache, chunks)
        xs = [x.reshape(tokens, 48, 128) for x in rows_of_floats(tokens, 48 * 128)]
        rotation, layers = step.rotation(frequencies), [step.state_of(i) for i in range(8)]
        launches = [
            lambda x=x, layer=layers[i % 8], r=rotation: rotate_and_store(x[:, :32], x[:, 32:40], x[:, 40:], layer, r)
            for i, x in enumerate(xs)
        ]
        report.add(f"rope and store {tokens} x 48 heads x 128", seconds(launches))


def recurrent(report: Report) -> None:
    for tokens, sequences in [(1, 1), (1, 64), (2048, 1)]:
        whole, rule = delta_net(tokens, sequences, 16, 32, 128)
        report.add(f"delta net {sequences} x {tokens} tokens, heads 16/32 x 128", whole)
        report.add(f"delta rule {sequences} x {tokens} tokens, heads 16/32 x 128", rule)


def routing(report: Report) -> None:
    for tokens in (1, 2048):
        logits = rows_of_floats(tokens, 128)
        report.add(f"route {tokens} x 128, 8 used", seconds([lambda x=x: route(x, 8) for x in logits]))
        ids, _ = route(logits[0], 8)
        report.add(f"group {tokens} x 8 by 128 experts", seconds([lambda ids=ids: group_by_expert(ids, 128)] * 4))


EXPERTS = {
    "gpt-oss-20b": (32, 4, 2880, 2880, ("MXFP4", "MXFP4", "MXFP4"), "swiglu_oai"),
    "qwen3-30b-a3b": (128, 8, 2048, 768, ("Q4_K", "Q4_K", "Q6_K"), "swiglu"),
    "gemma-4-26b-a4b": (128, 8, 2816, 704, ("Q4_K", "Q4_K", "Q8_0"), "geglu"),
    "qwen3.6-35b-a3b": (257, 9, 2048, 512, ("Q4_K", "Q4_K", "Q6_K"), "swiglu"),
    "deepseek-v2-lite": (64, 6, 2048, 1408, ("Q4_K", "Q4_K", "Q8_0"), "swiglu"),
}
"""Published shapes: experts, those used, dim, ffn; formats of gate, up and down; the gated unit. gpt-oss has biases,
Qwen 3.6 a shared expert among the others."""


def expert_matrices(rows: int, columns: int, count: int, qtype: str, biased: bool) -> Matrices:
    """Random bytes, of which float16 makes small scales."""
    shape = (count, rows, row_nbytes(columns, QTYPES[qtype]))
    some = np.random.default_rng(0).integers(0, 48, 1_000_003, dtype=np.uint8)
    weight = QuantizedArray(cp.resize(cp.asarray(some), shape), (count, rows, columns), qtype).to_device("gpu")
    return Matrices(weight, noise((count, rows)) if biased else None)


def expert_products(report: Report) -> None:
    """Gate, up, down and the sum of a layer; bytes are those of the chosen experts, each read once."""
    for name, (count, used, dim, ffn, qtypes, activate) in EXPERTS.items():
        shapes = [(ffn, dim), (ffn, dim), (dim, ffn)]
        layer = [
            expert_matrices(*shape, count, qtype, biased=activate == "swiglu_oai")
            for shape, qtype in zip(shapes, qtypes, strict=True)
        ]
        nbytes = sum(matrices.weight.nbytes for matrices in layer) / count
        for tokens in (1, 2, 4, 8, 16, 64, 512, 2048):
            x = noise((tokens, dim))
            x = as_operand(x, form_for(ExpertMatrices(*layer), tokens))
            routings = [route(noise_of(seed, tokens, count), used) for seed in range(16)]
            chosen = statistics.mean(len(np.unique(ids.get())) for ids, _ in routings)
            run = functools.partial(experts, x, gate=layer[0], up=layer[1], down=layer[2], activate=activate)
            time = seconds([functools.partial(run, ids=ids, weights=weights) for ids, weights in routings])
            operations = 6 * tokens * used * dim * ffn
            report.add(f"experts {name} {tokens} tokens", time, nbytes * chosen / time, operations / time)


def noise_of(seed: int, *shape: int) -> Any:
    """Fresh numbers of a seed."""
    return cp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def uploaded(array: np.ndarray, out: Any) -> None:
    """A copy to the device, which a graph of the kernels leaves out."""
    if not cp.cuda.get_current_stream().is_capturing():
        out.set(array)


def sampling(report: Report) -> None:
    settings = {
        "greedy": {"temperature": 0.0},
        "plain": {"temperature": 0.8},
        "top_p": {"temperature": 0.8, "top_p": 0.95},
        "top_k 40, top_p, min_p": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
        "flat, top_p": {"temperature": 2.0, "top_p": 0.99},
    }
    for rows in (1, 64, 256):
        rng = np.random.default_rng(3)
        logits = rng.standard_normal((rows, 128256), np.float32) * 2
        logits[:, rng.integers(0, 128256, 200)] += rng.uniform(3, 14, 200).astype(np.float32)
        device = cp.asarray(logits)
        tokens = cp.zeros(rows, np.int32)
        for name, options in settings.items():
            sampler = Sampler(128256, rows)
            for slot in range(rows):
                sampler.begin(slot, SamplingParams(seed=slot, **options), None, uploaded)
            launch = functools.partial(sampler, device, range(rows), [0] * rows, {}, tokens, uploaded)
            report.add(f"sample {rows} x 128256 {name}", seconds([launch] * 4))
        report.add(f"logprobs {rows} x 128256, 20", seconds([lambda x=device, t=tokens: logprobs_device(x, t, 20)] * 4))


SUITES = {
    suite.__name__: suite
    for suite in (attention, groups, packed, norms, rope, recurrent, routing, expert_products, sampling, shares)
}


@pytest.fixture(scope="module")
def bandwidth() -> float:
    return read_bandwidth()


@pytest.mark.parametrize("suite", SUITES)
def test_kernels(benchmark, bandwidth, suite):
    report = Report(bandwidth)
    benchmark.pedantic(SUITES[suite], (report,))
    benchmark.extra_info.update(report.figures)
