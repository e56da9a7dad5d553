"""Routing, grouping and the products with experts on a device, against the NumPy code and float64 arithmetic."""

from __future__ import annotations

import cupy as cp
import numpy as np
import pytest
from golden import build, load, relative_error
from published import PUBLISHED

import rocforge as rf
from rocforge.device import tuning
from rocforge.load import load_model
from rocforge.ops.device import moe as device_moe
from rocforge.ops.device.operands import as_operand, quantized
from rocforge.ops.device.plan import OperandForm, form_for
from rocforge.ops.linear import linear
from rocforge.ops.moe import Matrices, experts, experts_by_logits, group_by_expert, mixture, route, scale_by_expert
from rocforge.ops.norm import rms_norm, rms_norm_for
from rocforge.ops.types import ExpertMatrices, NextNorm
from rocforge.quant import QuantizedArray
from rocforge.selftest.weights import half_steps, random_weight, values_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("softmax_before, normalize", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("tokens, count, used", [(1, 8, 2), (5, 128, 8), (33, 60, 4), (3, 4, 4)])
def test_route(tokens: int, count: int, used: int, softmax_before: bool, normalize: bool):
    logits = np.random.default_rng(count).standard_normal((tokens, count), np.float32) * 3
    ids, weights = route(cp.asarray(logits), used, softmax_before, normalize)
    expected_ids, expected = route(logits.astype(np.float64), used, softmax_before, normalize)
    assert (ids.get() == expected_ids).all()
    assert np.allclose(weights.get(), expected, rtol=1e-5)


def test_route_takes_the_lowest_of_equals():
    logits = np.zeros((2, 100), np.float32)
    logits[1, [99, 7, 50]] = 1
    ids, _ = route(cp.asarray(logits), 4)
    assert ids.get().tolist() == [[0, 1, 2, 3], [7, 50, 99, 0]]


@pytest.mark.any_wave
@pytest.mark.parametrize("used", [1, 8, 9, 32])
@pytest.mark.parametrize("count", [33, 64, 100, 256, 1000])
def test_route_among_equals(rng, count: int, used: int):
    """The highest first, and of equals the lowest id, wherever they lie among the runs that waves sort; not-a-numbers
    come last."""
    logits = rng.integers(-3, 3, (5, count)).astype(np.float32) / 2
    logits[3, rng.permutation(count)[: count // 2]] = np.nan
    logits[4] = np.nan
    ids, _ = route(cp.asarray(logits), used)
    expected = np.argsort(-np.where(np.isnan(logits), -np.inf, logits), axis=1, kind="stable")
    assert (ids.get() == expected[:, :used]).all()


@pytest.mark.any_wave
@pytest.mark.parametrize("scoring", ["softmax", "softmax after", "sigmoid"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("groups", [(1, 1), (8, 4)])
def test_route_by_any_policy(rng, scoring: str, biased: bool, normalize: bool, groups: tuple[int, int]):
    """Experts by their weights, with a bias on these, of the groups whose best two have the highest sums; and what they
    weigh."""
    logits = rng.standard_normal((6, 256)).astype(np.float32)
    bias = rng.standard_normal(256).astype(np.float32) / 100 if biased else None
    policy = 8, scoring == "softmax", normalize, 2.5, scoring == "sigmoid", groups
    ids, weights = route(cp.asarray(logits), *policy, None if bias is None else cp.asarray(bias))
    expected_ids, expected = route(logits.astype(np.float64), *policy, bias)
    assert (ids.get() == expected_ids).all()
    assert np.allclose(weights.get(), expected, rtol=1e-4)


@pytest.mark.parametrize("tokens, used, count", [(1, 1, 1), (1, 8, 128), (100, 4, 32), (301, 3, 5)])
def test_groups(tokens: int, used: int, count: int):
    """A stable sort by expert, with experts that nobody chose."""
    ids = np.random.default_rng(tokens).integers(0, count, (tokens, used)).astype(np.int32)
    ids[ids == count // 2] = 0
    on_device, on_host = group_by_expert(cp.asarray(ids), count), group_by_expert(ids, count)
    for name in on_host._fields:
        assert (getattr(on_device, name).get() == getattr(on_host, name)).all(), name
    flat = ids.reshape(-1)[on_host.order]
    assert all((flat[on_host.offsets[e] : on_host.offsets[e + 1]] == e).all() for e in range(count))
    assert (on_host.order[on_host.rank] == np.arange(ids.size)).all()


@pytest.mark.parametrize("height", [4, 64, device_moe.MOST_PAIRS])
def test_tiles_of_groups(height: int):
    """Each expert's pairs in tiles of up to a height, that of all pairs too: experts of no pair, of one and of more."""
    ids = np.array([0, 2, 3, 3, 5, *[6] * 70, 7, 7, 7], np.int32)[:, None]
    tiles = device_moe.sorted_pairs(cp.asarray(ids), 9, height)[1].listed.get()
    wanted, begin = [], 0
    for expert, count in enumerate(np.bincount(ids[:, 0], minlength=9).tolist()):
        wanted += [[expert, begin + at, min(count - at, height), 0] for at in range(0, count, height)]
        begin += count
    assert tiles[0, 0] == len(wanted) and tiles[1 : 1 + len(wanted)].tolist() == wanted


def test_route_scales():
    """The scale multiplies every weight, each expert's its own; more experts than a wave has lanes are refused."""
    logits = cp.asarray(np.random.default_rng(1).standard_normal((3, 40), np.float32))
    plain, scaled = (route(logits, 4, scale=scale)[1].get() for scale in (1.0, 2.5))
    assert np.allclose(scaled, 2.5 * plain, rtol=1e-6)
    of_experts = np.arange(1, 41, dtype=np.float32)
    for sigmoid in (False, True):
        ids, plain = (a.get() for a in route(logits, 4, sigmoid=sigmoid))
        scaled = route(logits, 4, sigmoid=sigmoid, expert_scales=cp.asarray(of_experts))[1].get()
        assert np.allclose(scaled, of_experts[ids] * plain, rtol=1e-6)
    with pytest.raises(ValueError, match="1 to 32"):
        route(logits, 33)


def test_scale_by_expert(rng):
    """Each pair's row times its expert's factor."""
    y, scales = (rng.standard_normal(shape, np.float32) for shape in ((6, 50), 9))
    ids = rng.integers(0, 9, (3, 2))
    scaled = scale_by_expert(*map(cp.asarray, (y, ids, scales)))
    assert (scaled.get() == scale_by_expert(y, ids, scales)).all()


@pytest.mark.parametrize("fill", [np.nan, -np.inf, np.inf])
def test_route_names_experts_whatever_the_logits(fill):
    """Logits that are no numbers, as of a row of padding, give ids that can be read from."""
    logits = np.full((2, 70), fill, np.float32)
    logits[1, 3] = 1
    ids, _ = route(cp.asarray(logits), 5)
    assert ((ids.get() >= 0) & (ids.get() < 70)).all()


class Layer:
    """Random experts, on the host and on the device, and what they give in float64."""

    def __init__(self, rng, qtypes, count=6, ffn=96, dim=160, biased=False):
        shapes = [(count, ffn, dim), (count, ffn, dim), (count, dim, ffn)]
        self.weights = [random_weight(rng, qtype, shape) for qtype, shape in zip(qtypes, shapes, strict=True)]
        self.biases = [rng.standard_normal(s[:2]).astype(np.float32) if biased else None for s in shapes]
        self.device = [
            Matrices(w.to_device("gpu"), None if b is None else cp.asarray(b))
            for w, b in zip(self.weights, self.biases, strict=True)
        ]
        self.values = [weight.dequantize().astype(np.float64) for weight in self.weights]
        self.count, self.dim = count, dim

    def routing(self, rng, tokens, used):
        """ids and weights; expert 1 is nobody's."""
        ids = np.argsort(rng.random((tokens, self.count)), axis=1)[:, :used].astype(np.int32)
        ids[ids == 1] = 0
        return ids, rng.random((tokens, used), np.float32)

    def reference(self, x, ids, weights, activate, residual):
        """See `_experts_float64`."""
        matrices = [Matrices(*pair) for pair in zip(self.values, self.biases, strict=True)]
        return _experts_float64(x, ids, weights, matrices, activate, residual)


GATED = {
    "swiglu": lambda g, u: g / (1 + np.exp(-g)) * u,
    "geglu": lambda g, u: 0.5 * g * (1 + np.tanh(0.7978845608028654 * (g + 0.044715 * g**3))) * u,
    "swiglu_oai": lambda g, u: (np.minimum(g, 7) / (1 + np.exp(-1.702 * np.minimum(g, 7)))) * (np.clip(u, -7, 7) + 1),
}


def _experts_float64(x, ids, weights, matrices, activate, residual):
    """What experts give, and how far it moves, in the root mean square, if gated units move by half an int8 step."""
    out = residual.astype(np.float64)
    moved = np.zeros_like(out)
    for token, places in enumerate(ids):
        for index, weight in zip(places, weights[token], strict=True):
            gate, up, down = (m.weight[index] for m in matrices)
            gate_bias, up_bias, down_bias = (0 if m.bias is None else m.bias[index] for m in matrices)
            row = x[token].astype(np.float64)
            gated = GATED[activate](gate @ row + gate_bias, up @ row + up_bias)
            out[token] += weight * (down @ gated + down_bias)
            moved[token] += (weight * down) ** 2 @ half_steps(gated[None])[0] ** 2
    return out, np.sqrt(moved)


def run_layer(rng, layer, tokens, used, activate="swiglu", size=1 / 16):
    """The relative error of what experts add to the residual. x is of a size that float16 holds what comes of it.

    Of what is rounded to int8 twice, the error from the exact result for x as rounded, over what the second rounding
    may do: gates that are far below zero leave next to nothing for an error to be relative to.
    """
    x = (size * rng.standard_normal((tokens, layer.dim))).astype(np.float32)
    residual = rng.standard_normal((tokens, layer.dim)).astype(np.float32)
    ids, weights = layer.routing(rng, tokens, used)
    args = [cp.asarray(a) for a in (x, ids, weights)]
    y = experts(*args, *layer.device, activate, cp.asarray(residual)).get()
    if form_for(ExpertMatrices(*layer.device), tokens) is not OperandForm.INT8:
        return relative_error(y - residual, layer.reference(x, ids, weights, activate, residual)[0] - residual)
    rounded = values_of(quantized(args[0]))[:, : layer.dim]
    expected, moved = layer.reference(rounded, ids, weights, activate, residual)
    return np.linalg.norm(y - expected) / np.linalg.norm(moved)


INT8, HALF = 1.2, 1e-3
"""Few tokens are rounded to int8, twice; more to float16. Errors spread evenly over half steps give 0.58."""


@pytest.mark.parametrize("tokens", [1, 3, 7, 150])
@pytest.mark.parametrize(
    "qtype, activate, used", [("Q8_0", "swiglu", 2), ("MXFP4", "swiglu_oai", 4), ("F16", "geglu", 3)]
)
def test_experts(rng, qtype, activate, used, tokens):
    """Few tokens and many, rows that end inside a cell, an expert nobody chose, biases, and every gated unit.

    Of 150 tokens an expert gets one tile of places, or two; a place too few or too many would show in every row.
    """
    layer = Layer(rng, [qtype] * 3, biased=activate == "swiglu_oai")
    bound = HALF if tokens > 8 else INT8 if qtype != "F16" else 1e-5
    assert run_layer(rng, layer, tokens, used, activate) < bound


@pytest.mark.parametrize("tokens", [2, 7, 20])
@pytest.mark.parametrize("qtype", ["Q8_0", "F16", "IQ2_XS"])
def test_gate_and_up_in_one(rng, qtype, tokens):
    """Bit-equal to the two apart, packed, as floats, and unpacked."""
    layer = Layer(rng, [qtype] * 3, ffn=256, dim=256)
    x = cp.asarray(rng.standard_normal((tokens, layer.dim)).astype(np.float32) / 16)
    ids, weights = map(cp.asarray, layer.routing(rng, tokens, 3))
    gate, up, _ = layer.weights
    both = QuantizedArray(np.concatenate([gate.data, up.data], axis=1), (6, 512, 256), qtype).to_device("gpu")
    apart = experts(x, ids, weights, *layer.device, "geglu").get()
    assert (experts(x, ids, weights, Matrices(both), None, layer.device[2], "geglu").get() == apart).all()


@pytest.mark.parametrize("tokens", [2, 7, 20])
@pytest.mark.parametrize(
    "qtypes",
    [("Q4_K", "Q4_K", "Q6_K"), ("Q1_0", "Q1_0", "Q8_0"), ("Q4_K", "Q5_K", "BF16"), ("IQ2_XS", "IQ2_XS", "F32")],
)
def test_experts_of_several_formats(rng, qtypes, tokens):
    """down of another format, gate and up of two, and formats without a kernel of their own."""
    layer = Layer(rng, qtypes, count=5, ffn=256, dim=256)
    assert run_layer(rng, layer, tokens, 2) < (
        INT8 if form_for(ExpertMatrices(*layer.device), tokens) is OperandForm.INT8 else HALF
    )


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("qtypes", [("Q4_K", "Q5_K", "Q8_0"), ("IQ2_XS", "IQ3_S", "IQ2_S")])
def test_unpacked_in_parts(rng, qtypes, tokens):
    """Bit-equal, and in no more than the workspace: of formats that are unpacked, a few experts at a time."""
    layer = Layer(rng, qtypes, count=7, ffn=256, dim=512, biased=True)
    args = [rng.standard_normal((tokens, layer.dim)).astype(np.float32) / 16, *layer.routing(rng, tokens, 3)]
    args, residual = [*map(cp.asarray, args), *layer.device], cp.ones((tokens, layer.dim), np.float32)
    whole = experts(*args, "swiglu_oai", residual).get()
    one, pool = 2 * 256 * 512, cp.cuda.MemoryPool()
    # room for gate and up of one expert, or down of two
    with cp.cuda.using_allocator(pool.malloc), tuning.trying(experts_unpacked_nbytes=2 * one):
        assert (experts(*args, "swiglu_oai", residual).get() == whole).all()
    places, chosen = 4 * 3 * tokens * (2 * 512 + 256), 2 * sum(w[0].nbytes for w in layer.weights)
    assert 2 * one <= pool.total_bytes() < 2 * one + places + chosen + 2**16


@pytest.mark.skipif(tuning.current().experts_wide_from == tuning.ANY, reason="needs Hopper's matrix unit")
@pytest.mark.parametrize("tokens", [1, 40, 700])
@pytest.mark.parametrize("qtype", ["Q8_0", "MXFP4", "Q6_K", "Q4_K", "Q3_K"])
def test_experts_on_hopper(rng, qtype, tokens):
    """Any number of tokens on the warpgroups: experts of no pair, of a few, and of several tiles."""
    layer = Layer(rng, [qtype] * 3, ffn=256, dim=768, biased=qtype == "MXFP4")
    size = 1 / np.linalg.norm(layer.values[0][0], axis=1).mean()
    with tuning.trying(experts_int8_tokens=0, experts_few_tokens=0, experts_wide_from=1):
        assert run_layer(rng, layer, tokens, 3, "swiglu_oai" if qtype == "MXFP4" else "swiglu", size) < HALF


@pytest.mark.parametrize(("tokens", "few"), [(4, 1), (8, 6), (60, 20)])
def test_alone_and_in_a_batch(rng, tokens, few):
    """Bit-equal: each place is computed by itself, and so it is of more tokens, a few at a time, and of many."""
    layer = Layer(rng, ["Q8_0"] * 3)
    x = cp.asarray(rng.standard_normal((tokens, layer.dim)).astype(np.float32) / 16)
    ids, weights = map(cp.asarray, layer.routing(rng, tokens, 3))
    together = experts(x, ids, weights, *layer.device)
    for i in range(0, tokens - few + 1, max(few // 4, 1)):
        row = slice(i, i + few)
        assert (experts(x[row], ids[row], weights[row], *layer.device).get() == together[row].get()).all()


@pytest.mark.parametrize("tokens", [1, 3, 7, 20])
@pytest.mark.parametrize("routing", [(3, True, True, 1.0), (2, False, False, 2.5)])
def test_mixture(rng, tokens, routing):
    """The whole of it, norm and router too, as its parts give it; few tokens choose their experts in the products."""
    layer = Layer(rng, ["Q8_0"] * 3, count=40, dim=192, biased=True)
    x, norm = (cp.asarray(rng.standard_normal(n).astype(np.float32)) for n in ((tokens, 192), 192))
    router = Matrices(*(cp.asarray(rng.standard_normal(n).astype(np.float32) / 4) for n in ((40, 192), 40)))
    following = NextNorm(norm, 1e-5, [random_weight(rng, "Q8_0", (32, 192)).to_device("gpu")])
    y, after = mixture(x, norm, 1e-6, router, routing, *layer.device, "swiglu_oai", x, following)
    normed = rms_norm(x, norm, 1e-6)
    ids, weights = route(linear(normed, *router), *routing)
    expected = experts(normed, ids, weights, *layer.device, "swiglu_oai", x)
    assert relative_error((y - x).get(), (expected - x).get()) < 1e-4
    if after is not None:
        expected = rms_norm_for(following.consumers, y, norm, 1e-5)
        products = [linear(operand, following.consumers[0]).get() for operand in (after, expected)]
        assert relative_error(*products) < 1e-6
    assert (after is None) == (tokens <= 4)


@pytest.mark.parametrize("tokens", [1, 3, 7, 20, 70])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_mixture_with_one_that_every_token_takes(rng, tokens, gated, sigmoid):
    """The last expert, which the router does not choose, weighs one, or the sigmoid of a logit of its own."""
    layer = Layer(rng, ["Q8_0"] * 3, count=40, dim=192)
    x, norm = (cp.asarray(rng.standard_normal(n).astype(np.float32)) for n in ((tokens, 192), 192))
    router = Matrices(cp.asarray(rng.standard_normal((39 + gated, 192)).astype(np.float32) / 4))
    routing = 3, True, True, 1.5, sigmoid
    y, _ = mixture(x, norm, 1e-6, router, routing, *layer.device, "swiglu", x, always=True)
    weights = [Matrices(weight) for weight in layer.weights]
    expected, _ = mixture(
        x.get(), norm.get(), 1e-6, Matrices(router.weight.get()), routing, *weights, "swiglu", x.get(), always=True
    )
    assert relative_error((y - x).get(), expected - x.get()) < 3e-2  # of int8
    normed = rms_norm(x, norm, 1e-6)
    logits = linear(normed, router.weight)
    ids, chosen = route(logits[:, :39], *routing)
    ids = cp.concatenate([ids, cp.full((tokens, 1), 39, np.int32)], axis=1)
    own = 1 / (1 + cp.exp(-logits[:, 39:])) if gated else cp.ones((tokens, 1), np.float32)
    expected = experts(normed, ids, cp.concatenate([chosen, own], axis=1), *layer.device, "swiglu", x)
    assert relative_error((y - x).get(), (expected - x).get()) < 1e-4


class HybridFile(dict):
    """Qwen 3.6 of experts with two narrow layers and few experts, each layer's shared one of random values."""

    def __init__(self, rng, **keys):
        whole = PUBLISHED["qwen3.6-35b-a3b"]
        few = {"block_count": 2, "expert_count": 8, "embedding_length": 256, "ssm.inner_size": 256}
        heads = {"ssm.time_step_rank": 2, "ssm.group_count": 1}
        short = whole._replace(keys={**whole.keys, **few, **heads, **keys}, vocabulary=300)
        super().__init__(short.random_tensors("Q8_0"))
        shared = {name: weight.shape for name, weight in self.items() if "shexp" in name and weight.ndim > 1}
        self.update((name, random_weight(rng, "Q8_0", shape)) for name, shape in shared.items())
        self.metadata = short.metadata(64)


@pytest.mark.any_wave
def test_shared_expert_behind_the_others(rng):
    """Loaded, a shared expert as large as the others is one of them, and the model gives what it does on the CPU; with
    weights of its own, which lie elsewhere, it is apart, and the same comes out."""
    file = HybridFile(rng)
    cpu, gpu = (load_model(file, device) for device in ("cpu", "gpu"))
    steps = [step for step in gpu.fused._steps if hasattr(step, "joined")]
    assert len(steps) == 2 and all(step.joined is not None for step in steps)
    tokens = rng.integers(0, 300, 20)
    for some in (1, 3, 20):
        logits = gpu(tokens[:some]).get()
        assert relative_error(logits, cpu(tokens[:some])) < 2e-2
    for layer in gpu.blk:
        layer.ffn_down_shexp.weight = layer.ffn_down_shexp.weight.with_data(
            layer.ffn_down_shexp.weight.data.copy(), True
        )
    assert all(step.joined is None for step in gpu.fused._steps if hasattr(step, "joined"))
    assert relative_error(gpu(tokens).get(), logits) < 1e-3


@pytest.mark.any_wave
@pytest.mark.parametrize("ffn", [512, 256])
def test_fp16_copies_beside_experts(rng, ffn):
    """All matrices but the embeddings keep one, those of a shared expert where it is not one of the others: of these
    nothing would read it."""
    model = load_model(HybridFile(rng, expert_shared_feed_forward_length=ffn), "gpu", fp16_weights=True)
    own = {path: weight for path, weight in model.named_parameters() if path != "token_embd.weight"}
    packed = {path for path, weight in own.items() if isinstance(weight, QuantizedArray) and weight.ndim == 2}
    joined = {path for path in packed if "shexp" in path} if ffn == 512 else set()
    assert len(model.fused.joined) == (2 if joined else 0) and len([path for path in packed if "shexp" in path]) == 6
    assert {path for path in packed if own[path].fp16 is not None} == packed - joined


@pytest.mark.parametrize("tokens", [1, 8, 20])
def test_experts_by_logits(rng, tokens):
    """What the experts that `route` chooses of the logits give, with factors of their own; as floats and as products
    take x."""
    layer, policy = Layer(rng, ["Q8_0"] * 3, count=40, dim=192), (3, True, True, 1.5, False, (1, 1), None)
    x, logits = (cp.asarray(rng.standard_normal((tokens, n)).astype(np.float32)) for n in (192, 40))
    scales = cp.asarray(rng.uniform(0.5, 2, 40).astype(np.float32))
    expected = experts(x, *route(logits, *policy, scales), *layer.device).get()
    for given in (x, as_operand(x, form_for(ExpertMatrices(*layer.device), tokens))):
        y = experts_by_logits(given, logits, (*policy, scales), *layer.device)
        assert relative_error(y.get(), expected) < 1e-6


def test_rounded_already(rng):
    """Activations, as a norm writes them, are as floats."""
    layer = Layer(rng, ["Q8_0"] * 3)
    x = cp.asarray(rng.standard_normal((2, layer.dim)).astype(np.float32))
    ids, weights = map(cp.asarray, layer.routing(rng, 2, 3))
    assert form_for(ExpertMatrices(*layer.device), 2) is OperandForm.INT8
    y = experts(quantized(x), ids, weights, *layer.device)
    assert (y.get() == experts(x, ids, weights, *layer.device).get()).all()


@pytest.mark.parametrize("tokens", [3, 20])
def test_captured(rng, tokens):
    """A graph of routing and experts, replayed with other logits, chooses other experts: the host has no part in it."""
    with cp.cuda.Stream(non_blocking=True) as stream:
        layer = Layer(rng, ["Q8_0"] * 3)
        x = cp.asarray(rng.standard_normal((tokens, layer.dim)).astype(np.float32) / 16)
        logits = [rng.standard_normal((tokens, layer.count)).astype(np.float32) for _ in range(3)]
        given = cp.asarray(logits[0])

        def run():
            return experts(x, *route(given, 2), *layer.device)

        expected = []
        for rows in logits:
            given.set(rows)
            expected.append(run().get())
        stream.begin_capture()
        y = run()
        graph = stream.end_capture()
        for rows, once in zip(logits, expected, strict=True):
            given.set(rows)
            graph.launch()
            assert (y.get() == once).all()
    assert any((expected[0] != other).any() for other in expected[1:])


def test_refuses_odd_rows(rng):
    """Rows that 16-byte loads do not fit are refused by size."""
    matrices = [Matrices(cp.zeros(shape, np.float32)) for shape in [(2, 12, 8), (2, 12, 8), (2, 8, 12)]]
    with pytest.raises(ValueError, match="8 and 12"):
        experts(cp.zeros((1, 8), np.float32), cp.zeros((1, 1), np.int32), cp.ones((1, 1), np.float32), *matrices)


@pytest.mark.any_wave
@pytest.mark.parametrize("variant", ["mixtral", "qwen3moe", "gpt-oss"])
def test_models(variant, tmp_path):
    """Whole models: the prompt, then tokens one and four at a time, against the CPU's logits.

    In this recipe no choice between experts is so close that rounding would tip it.
    """
    build(tmp_path / "model.gguf", variant, "Q4_K_M")
    cpu, gpu = (load_model(rf.open_gguf(tmp_path / "model.gguf"), device) for device in ("cpu", "gpu"))
    tokens = load(variant, "Q4_K_M")["tokens"][:30]
    exact = cpu(tokens)
    assert relative_error(gpu(tokens).get(), exact) < 5e-3
    cache = gpu.new_cache(1)
    rows = []
    for start, stop in [(0, 20), (20, 21), (21, 25), (25, 26)]:
        batch = rf.Batch.of(cache, [rf.Chunk(start, stop - start, [0])], all_logits=True)
        rows.append(gpu(tokens[start:stop], batch).get())
    assert relative_error(np.concatenate(rows)[20:], exact[20:26]) < 8e-2
