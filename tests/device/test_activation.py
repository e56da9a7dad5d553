"""Activations, gated products, softmax, add and scale on a device against float64 arithmetic."""

from __future__ import annotations

import cupy as cp
import numpy as np
import pytest
from gates import GATED, gelu, sigmoid

from rocforge.ops import activation
from rocforge.ops.device.activation import add_to_rows, gated_unit
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.temperature import Temperature
from rocforge.selftest.weights import relative_error

XIELU = 0.3, 0.8, 0.5, -1e-3


def xielu(x):
    n, p, beta, eps = 0.5 + np.log1p(np.exp(0.3)), np.log1p(np.exp(0.8)), *XIELU[2:]
    return beta * x + np.where(x > 0, p * x * x, n * (np.expm1(np.minimum(x, eps)) - x))


ELEMENTWISE = {
    "silu": (lambda x: x * sigmoid(x), ()),
    "relu_squared": (lambda x: np.maximum(x, 0) ** 2, ()),
    "gelu": (gelu, ()),
    "softcap": (lambda x: 30 * np.tanh(x / 30), (30.0,)),
    "scale": (lambda x: x * 0.37, (0.37,)),
    "clip": (lambda x: np.clip(x, -2.5, 2.5), (2.5,)),
    "xielu": (xielu, XIELU),
    "softplus": (lambda x: np.logaddexp(x, 0), ()),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), ()),
}
UNITS = {
    **{name: (function, ()) for name, function in GATED.items()},
    "reglu": (lambda gate, up: np.maximum(gate, 0) * up, ()),
    "swiglu_clipped": (lambda gate, up: np.minimum(gate * sigmoid(gate), 1.5) * np.clip(up, -1.5, 1.5), (1.5,)),
}


def values(shape: tuple[int, ...]) -> np.ndarray:
    """Small numbers, large ones, and zero."""
    rng = np.random.default_rng(len(shape))
    x = rng.standard_normal(shape, np.float32) * rng.choice([0.01, 1, 20], shape).astype(np.float32)
    if x.size > 2:
        x.flat[0] = 0
    return x


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (1025,)])
def test_elementwise(name: str, shape: tuple[int, ...]):
    function, more = ELEMENTWISE[name]
    x = values((*shape, 2))
    y = getattr(activation, name)(cp.asarray(x), *more)
    assert y.dtype == np.float32 and relative_error(y, function(x.astype(np.float64))) < 1e-5


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_far_arguments_stay_finite(name: str):
    function, more = ELEMENTWISE[name]
    x = np.array([-1e4, -200, -100, 100, 200, 1e4], np.float32)
    with np.errstate(over="ignore"):
        expected = function(x.astype(np.float64))
    assert np.allclose(getattr(activation, name)(cp.asarray(x), *more).get(), expected, rtol=1e-5, atol=1e-30)


def test_rows_of_wider_ones():
    """scale_rows and clip of columns of a wider array."""
    wide, factors = cp.asarray(values((5, 40))), cp.asarray(values((5,)))
    x = wide[:, 8:24].reshape(5, 4, 4)
    assert relative_error(activation.scale_rows(x, factors), x.get() * factors.get()[:, None, None]) < 1e-6
    assert (activation.clip(wide[:, 8:24], 0.5).get() == np.clip(wide.get()[:, 8:24], -0.5, 0.5)).all()


def test_temperatures():
    """Steps of the logarithm of positions, as on the CPU."""
    temperature, positions = Temperature(0.1, 8192, offset=1), np.array([0, 8190, 8191, 1 << 20], np.int32)
    assert np.allclose(temperature.factors(cp.asarray(positions)).get(), temperature.factors(positions), rtol=1e-6)


@pytest.mark.parametrize("columns", [2, 1000])
def test_of_rows(columns: int):
    """sparsify, of rows that are parts of wider ones too, and scale_columns."""
    x = values((3, 2 * columns))
    for half in (x[:, :columns], x[:, columns:]):
        y = activation.sparsify(cp.asarray(x)[:, :columns] if half is x else cp.asarray(half), 0.3)
        assert relative_error(y, activation.sparsify(half.astype(np.float64), 0.3)) < 1e-5
    y = activation.sparsify(cp.asarray(x)[:, columns:], 0.3)
    assert relative_error(y, activation.sparsify(x[:, columns:], 0.3)) < 1e-5
    for factors in (x[0], x[0, :1]):
        assert (activation.scale_columns(cp.asarray(x), cp.asarray(factors)).get() == x * factors).all()


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 257), (2, 1000)])
def test_gated(name: str, rows: int, columns: int):
    """Of two arrays, and of the halves of one; and of float16, which is read as it is."""
    both = values((rows, 2 * columns)).astype(np.float16).astype(np.float32)
    gate, up = both[:, :columns], both[:, columns:]
    exact, constants = UNITS[name]
    expected = exact(gate.astype(np.float64), up.astype(np.float64))
    function, wide = getattr(activation, name), cp.asarray(both)
    assert relative_error(function(cp.asarray(gate), cp.asarray(up), *constants), expected) < 1e-5
    for halves in (wide, wide.astype(np.float16)):
        assert relative_error(function(halves[:, :columns], halves[:, columns:], *constants), expected) < 1e-5


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("columns", [300, 301])
def test_gated_fp16(name: str, columns: int):
    """In float16 for the product that follows: what is too large for that is cut, not infinite."""
    gate, up = values((3, columns)), values((3, columns))
    gate[:, 0], up[:, 0] = 7, 1e8
    y = gated_unit(name, cp.asarray(gate), cp.asarray(up), form=OperandForm.FP16).get()
    expected = GATED[name](gate.astype(np.float64), up.astype(np.float64))
    assert y.dtype == np.float16 and np.abs(y - expected)[:, 1:].max() < 1e-3 * np.abs(expected[:, 1:]).max()
    assert (y[:, 0] == np.float16(np.minimum(expected[:, 0], 65504))).all()


@pytest.mark.parametrize("columns", [8, 13])
def test_products_beyond_float16(columns: int):
    """Infinite sums of a float16 product count as its largest number; what is no number stays none."""
    gate, up = np.ones((4, columns), np.float16), np.full((4, columns), 0.5, np.float16)
    gate[0], gate[1], up[2], gate[3] = np.inf, -np.inf, -np.inf, np.nan
    y = gated_unit("swiglu", cp.asarray(gate), cp.asarray(up), form=OperandForm.FP16).get()
    assert (y[0] == 32752).all() and (y[1] == 0).all() and np.isfinite(y[2]).all() and np.isnan(y[3]).all()


def test_gated_shapes():
    with pytest.raises(ValueError, match="different shapes"):
        activation.swiglu(cp.zeros((2, 3)), cp.zeros((2, 4)))


@pytest.mark.parametrize("shape, axis", [((3, 1), -1), ((4, 1000), -1), ((2, 3, 33), 1), ((257,), 0)])
def test_softmax(shape: tuple[int, ...], axis: int):
    x = values(shape)
    e = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    y = activation.softmax(cp.asarray(x), axis)
    assert y.shape == shape and relative_error(y, e / e.sum(axis, keepdims=True)) < 1e-5


def test_sizes_at_random(rng):
    """Softmax along any axis, and gated products, of shapes that nobody has thought of."""
    for shape in rng.integers([1, 1, 40], [7, 7, 400], (4, 3)):
        x = 3 * rng.standard_normal(shape).astype(np.float32)
        axis = int(rng.integers(-1, 3))
        e = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
        assert relative_error(activation.softmax(cp.asarray(x), axis), e / e.sum(axis, keepdims=True)) < 1e-5
        for name, function in GATED.items():
            expected = function(x[0].astype(np.float64), x[-1].astype(np.float64))
            assert relative_error(getattr(activation, name)(cp.asarray(x[0]), cp.asarray(x[-1])), expected) < 1e-5


def test_add_and_scale_in_place():
    x, y = values((5, 300)), values((5, 301))[:, 1:]
    a, b = cp.asarray(x), cp.ascontiguousarray(cp.asarray(y))
    assert (activation.add(a, b).get() == x + y).all()
    assert activation.add(a, b, out=b) is b and (b.get() == x + y).all()
    assert activation.scale(a, -0.5, out=a) is a and (a.get() == x * np.float32(-0.5)).all()


def test_add_broadcasts_and_converts():
    """What the kernel does not take, CuPy's own function does."""
    x, row = values((5, 30)), values((30,))
    assert (activation.add(cp.asarray(x), cp.asarray(row)).get() == x + row).all()
    wide = activation.add(cp.asarray(x.astype(np.float64)), cp.asarray(x))
    assert wide.dtype == np.float32 and (wide.get() == x + x).all()


def test_add_parts(rng):
    """The first of several parts gets the others, of columns of a wider array too."""
    parts = rng.standard_normal((3, 4, 300)).astype(np.float32)
    on_device = cp.asarray(parts)
    add_to_rows(on_device[0, :, 40:], None, None, on_device[:, :, 40:])
    assert np.allclose(on_device[0, :, 40:].get(), parts[:, :, 40:].sum(0), atol=1e-5)
    assert (on_device[0, :, :40].get() == parts[0, :, :40]).all()
