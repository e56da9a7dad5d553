"""Layers with a state of fixed size: what a device computes of several sequences at a time is what the CPU does."""

import cupy as cp
import numpy as np
import pytest
from golden import relative_error

from rocforge.ops.linear import linear
from rocforge.ops.recurrent import causal_conv, gated_delta_net, gated_delta_rule, selective_scan, state_space
from rocforge.ops.state import RecurrentLayer
from rocforge.selftest.weights import random_weight

SLOTS = 9


def steps(rng, lengths, shapes):
    """The same state of SLOTS slots on the CPU and on the device, and a step of sequences of these lengths, of which
    some, by chance, go on."""
    slots = rng.permutation(SLOTS)[: len(lengths)].astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    fresh = rng.random(len(lengths)) < 0.5
    positions = np.concatenate([np.arange(n) + (0 if new else 100) for n, new in zip(lengths, fresh, strict=True)])
    arrays = [rng.normal(size=(SLOTS, *shape)).astype(np.float32) for shape in shapes]
    parts = slots, positions.astype(np.int32), starts
    there = RecurrentLayer(
        tuple(map(cp.asarray, arrays)), *map(cp.asarray, parts), max(lengths), cp.zeros(99, np.int32)
    )
    return RecurrentLayer(tuple(arrays), *parts, max(lengths)), there


LENGTHS = [[1], [1, 1, 1, 1, 1], [2, 1, 3, 1], [40], [15, 2, 33, 1, 16], [300], [7, 250, 3, 1]]
by_lengths = pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: "-".join(map(str, lengths)))


@by_lengths
@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_causal_conv(rng, lengths, width, gated):
    """Of any cut of the tokens into blocks; and what is kept, of slots that are not of the step too."""
    channels, tokens = 70, sum(lengths)
    here, there = steps(rng, lengths, [(width - 1, channels)])
    x, before, after = rng.normal(size=(3, tokens, channels)).astype(np.float32)
    weight, bias = rng.normal(size=(channels, width)).astype(np.float32), rng.normal(size=channels).astype(np.float32)
    gates = (before, after) if gated else None
    wanted = causal_conv(x, weight, here, bias, silu=not gated, gates=gates)
    gates = gates and tuple(map(cp.asarray, gates))
    got = causal_conv(*map(cp.asarray, (x, weight)), there, cp.asarray(bias), silu=not gated, gates=gates)
    assert relative_error(got.get(), wanted) < 1e-6
    assert (there.arrays[0].get() == here.arrays[0]).all()


@by_lengths
@pytest.mark.parametrize(("key_dim", "channels"), [(64, False), (128, False), (128, True)])
def test_gated_delta_rule(rng, lengths, key_dim, channels):
    """With one decay a head, and one for each element of its key; and the state after it. Sequences of many tokens are
    taken in chunks, which others share with them."""
    key_heads, heads, dim, tokens = 2, 4, 40, sum(lengths)
    here, there = steps(rng, lengths, [(3, 8), (heads, key_dim, dim)])
    width = 2 * key_heads * key_dim + heads * dim
    qkv, beta = (rng.normal(size=(tokens, n)).astype(np.float32) for n in (width, heads))
    alpha = rng.normal(size=(tokens, heads * (key_dim if channels else 1))).astype(np.float32)
    bias, decay = rng.normal(size=alpha.shape[1]).astype(np.float32), -rng.random(heads).astype(np.float32)
    given = qkv, beta, alpha, decay, bias
    wanted = gated_delta_rule(*given, here, (key_heads, heads), 1e-6)
    got = gated_delta_rule(*map(cp.asarray, given), there, (key_heads, heads), 1e-6)
    assert relative_error(got.get(), wanted) < 1e-5
    assert relative_error(there.arrays[1].get(), here.arrays[1]) < 1e-5


@by_lengths
@pytest.mark.parametrize("state_dim", [64, 128, 256])
def test_state_space(rng, lengths, state_dim):
    groups, heads, dim, tokens = 2, 4, 40, sum(lengths)
    here, there = steps(rng, lengths, [(3, 8), (heads, state_dim, dim)])
    sizes = heads * dim, groups * state_dim, groups * state_dim, heads
    given = [rng.normal(size=(tokens, n)).astype(np.float32) for n in sizes]
    given += [each.astype(np.float32) for each in (-rng.random(heads), rng.normal(size=heads), rng.normal(size=heads))]
    wanted = state_space(*given, here)
    got = state_space(*map(cp.asarray, given), there)
    assert relative_error(got.get(), wanted) < 1e-5
    assert relative_error(there.arrays[1].get(), here.arrays[1]) < 1e-5


@pytest.mark.parametrize(
    "lengths", [[1], [1, 1, 1], [1] * 7, [2, 1], [20]], ids=lambda lengths: "-".join(map(str, lengths))
)
@pytest.mark.parametrize(
    ("key_dim", "dim", "repeated"), [(64, 64, False), (128, 128, True), (128, 36, False), (16, 32, True)]
)
@pytest.mark.parametrize("consumed", [False, True])
def test_gated_delta_net(rng, lengths, key_dim, dim, repeated, consumed):
    """All between the projections, in one launch where each sequence has one token, in the form that a product takes;
    and the states of convolution and rule after it."""
    key_heads, heads, tokens, width = 2, 6, sum(lengths), 4
    channels = 2 * key_heads * key_dim + heads * dim
    here, there = steps(rng, lengths, [(width - 1, channels), (heads, key_dim, dim)])
    sizes = channels, heads * dim, heads, heads
    projected = [rng.normal(size=(tokens, n)).astype(np.float32) for n in sizes]
    weights = rng.normal(size=(channels, width)), -rng.random(heads), rng.normal(size=heads), rng.normal(size=dim)
    given = [*projected, *(w.astype(np.float32) for w in weights)]
    how = (key_heads, heads), (1e-6, 1e-5), repeated
    weight = random_weight(rng, "Q8_0", (16, heads * dim)) if consumed and heads * dim % 32 == 0 else None
    wanted = gated_delta_net(*given, here, *how)
    consumer = None if weight is None else weight.to_device("gpu")
    got = gated_delta_net(*map(cp.asarray, given), there, *how, consumer)
    if consumer is None:
        assert relative_error(got.get(), wanted) < 1e-5
    else:
        assert relative_error(linear(got, consumer).get(), wanted @ weight.dequantize().T) < 3e-2  # of int8
    assert not there.counters.any()
    for ours, theirs in zip(there.arrays, here.arrays, strict=True):
        assert relative_error(ours.get(), theirs) < 1e-5


OPS = {
    "causal_conv": lambda s, x, w: causal_conv(x(70), w(70, 4), s, w(70)),
    "gated_delta_rule": lambda s, x, w: gated_delta_rule(x(416), x(4), x(4), -abs(w(4)), None, s, (2, 4), 1e-6),
    "kimi": lambda s, x, w: gated_delta_rule(x(672), x(4), x(512), -abs(w(4)), None, s, (2, 4), 1e-6),
    "state_space": lambda s, x, w: state_space(x(160), x(128), x(128), x(4), -abs(w(4)), None, w(4), s),
    "selective_scan": lambda s, x, w: selective_scan(x(64), x(64), x(16), x(16), -abs(w(64, 16)), w(64), s),
}
STATES = {
    "causal_conv": [(3, 70)],
    "gated_delta_rule": [(3, 8), (4, 64, 40)],
    "kimi": [(3, 8), (4, 128, 40)],
    "state_space": [(3, 8), (4, 64, 40)],
    "selective_scan": [(3, 8), (16, 64)],
}


@pytest.mark.parametrize("name", OPS)
def test_sequences_do_not_see_each_other(rng, name):
    """NaN in one sequence's rows, which shows, and in those that fill up a batch and have no state: what others get,
    and what is kept of them, is bit for bit the same. Of the one of 30 tokens the first share a chunk with the former,
    the last with the latter."""
    lengths, seed = [5, 20, 1, 30, 12], int(rng.integers(1 << 30))
    rows, found = np.r_[0:5, 25:56], []
    for other in (1.0, np.nan):
        draws = np.random.default_rng(seed)
        state = steps(draws, lengths, STATES[name])[1]
        kept = state.slots[[0, 2, 3]]
        state.slots[4] = -1

        def x(columns, draws=draws, other=other):
            values = draws.normal(size=(sum(lengths), columns)).astype(np.float32)
            values[5:25] = values[56:] = other
            return cp.asarray(values)

        y = OPS[name](state, x, lambda *shape, draws=draws: cp.asarray(draws.normal(size=shape).astype(np.float32)))
        found.append([y.get()[rows], *(array[kept].get() for array in state.arrays)])
    assert np.isnan(y.get()[24]).any()
    for finite, beside in zip(*found, strict=True):
        assert np.isfinite(finite).all() and np.array_equal(finite, beside)
