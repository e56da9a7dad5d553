"""A QuantizedArray gives at any index what its values give there, packed where rows stay whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rocforge.ops import row_tiles
from rocforge.ops.quantize import quantize
from rocforge.quant import QuantizedArray

SHAPES = [(64,), (5, 64), (3, 4, 32), (2, 1, 3, 32)]
WEIGHTS = {
    (shape, qtype): quantize(np.random.default_rng(7).standard_normal(shape), qtype)
    for shape in SHAPES
    for qtype in ("Q8_0", "Q4_1", "F16")
}


@st.composite
def indices(draw, shape):
    """Basic ones, arrays of integers for some axes, and masks of rows or elements."""
    kind = draw(st.sampled_from(["basic", "arrays", "mixed", "mask"]))
    if kind == "basic":
        return draw(arrays.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    if kind == "arrays":
        return draw(arrays.integer_array_indices(shape, result_shape=arrays.array_shapes(max_dims=2, max_side=4)))
    if kind == "mask":
        axes = draw(st.integers(1, len(shape)))
        return draw(arrays.arrays(bool, shape[:axes]))
    entries = [
        draw(st.one_of(st.slices(n), st.integers(-n, n - 1), st.lists(st.integers(-n, n - 1), min_size=2, max_size=2)))
        for n in shape
    ]
    return tuple(entries)


@settings(max_examples=200)
@given(st.data())
def test_any_index_as_numpy(data):
    """Values, shapes and kinds are NumPy's, whatever the index, in tiles of some rows too; of transposes as well."""
    weight = WEIGHTS[data.draw(st.sampled_from(sorted(WEIGHTS)))]
    transposed = weight.ndim == 2 and data.draw(st.booleans())
    weight = weight.T if transposed else weight
    index = data.draw(indices(weight.shape))
    expected = weight.dequantize()[index]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_tiles, "TILE_ELEMENTS", data.draw(st.sampled_from([64, 100, 1 << 22])))
        got = weight[index]
    if isinstance(got, QuantizedArray):
        assert got.shape == expected.shape and got.qtype == weight.qtype
        got = got.dequantize()
    assert got.shape == expected.shape and got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("index", [(0, 64), (slice(None), -65), (5,), ([0], [64])])
def test_out_of_bounds(index):
    """An index past an axis is an IndexError, along packed rows too."""
    with pytest.raises(IndexError, match="out of bounds"):
        WEIGHTS[(5, 64), "Q8_0"][index]


def test_a_mask_of_another_shape():
    """It is told both shapes."""
    with pytest.raises(IndexError, match=r"mask of shape \(5, 63\) .* \(5, 64\)"):
        WEIGHTS[(5, 64), "Q8_0"][np.ones((5, 63), bool)]


def test_only_blocks_that_are_asked_for(monkeypatch):
    """A column of a large matrix unpacks one block of each row."""
    weight, unpacked = WEIGHTS[(5, 64), "Q8_0"], []
    plain = QuantizedArray.float32
    monkeypatch.setattr(QuantizedArray, "float32", lambda self: unpacked.append(self.shape) or plain(self))
    assert weight[:, 40].shape == (5,) and unpacked == [(5, 32)]
