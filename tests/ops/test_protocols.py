"""NumPy's operators and functions take a QuantizedArray for its values, and unpack a tile at a time where they can."""

import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rocforge as rf
from rocforge.ops import row_tiles
from rocforge.ops.quantize import quantize
from rocforge.quant import QuantizedArray

OPERATORS = ["add", "sub", "mul", "truediv", "floordiv", "mod", "lt", "le", "gt", "ge", "eq", "ne"]


@pytest.fixture(params=[100, 1 << 22], ids=["tiles", "whole"])
def weight(request, rng, monkeypatch):
    """(3, 4, 32) in Q8_0; in tiles of three rows, and in one."""
    monkeypatch.setattr(row_tiles, "TILE_ELEMENTS", request.param)
    return quantize(rng.standard_normal((3, 4, 32)), "Q8_0")


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(weight, rng, name):
    """Arithmetic and comparison on both sides, with numbers, arrays that broadcast and other packed weights."""
    apply, values = getattr(operator, name), weight.dequantize()
    others = [2, np.float64(0.5), rng.standard_normal((4, 1)), rng.standard_normal((2, 1, 1, 32)), values, [1.0] * 32]
    with np.errstate(divide="ignore", invalid="ignore"):
        for other in others:
            for got, expected in (
                (apply(weight, other), apply(values, other)),
                (apply(other, weight), apply(other, values)),
            ):
                assert type(got) is np.ndarray and got.dtype == expected.dtype
                np.testing.assert_array_equal(got, expected)
        for other in (weight[::-1], weight[0]):
            np.testing.assert_array_equal(apply(weight, other), apply(values, other.dequantize()))
        np.testing.assert_array_equal(apply(weight[0].T, 1.5), apply(values[0].T, 1.5))


def test_equal_is_elementwise(weight):
    """`==` compares values, with itself too, and never stands for identity."""
    assert (weight == weight).shape == weight.shape and (weight == weight.copy()).all()
    assert not (weight != weight).any() and not (weight == None).any()  # noqa: E711


REDUCED = (np.sum, np.mean, np.std, np.var, np.min, np.max, np.argmin, np.argmax, np.any, np.median, np.linalg.norm)


@settings(max_examples=150)
@given(st.data())
def test_reductions(data):
    """Along any axes, of transposes too, in tiles or not: float32, by NumPy's own values in float64."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    weight = quantize(rng.standard_normal(data.draw(st.sampled_from([(96,), (5, 64), (2, 3, 32)]))), "Q8_0")
    weight = weight.T if weight.ndim == 2 and data.draw(st.booleans()) else weight
    function = data.draw(st.sampled_from(REDUCED))
    axis = data.draw(st.sampled_from([None, *range(-weight.ndim, weight.ndim)]))
    options = {"keepdims": data.draw(st.booleans())} if function not in (np.argmin, np.argmax) else {}
    if function in (np.var, np.std):
        options["ddof"] = data.draw(st.integers(0, 1))
    expected = function(weight.dequantize(np.float64), axis=axis, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_tiles, "TILE_ELEMENTS", data.draw(st.sampled_from([32, 100, 1 << 22])))
        got = function(weight, axis=axis, **options)
    assert np.shape(got) == np.shape(expected)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_methods_are_the_functions(weight):
    """Reductions as methods, over several axes at once, in the dtype that is asked for."""
    values = weight.dequantize()
    np.testing.assert_allclose(weight.mean(axis=(0, 2)), values.mean(axis=(0, 2)), rtol=1e-5, atol=1e-7)
    assert weight.sum(dtype=np.float64).dtype == np.float64 and weight.mean().dtype == np.float32
    assert weight.max() == values.max() and weight.argmax() == values.argmax()
    np.testing.assert_array_equal(weight.abs(), np.abs(values))
    np.testing.assert_allclose(weight.norm(), np.linalg.norm(values), rtol=1e-6)
    with pytest.raises(np.exceptions.AxisError):
        weight.sum(axis=3)


def test_reductions_find_what_is_not_a_number():
    """A NaN shows in the maximum, the mean and their position."""
    weight = quantize(np.array([[1.0] * 32, [2.0, np.nan] * 16]), "F16")
    assert np.isnan(weight.max()) and np.isnan(weight.mean()) and weight.argmax() == 33


FUNCTIONS = {
    "where": lambda w: np.where(w > 0, w, -1.0),
    "clip": lambda w: np.clip(w, -0.5, 0.5),
    "isclose": lambda w: np.isclose(w, w + 1e-9),
    "exp": np.exp,
    "modf": lambda w: np.modf(w)[1],
    "reduce": lambda w: np.add.reduce(w, axis=-1),
    "outer": lambda w: np.multiply.outer(w[0, 0], np.arange(3)),
    "einsum": lambda w: np.einsum("eij,ekj->eik", w, w),
    "einsum of a matrix": lambda w: np.einsum("oi,oi->o", w[0], w[1]),
    "einsum, transposed": lambda w: np.einsum("td,od->ot", np.ones((2, 32), np.float32), w[0]),
    "einsum with an ellipsis": lambda w: np.einsum("...d,od->...o", np.ones((2, 32), np.float32), w[0]),
    "einsum, implicit": lambda w: np.einsum("td,od", np.ones((2, 32), np.float32), w[0]),
    "einsum of lists": lambda w: np.einsum(w[0], [0, 1], [1]),
    "tensordot": lambda w: np.tensordot(w, np.ones((32, 2)), 1),
    "sort": np.sort,
    "percentile": lambda w: np.percentile(w, [5, 95]),
    "histogram": lambda w: np.histogram(w)[0],
    "concatenated rows": lambda w: np.concatenate([w[0], np.asarray(w[1])]),
    "along the last axis": lambda w: np.concatenate([w, w], axis=-1),
    "zeros_like": np.zeros_like,
    "where=": lambda w: np.sum(w, where=np.asarray(w) > 0),
    "dtype=": lambda w: np.add(w, 1, dtype=np.float64),
    "all by name": lambda w: np.mean(a=w, axis=0),
    "svd": lambda w: np.linalg.svd(w)[1],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(weight, name):
    """Whatever else NumPy has takes the values."""
    got, expected = FUNCTIONS[name](weight), FUNCTIONS[name](weight.dequantize())
    assert type(got) is type(expected) and got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_functions_of_shapes(weight):
    """Shapes, equality and closeness."""
    assert np.shape(weight) == (3, 4, 32) and np.ndim(weight) == 3 and np.size(weight) == weight.size
    assert np.allclose(weight, weight.dequantize()) and not np.allclose(weight, 0)
    assert np.array_equal(weight, weight.copy()) and not np.array_equal(weight, weight[0])
    assert np.result_type(weight, np.float64) == np.float64


def test_rows_put_together_stay_packed(weight):
    """concatenate and stack of rows in one format; copy, reshape and transpose by NumPy's functions."""
    values = weight.dequantize()
    for got, expected in (
        (np.concatenate([weight, weight[:1]]), np.concatenate([values, values[:1]])),
        (np.concatenate([weight, weight], axis=1), np.concatenate([values, values], axis=1)),
        (np.stack([weight[0], weight[2]], axis=-2), np.stack([values[0], values[2]], axis=-2)),
        (np.reshape(weight, (12, 32)), values.reshape(12, 32)),
        (np.transpose(weight[1]), values[1].T),
        (np.copy(weight), values),
    ):
        assert isinstance(got, QuantizedArray)
        np.testing.assert_array_equal(got.dequantize(), expected)
    assert isinstance(np.stack([weight[0], quantize(values[1], "Q4_0")]), np.ndarray)


def test_products_stay_packed(rng, monkeypatch):
    """matmul, dot and inner multiply with packed rows, and unpack no more than a tile of them at a time."""
    w, x = quantize(rng.standard_normal((8, 64)), "Q8_0"), rng.standard_normal((3, 64)).astype(np.float32)
    expected = x @ w.dequantize().T
    unpacked, plain = [], QuantizedArray.float32
    monkeypatch.setattr(row_tiles, "TILE_ELEMENTS", 128)
    monkeypatch.setattr(QuantizedArray, "float32", lambda self: unpacked.append(self.size) or plain(self))
    out = np.empty((3, 8), np.float32)
    products = [
        x @ w.T,
        np.matmul(x, w.T),
        np.matmul(x, w.T, out=out),
        np.dot(x, w.T),
        np.inner(x, w),
        np.einsum("td,od->to", x, w),
        np.einsum("o i, b i -> b o", w, x),
        (w @ x.T).T,
        np.dot(w, x.T).T,
        w.dot(x.T).T,
        np.inner(w, x).T,
        x.tolist() @ w.T,
        out,
    ]
    for product in products:
        np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-5)
    assert max(unpacked) == 128 and w[0] @ x[0] == pytest.approx(expected[0, 0], rel=1e-4)


def test_out_is_never_packed(weight):
    """Results go to ordinary arrays; where a packed one is to be written to, the error says what can be done."""
    out = np.empty(weight.shape, np.float32)
    assert np.add(weight, 1, out=out) is out and (out == weight + 1).all()
    for write in (
        lambda: np.add(weight, 1, out=weight),
        lambda: np.sum(weight, axis=0, out=weight[0]),
        lambda: np.copyto(weight, 0),
        lambda: np.add.at(weight, 0, 1),
        lambda: np.put(weight, 0, 1),
    ):
        with pytest.raises(TypeError, match=r"not written to; .*rf\.quantize"):
            write()


def test_a_tile_at_a_time(monkeypatch):
    """Reductions and comparisons of a matrix of 64 tiles never hold the values of more than one."""
    monkeypatch.setattr(row_tiles, "TILE_ELEMENTS", 1024)
    weight, unpacked, plain = rf.quantize(np.ones((64, 1024)), "Q8_0"), [], QuantizedArray.float32
    monkeypatch.setattr(QuantizedArray, "float32", lambda self: unpacked.append(self.size) or plain(self))
    for function in (np.mean, np.std, np.max, np.argmax, np.linalg.norm, np.abs, lambda w: w > 0, lambda w: w * 2):
        function(weight)
    assert set(unpacked) == {1024}
