"""linear and embedding: products and rows of plain and packed weights, whole and in tiles."""

import numpy as np
import pytest

from rocforge.ops import row_tiles
from rocforge.ops.embedding import embedding
from rocforge.ops.linear import gated_linear, linear, linears
from rocforge.ops.quantize import quantize
from rocforge.quant import QuantizedArray


def error(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3)])
def test_matches_float64(rng, packed, leading):
    """With bias and residual, for any leading dimensions, to float32 accuracy."""
    weight = rng.standard_normal((48, 64)).astype(np.float32)
    weight = quantize(weight, "Q8_0") if packed else weight
    x = rng.standard_normal((*leading, 64)).astype(np.float32)
    bias, residual = rng.standard_normal(48).astype(np.float32), rng.standard_normal((*leading, 48)).astype(np.float32)
    exact = weight.dequantize(np.float64) if packed else weight.astype(np.float64)
    expected = x.astype(np.float64) @ exact.T + bias + residual
    y = linear(x, weight, bias, residual)
    assert y.dtype == np.float32 and y.shape == (*leading, 48)
    assert error(y, expected) < 1e-6


@pytest.mark.parametrize("biased", [False, True])
def test_gate_and_up_of_one_matrix(rng, biased):
    """A gated product of a matrix with the rows of both is that of its halves."""
    weight, bias = quantize(rng.standard_normal((48, 64)), "Q8_0"), rng.standard_normal(48).astype(np.float32)
    x, bias = rng.standard_normal((2, 3, 64)).astype(np.float32), bias if biased else None
    halves = [None if array is None else array[half] for array in (weight, bias) for half in (np.s_[:24], np.s_[24:])]
    assert error(gated_linear(x, weight, None, bias, activate="geglu"), gated_linear(x, *halves, "geglu")) < 1e-6


def test_tiles_equal_whole(rng, monkeypatch):
    """A packed weight larger than a tile is unpacked in pieces, the last one shorter, with the same result."""
    weight = quantize(rng.standard_normal((50, 64)), "Q4_0")
    x = rng.standard_normal((3, 64)).astype(np.float32)
    whole = linear(x, weight)
    monkeypatch.setattr(row_tiles, "TILE_ELEMENTS", 64 * 16)
    assert error(linear(x, weight), whole) < 1e-6


@pytest.mark.parametrize("count", [1, 3])
def test_kept_weights_are_joined(rng, count):
    """Several weights that keep their values give what each gives alone, and hold one copy of them between them."""
    weights = [quantize(rng.standard_normal((rows, 64)), "Q8_0") for rows in (32, 8, 16)]
    x, bias = rng.standard_normal((count, 64)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    alone = [linear(x, weight, b) for weight, b in zip(weights, (None, bias, None), strict=True)]
    for weight in weights:
        weight.keep_float32 = True
    for _ in range(2):
        together = linears(x, weights, [None, bias, None])
        assert all(error(y, expected) < 1e-6 for y, expected in zip(together, alone, strict=True))
    wholes = {id(weight.float32().base) for weight in weights}
    assert len(wholes) == 1 and weights[0].float32().base.size == 56 * 64
    for y, expected in zip(linears(x, weights[:2]), alone, strict=False):
        assert y.shape == expected.shape
    np.testing.assert_array_equal(weights[1].dequantize(), quantize_like(weights[1]))


def quantize_like(weight):
    """The values of a weight's blocks, unpacked anew."""
    return QuantizedArray(weight.data, weight.shape, weight.qtype).dequantize()


def test_float64_and_float16_activations_give_float32(rng):
    """The result is float32 whatever comes in."""
    weight = rng.standard_normal((8, 32)).astype(np.float16)
    for dtype in (np.float16, np.float64):
        assert linear(rng.standard_normal((2, 32)).astype(dtype), weight).dtype == np.float32


def test_inputs_are_left_alone(rng):
    """Neither the activations nor the residual are written to."""
    x, weight = rng.standard_normal((2, 32)).astype(np.float32), rng.standard_normal((8, 32)).astype(np.float32)
    residual = rng.standard_normal((2, 8)).astype(np.float32)
    before = x.copy(), residual.copy()
    linear(x, weight, residual=residual)
    assert (x == before[0]).all() and (residual == before[1]).all()


def test_misfit_names_both_shapes(rng):
    """A weight that does not fit is a ValueError with both shapes."""
    with pytest.raises(ValueError, match=r"\(2, 31\).*\(8, 32\)"):
        linear(rng.standard_normal((2, 31)), rng.standard_normal((8, 32)))


@pytest.mark.parametrize("packed", [False, True])
def test_embedding_gathers_rows(rng, packed):
    """Rows by id, repeated ids and any shape of ids included."""
    table = rng.standard_normal((10, 64)).astype(np.float32)
    table = quantize(table, "Q8_0") if packed else table
    ids = np.array([[3, 3], [0, 9]])
    values = table.dequantize() if packed else table
    assert (embedding(ids, table) == values[ids]).all()


@pytest.mark.parametrize("bad", [-1, 10])
def test_embedding_names_a_bad_id(rng, bad):
    """An id outside the table is an IndexError that names it; it does not wrap around."""
    with pytest.raises(IndexError, match=f"id {bad} .* 10 rows"):
        embedding(np.array([0, bad]), rng.standard_normal((10, 4)))
