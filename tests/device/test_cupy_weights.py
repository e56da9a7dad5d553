"""QuantizedArrays on a device index, compute and compare as their values do, by NumPy's and CuPy's functions."""

import cupy as cp
import numpy as np
import pytest

import rocforge as rf
from rocforge.ops import row_tiles
from rocforge.quant import QuantizedArray
from rocforge.selftest.weights import random_weight

pytestmark = pytest.mark.any_wave


@pytest.fixture
def qtype():
    return "Q4_K"


@pytest.fixture
def pair(qtype, rng, monkeypatch):
    """(6, 256) packed on the device, and its values on the host; tiles are of two rows."""
    monkeypatch.setattr(row_tiles, "TILE_ELEMENTS", 512)
    weight = random_weight(rng, qtype, (6, 256))
    return weight.to_device("gpu"), weight.dequantize()


def same(got, expected):
    """What came on the device is what NumPy gives of the values."""
    if isinstance(got, QuantizedArray):
        got = got.dequantize()
    assert isinstance(got, cp.ndarray) and got.dtype == expected.dtype
    np.testing.assert_allclose(got.get(), expected, rtol=1e-5, atol=1e-5)


def there(index):
    """An index whose arrays lie on the device."""
    if isinstance(index, tuple):
        return tuple(map(there, index))
    return cp.asarray(index) if isinstance(index, np.ndarray) else index


@pytest.mark.parametrize("qtype", ["Q4_K", "F16"])
def test_indices(pair):
    """Parts of rows are values, whole rows stay packed; masks and arrays of indices may lie on the device."""
    weight, values = pair
    indices = [
        (0, 0),
        (..., slice(32)),
        (slice(4), slice(None)),
        (slice(1, None, 2), slice(7, 2, -1)),
        (np.array([0, 5]), np.array([3, 4])),
        values > 0,
        values[:, 0] > 0,
    ]
    for index in indices:
        same(weight[index], values[index])
        there = (
            tuple(cp.asarray(i) if isinstance(i, np.ndarray) else i for i in index) if type(index) is tuple else index
        )
        same(weight[cp.asarray(index) if isinstance(index, np.ndarray) else there], values[index])
    assert isinstance(weight[0:4, :], QuantizedArray) and isinstance(weight[cp.asarray([5, 1])], QuantizedArray)
    same(weight.T[3], values.T[3])
    same(weight.T[:, 1:3], values.T[:, 1:3])


def test_reductions(pair):
    """By tiles, along either axis, of a transpose too."""
    weight, values = pair
    same(weight.std(axis=0), values.std(axis=0))
    same(np.sum(weight.T), values.sum())
    same(weight.max(axis=1), values.max(axis=1))
    same(weight.norm(), np.linalg.norm(values))
    assert int(weight.argmax()) == values.argmax()


def test_arithmetic_and_functions(pair):
    """Operators on both sides, with CuPy's arrays, and functions by NumPy's names and by CuPy's."""
    weight, values = pair
    x = cp.asarray(values)
    for got, expected in [
        (weight + 1, values + 1),
        (x + weight, values + values),
        (weight > 0, values > 0),
        (x == weight, values == values),
        (abs(weight), abs(values)),
        (np.einsum("ij,ij->i", x, weight), (values * values).sum(1)),
        (cp.einsum("ij,kj->ik", x, weight), values @ values.T),
        (cp.add(x, weight), values + values),
        (cp.asarray(weight), values),
        (np.concatenate([weight, weight[:2]]), np.concatenate([values, values[:2]])),
        (np.zeros_like(weight), np.zeros_like(values)),
    ]:
        same(got, expected)
    assert np.allclose(weight, x) and isinstance(np.concatenate([weight, weight]), QuantizedArray)
    with pytest.raises(TypeError, match="not written to"):
        np.add(weight, 1, out=weight)


def test_products_stay_packed(pair, monkeypatch):
    """`x @ w.T` of a CuPy array unpacks nothing, by the operator and by NumPy's functions.

    np.matmul is left out with a CuPy array first: CuPy takes that for its own, and knows no packed operand.
    """
    weight, values = pair
    x = cp.asarray(values[:2])

    def dequantize(self, *args):
        raise AssertionError("unpacked")

    expected = values[:2] @ values.T
    with monkeypatch.context() as patch:
        for name in ("dequantize", "float32"):
            patch.setattr(QuantizedArray, name, dequantize)
        got = [
            x @ weight.T,
            np.dot(x, weight.T),
            np.inner(x, weight),
            np.einsum("td,od->to", x, weight),
            (weight @ x.T).T,
            np.matmul(weight, x.T).T,
        ]
    for product in got:
        np.testing.assert_allclose(product.get(), expected, rtol=5e-2, atol=5e-2 * np.abs(expected).max())


def test_sides_are_not_mixed(pair):
    """NumPy's arrays beside weights on a device, and CuPy's beside weights on the host, are errors that say so."""
    weight, values = pair
    host, x = rf.to_device(weight, "cpu"), cp.asarray(values)
    calls = [
        lambda: weight + values,
        lambda: x + host,
        lambda: np.einsum("ij,kj->ik", values, weight),
        lambda: np.concatenate([host, x]),
        lambda: values @ weight.T,
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"rf\.to_device"):
            call()
