"""QuantizedArray slices, multiplies, unpacks and prints as an array does."""

import copy
import pickle

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rocforge as rf
from rocforge.formats.blocks import QTYPES
from rocforge.ops.quantize import quantize
from rocforge.quant import QuantizedArray, joined_float32

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
def test_rows_stay_packed(rng, index):
    """Integers, slices and index arrays along the rows give packed rows."""
    w = random_blocks(rng, "Q4_0")
    for taken in (w[index], w[index, :], w[index, ...], w[..., :][index]):
        assert isinstance(taken, QuantizedArray)
        np.testing.assert_array_equal(taken.dequantize(), w.dequantize()[index])


def test_masks_and_leading_axes(rng):
    """A mask of rows, both leading axes of a stack of matrices, as experts are, and new axes before the last."""
    w = quantize(rng.standard_normal((4, 3, 64)), "Q8_0")
    values = w.dequantize()
    mask = np.array([True, False, True, False])
    for index in (mask, (mask, 1), (1, slice(1, None)), (slice(None), None), None, True, values.max(-1) > 2.2, ()):
        taken = w[index]
        assert isinstance(taken, QuantizedArray)
        np.testing.assert_array_equal(taken.dequantize(), values[index])
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
    """.T swaps the shape and undoes itself."""
    w = quantize(rng.standard_normal((2, 64)), "Q8_0")
    assert w.T.shape == (64, 2) and w.T.T.shape == (2, 64) and w[0].T.shape == (64,)
    np.testing.assert_array_equal(w.T.dequantize(), w.dequantize().T)


def test_errors_say_what_is_wrong(rng):
    """Misfits of shape, type and block size name what was given and what is wanted."""
    w = quantize(rng.standard_normal((2, 64)), "Q8_0")
    with pytest.raises(ValueError, match=r"\(3, 63\).*\(64, 2\)"):
        np.zeros((3, 63)) @ w.T
    with pytest.raises(ValueError, match="two axes"):
        np.zeros(64) @ quantize(np.zeros((1, 2, 64)), "Q8_0")
    with pytest.raises(ValueError, match="only a matrix"):
        _ = w[None].T
    with pytest.raises(IndexError, match="2 axes, and 3 are indexed"):
        w[0, 0, 0]
    with pytest.raises(IndexError, match="one Ellipsis"):
        w[..., ...]
    with pytest.raises(AttributeError, match=r"no 'cumsum'; its values have it: w\.dequantize\(\)\.cumsum"):
        w.cumsum()
    with pytest.raises(TypeError, match=r"'Q4_0' is no dtype; rf\.quantize"):
        w.astype("Q4_0")
    with pytest.raises(ValueError, match="neither true nor false"):
        bool(w)
    with pytest.raises(TypeError, match="unhashable"):
        hash(w)
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
    assert list(w.T)[5].tolist() == values[:, 5].tolist()
    assert values[1, 2] in w and 7 not in w and w.dtype == np.float32
    with pytest.raises(ValueError, match="takes a copy"):
        np.array(w, copy=False)


def test_copies_have_their_own_memory(rng):
    """copy() is packed; astype() and dequantize() give values that can be written to, of float formats too."""
    for qtype in ("Q8_0", "F32"):
        w = quantize(rng.standard_normal((3, 64)), qtype)
        before, copied = w.dequantize(), w.copy()
        assert isinstance(copied, QuantizedArray) and not np.shares_memory(copied.data, w.data)
        assert w.T.copy().shape == (64, 3)
        for values in (w.dequantize(), w.astype(np.float32), w.T.dequantize(), np.asarray(w)):
            values[:] = 0
        np.testing.assert_array_equal(w.dequantize(), before)
        np.testing.assert_array_equal(w.astype(np.float16), before.astype(np.float16))


def test_pickled_alone(rng):
    """What is kept beside the blocks, such as one product's joined weights, is not copied with them."""
    w, v = (quantize(rng.standard_normal((4, 64)), "Q8_0") for _ in range(2))
    w.keep_float32 = v.keep_float32 = True
    joined_float32([w, v])
    for copied in (pickle.loads(pickle.dumps(w)), copy.deepcopy(w)):
        assert len(pickle.dumps(copied)) < 2 * w.nbytes + 1000
        np.testing.assert_array_equal(copied.dequantize(), w.dequantize())


def test_reshape_keeps_rows(rng):
    """Leading axes take other lengths; rows stay whole, which the error says."""
    w = quantize(rng.standard_normal((6, 64)), "Q8_0")
    values = w.dequantize()
    for shape in ((2, 3, 64), (3, -1, 64), (-1, 64), (6, 1, -1)):
        assert isinstance(w.reshape(shape), QuantizedArray)
        np.testing.assert_array_equal(w.reshape(*shape).dequantize(), values.reshape(shape))
    for array, shape in ((w, (-1,)), (w, (3, 128)), (w, (5, 64)), (w.T, (64, 6)), (w, (7, -1, 64)), (w, ())):
        with pytest.raises(ValueError, match=r"rows of 64 stay whole; w\.dequantize\(\)\.reshape"):
            array.reshape(*shape)


def test_never_written_to(rng):
    """Assignments are errors that say what can be done."""
    w = quantize(rng.standard_normal((3, 64)), "Q8_0")
    message = r'not written to; .*v = w\.dequantize\(\).*rf\.quantize\(v, "Q8_0"\)'
    with pytest.raises(TypeError, match=message):
        w[0] = 1
    with pytest.raises(TypeError, match=message):
        w *= 2


def test_joined_by_identity(rng):
    """Weights of a joined product are compared as objects, not by their elements."""
    w, v, u = (quantize(rng.standard_normal((4, 64)), "Q8_0") for _ in range(3))
    for weight in (w, v, u):
        weight.keep_float32 = True
    first = joined_float32([w, v])
    assert joined_float32([w, v]) is first
    np.testing.assert_array_equal(joined_float32([w, u]), np.concatenate([w.dequantize(), u.dequantize()]))


def test_on_its_device_already(rng):
    """It is returned as it is, with what it keeps."""
    w = quantize(rng.standard_normal((3, 64)), "Q8_0")
    w.keep_float32 = True
    assert rf.to_device(w, "cpu") is w and rf.to_device(w.T, "cpu").transposed
