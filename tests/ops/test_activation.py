"""Activations against their definitions in float64, at ordinary and extreme values."""

import math

import numpy as np
import pytest

import rocforge.ops.activation as ops


def values(rng):
    return np.concatenate([rng.standard_normal(200) * 5, [0, -100, 100, 1e-8]]).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


XIELU = 0.3, 0.8, 0.5, -1e-3
"""alpha_n, alpha_p, beta and eps."""


def xielu64(x):
    n, p, beta, eps = 0.5 + np.log1p(np.exp(0.3)), np.log1p(np.exp(0.8)), *XIELU[2:]
    return beta * x + np.where(x > 0, p * x * x, n * (np.expm1(np.minimum(x, eps)) - x))


def gelu64(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    "op, exact",
    [
        (ops.silu, lambda x: x * sigmoid(x)),
        (ops.relu_squared, lambda x: np.maximum(x, 0) ** 2),
        (ops.gelu, gelu64),
        (lambda x: ops.softcap(x, 30.0), lambda x: 30 * np.tanh(x / 30)),
        (lambda x: ops.xielu(x, *XIELU), xielu64),
        (ops.softplus, lambda x: np.logaddexp(x, 0)),
        (ops.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
        (lambda x: ops.clip(x, 2.5), lambda x: np.clip(x, -2.5, 2.5)),
    ],
)
def test_unary(rng, op, exact):
    """silu, relu_squared, gelu, softcap, xielu, softplus, sigmoid and clip."""
    x = values(rng)
    y = op(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, exact(x.astype(np.float64)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "op, exact",
    [
        (ops.swiglu, lambda g, u: g * sigmoid(g) * u),
        (ops.geglu, lambda g, u: gelu64(g) * u),
        (ops.reglu, lambda g, u: np.maximum(g, 0) * u),
        (
            lambda g, u: ops.swiglu_clipped(g, u, 1.5),
            lambda g, u: np.minimum(g * sigmoid(g), 1.5) * np.clip(u, -1.5, 1.5),
        ),
        (
            ops.swiglu_oai,
            lambda g, u: np.minimum(g, 7) * sigmoid(1.702 * np.minimum(g, 7)) * (np.clip(u, -7, 7) + 1),
        ),
    ],
)
def test_gated(rng, op, exact):
    """swiglu, geglu, reglu, swiglu_clipped and gpt-oss's clamped swiglu."""
    gate, up = values(rng), values(rng)
    expected = exact(gate.astype(np.float64), up.astype(np.float64))
    np.testing.assert_allclose(op(gate, up), expected, rtol=2e-5, atol=1e-5)


def test_scale_rows(rng):
    """A factor a row, whatever follows the first axis; another number of factors is refused."""
    x, factors = rng.standard_normal((3, 4, 5)).astype(np.float32), np.array([2, 0, -1], np.float32)
    assert (ops.scale_rows(x, factors) == np.stack([2 * x[0], 0 * x[1], -x[2]])).all()
    with pytest.raises(ValueError, match=r"factors has the shape \(2,\); allowed is \(3,\)"):
        ops.scale_rows(x, factors[:2])


def test_sparsify(rng):
    """What is above the mean by some deviations of a sample, and by how much."""
    x = values(rng).reshape(4, -1)
    limit = x.astype(np.float64).mean(-1, keepdims=True) + 0.5 * x.astype(np.float64).std(-1, ddof=1, keepdims=True)
    y = ops.sparsify(x, 0.5)
    np.testing.assert_allclose(y, np.maximum(x - limit, 0), rtol=1e-5, atol=1e-5)
    assert (y == 0).any() and (y > 0).any()


def test_scale_columns(rng):
    """A factor a column, or one for all; no others."""
    x, factors = rng.standard_normal((3, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    np.testing.assert_array_equal(ops.scale_columns(x, factors), x * factors)
    np.testing.assert_array_equal(ops.scale_columns(x, factors[:1]), x * factors[0])
    with pytest.raises(ValueError, match=r"factors of shape \(3,\); allowed are \(4,\) and \(1,\)"):
        ops.scale_columns(x, factors[:3])


@pytest.mark.parametrize("axis", [-1, 0])
def test_softmax(rng, axis):
    """Sums to one along the axis and does not overflow."""
    x = (rng.standard_normal((5, 33)) * 10).astype(np.float32)
    x[0, 0] = 1e4
    exact = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    np.testing.assert_allclose(ops.softmax(x, axis), exact / exact.sum(axis, keepdims=True), rtol=1e-5, atol=1e-7)


def test_add_and_scale_in_place(rng):
    """With `out` the result lands in it, and is it; without, the inputs stay."""
    x, y = rng.standard_normal((2, 3, 4)).astype(np.float32)
    total, doubled = x + y, x * 2
    assert (ops.add(x, y) == total).all() and (ops.scale(x, 2) == doubled).all()
    assert ops.scale(x, 2, out=x) is x and (x == doubled).all()
    assert ops.add(x, y, out=x) is x and (x == doubled + y).all()
