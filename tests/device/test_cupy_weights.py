"""QuantizedArrays on a device index, compute and compare as their values do, by NumPy's and CuPy's functions."""

import cupy as cp
import numpy as np
import pytest

import rocforge as rf
from rocforge.ops import row_tiles
from rocforge.quant import QuantizedArray
from rocforge.selftest.weights import random_weight


@pytest.fixture(params=["Q4_K", "Q8_0", "IQ4_NL", "F16"])
def pair(request, rng, monkeypatch):
    """(6, 256) packed on the device, and its values there; tiles are of two rows."""
    monkeypatch.setattr(row_tiles, "TILE_ELEMENTS", 512)
    weight = random_weight(rng, request.param, (6, 256))
    return weight.to_device("gpu"), cp.asarray(weight.dequantize())


def same(got, expected):
    if isinstance(got, QuantizedArray):
        got = got.dequantize()
    assert isinstance(got, cp.ndarray) and got.dtype == expected.dtype
    np.testing.assert_allclose(got.get(), expected.get(), rtol=1e-5, atol=1e-6)


def test_indices(pair):
    """Parts of rows are values, whole rows stay packed; masks and arrays of indices may lie on the device."""
    weight, values = pair
    indices = [
        (0, 0),
        (..., slice(32)),
        (slice(4), slice(None)),
        (slice(None), 5),
        (slice(1, None, 2), slice(7, 2, -1)),
        (cp.asarray([0, 5]), cp.asarray([3, 4])),
        cp.asarray([5, 1]),
        values > 0,
        values[:, 0] > 0,
    ]
    for index in indices:
        same(weight[index], values[index])
    assert isinstance(weight[0:4, :], QuantizedArray) and isinstance(weight[values[:, 0] > 0], QuantizedArray)
    same(weight.T[3], values.T[3])
    same(weight.T[:, 1:3], values.T[:, 1:3])


def test_reductions(pair):
    """By tiles, along either axis, of a transpose too."""
    weight, values = pair
    for name in ("sum", "mean", "std", "min", "max"):
        for axis in (None, 0, 1):
            same(getattr(weight, name)(axis), getattr(values, name)(axis))
            same(getattr(np, name)(weight.T, axis), getattr(values.T, name)(axis))
    assert int(weight.argmax()) == int(values.argmax())
    assert cp.array_equal(weight.argmin(axis=1), values.argmin(axis=1))
    same(np.linalg.norm(weight, axis=1), cp.linalg.norm(values, axis=1))
    same(weight.norm(), cp.linalg.norm(values))


def test_arithmetic_and_functions(pair):
    """Operators on both sides, with CuPy's arrays, and functions by NumPy's names and by CuPy's."""
    weight, values = pair
    for got, expected in [
        (weight + 1, values + 1),
        (values * weight, values * values),
        (weight - weight, values - values),
        (weight > 0, values > 0),
        (values == weight, values == values),
        (abs(weight), abs(values)),
        (np.where(weight > 0, weight, 0), cp.where(values > 0, values, 0)),
        (np.einsum("ij,kj->ik", values, weight), values @ values.T),
        (cp.einsum("ij,kj->ik", values, weight), values @ values.T),
        (cp.add(values, weight), values + values),
        (cp.asarray(weight), values),
        (np.concatenate([weight, weight[:2]]), cp.concatenate([values, values[:2]])),
        (np.zeros_like(weight), cp.zeros_like(values)),
    ]:
        same(got, expected)
    assert np.allclose(weight, values) and isinstance(np.concatenate([weight, weight]), QuantizedArray)
    with pytest.raises(TypeError, match="not written to"):
        np.add(weight, 1, out=weight)


def test_products_stay_packed(pair, monkeypatch):
    """`x @ w.T` of a CuPy array unpacks nothing, by the operator and by NumPy's functions.

    np.matmul is left out with a CuPy array first: CuPy takes that for its own, and knows no packed operand.
    """
    weight, values = pair
    x = values[:2]

    def dequantize(self, *args):
        raise AssertionError("unpacked")

    expected = (x @ values.T).get()
    with monkeypatch.context() as patch:
        for name in ("dequantize", "float32"):
            patch.setattr(QuantizedArray, name, dequantize)
        got = [x @ weight.T, np.dot(x, weight.T), np.inner(x, weight), (weight @ x.T).T, np.matmul(weight, x.T).T]
    for product in got:
        np.testing.assert_allclose(product.get(), expected, rtol=5e-2, atol=5e-2 * np.abs(expected).max())


def test_sides_are_not_mixed(pair):
    """NumPy's arrays beside weights on a device, and CuPy's beside weights on the host, are errors that say so."""
    weight, values = pair
    host = rf.to_device(weight, "cpu")
    calls = [
        lambda: weight + values.get(),
        lambda: values + host,
        lambda: np.einsum("ij,kj->ik", values.get(), weight),
        lambda: np.concatenate([host, values]),
        lambda: values.get() @ weight.T,
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"rf\.to_device"):
            call()
