"""QuantizedArray slices, multiplies, unpacks and prints as an array does."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rocforge as rf
from rocforge.formats.blocks import QTYPES
from rocforge.ops.quantize import quantize
from rocforge.quant import QuantizedArray

WRITABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]


def random_blocks(rng, name, rows=6, blocks=2):
    """Blocks of random bytes: every format gives some number for each, apart from NaN and infinite scales."""
    block, size = gguf.GGML_QUANT_SIZES[QTYPES[name]]
    blocks = -(-512 // block) * blocks
    data = rng.integers(0, 256, (rows, blocks * size), dtype=np.uint8)
    return QuantizedArray(data, (rows, blocks * block), name)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_matmul_matches_dequantized(data):
    """`x @ w.T`, `w @ x`, `x @ w` and `w.T @ x`, with any leading dimensions, as with the unpacked values."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows, blocks = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    leading = data.draw(st.lists(st.integers(1, 3), max_size=3))
    w = quantize(rng.standard_normal((rows, 32 * blocks)), data.draw(st.sampled_from(["Q8_0", "Q4_1", "F16"])))
    values = w.dequantize(np.float64)

    def check(got, expected):
        assert got.dtype == np.float32 and got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)

    x = rng.standard_normal((*leading, 32 * blocks)).astype(np.float32)
    check(x @ w.T, x @ values.T)
    y = rng.standard_normal((*leading, rows)).astype(np.float32)
    check(y @ w, y @ values)
    column = rng.standard_normal((*leading, 32 * blocks, 3)).astype(np.float32)
    check(w @ column, values @ column)
    check(w @ x[(0,) * len(leading)], values @ x[(0,) * len(leading)])
    check(w.T @ rng_like(rng, (*leading, rows, 2)), values.T @ rng_like.last)
    check(w @ w.T, values @ values.T)


def rng_like(rng, shape):
    rng_like.last = rng.standard_normal(shape).astype(np.float32)
    return rng_like.last


@pytest.mark.parametrize("index", [3, -1, slice(1, 4), slice(None, None, 2), [0, 0, 5], np.array([[1], [2]])])
def test_rows_index_as_numpy(rng, index):
    """Integers, slices and index arrays along the rows."""
    w = random_blocks(rng, "Q4_0")
    np.testing.assert_array_equal(w[index].dequantize(), w.dequantize()[index])


def test_mask_and_leading_axes(rng):
    """A boolean mask; and both leading axes of a stack of matrices, as experts are."""
    w = quantize(rng.standard_normal((4, 3, 64)), "Q8_0")
    values = w.dequantize()
    np.testing.assert_array_equal(w[np.array([True, False, True, False])].dequantize(), values[[0, 2]])
    np.testing.assert_array_equal(w[1, 1:].dequantize(), values[1, 1:])
    assert len(w) == 4 and w.ndim == 3 and w.size == 4 * 3 * 64


def test_kept_values_are_used_and_safe(rng):
    """With keep_float32 slices share the kept values, and what dequantize gives can be written to."""
    w = quantize(rng.standard_normal((4, 3, 64)), "Q8_0")
    w.keep_float32 = True
    before = QuantizedArray(w.data, w.shape, w.qtype).dequantize()
    np.testing.assert_array_equal(w[1].dequantize(), before[1])
    assert np.shares_memory(w[1].float32(), w.float32())
    w.dequantize()[:] = 0
    w[2].dequantize()[:] = 0
    np.testing.assert_array_equal(w.dequantize(), before)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_dequantize_dtype(rng, dtype):
    """Other float types on request."""
    w = quantize(rng.standard_normal((2, 32)), "Q8_0")
    assert w.dequantize(dtype).dtype == dtype
    np.testing.assert_array_equal(w.dequantize(dtype), w.dequantize().astype(dtype))


def test_transpose_twice_is_itself(rng):
    """.T swaps the shape and undoes itself; only rows slice."""
    w = quantize(rng.standard_normal((2, 64)), "Q8_0")
    assert w.T.shape == (64, 2) and w.T.T.shape == (2, 64)
    np.testing.assert_array_equal(w.T.dequantize(), w.dequantize().T)
    with pytest.raises(IndexError, match="slice the rows before"):
        w.T[0]


def test_errors_say_what_is_wrong(rng):
    """Misfits of shape, type and block size name what was given and what is wanted."""
    w = quantize(rng.standard_normal((2, 64)), "Q8_0")
    with pytest.raises(ValueError, match=r"\(3, 63\).*\(64, 2\)"):
        np.zeros((3, 63)) @ w.T
    with pytest.raises(ValueError, match="two axes"):
        np.zeros(64) @ quantize(np.zeros((1, 2, 64)), "Q8_0")
    with pytest.raises(ValueError, match="only a matrix"):
        _ = w[0].T
    with pytest.raises(IndexError, match="leading 1 axes"):
        w[0, 0]
    with pytest.raises(ValueError, match=r"33 elements .* Q8_0 blocks of 32"):
        quantize(np.zeros((1, 33)), "Q8_0")
    with pytest.raises(ValueError, match=r"uint8 of shape \(2, 68\)"):
        QuantizedArray(np.zeros((2, 67), np.uint8), (2, 64), "Q8_0")


def test_repr(rng):
    """repr shows shape, type and bits."""
    assert (
        repr(quantize(np.zeros((2, 64)), "Q4_0")) == "QuantizedArray(shape=(2, 64), qtype=Q4_0, 4.5 bits per element)"
    )


def test_as_an_array(rng):
    """NumPy takes it for its values; its rows are iterated over, and a row's values."""
    w = quantize(rng.standard_normal((3, 64)), "Q8_0")
    values = w.dequantize()
    np.testing.assert_array_equal(np.asarray(w), values)
    np.testing.assert_array_equal(np.asarray(w.T, np.float64), values.T.astype(np.float64))
    assert np.asarray(w).dtype == np.float32 and np.mean(w) == values.mean()
    assert [row.shape for row in w] == [(64,)] * 3 and list(w[1]) == list(values[1])
    with pytest.raises(ValueError, match="takes a copy"):
        np.array(w, copy=False)
    with pytest.raises(IndexError, match="slice the rows before"):
        list(w.T)


def test_on_its_device_already(rng):
    """It is returned as it is, with what it keeps."""
    w = quantize(rng.standard_normal((3, 64)), "Q8_0")
    w.keep_float32 = True
    assert rf.to_device(w, "cpu") is w and rf.to_device(w.T, "cpu").transposed
