"""The packed types of a cache: ggml's numbers, the nearest of those that a byte can be, and Hadamard matrices."""

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType

from rocforge.formats.kv_cache import FP8_MAX, PACKED, spread
from rocforge.ops.state import PackedRows


def there_and_back(name: str, x: np.ndarray) -> np.ndarray:
    kind = PACKED[name]
    codes, scales = kind.encode(x)
    assert codes.shape == (*x.shape[:-1], kind.row_nbytes(x.shape[-1])) and codes.dtype == np.uint8
    return kind.decode(codes, scales)


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_the_numbers_are_ggmls(rng, name):
    """Of random heads, one that is all zeros, and some of a far larger element."""
    x = rng.standard_normal((40, 3, 96), np.float32)
    x[0], x[1:9, :, 7] = 0, 100
    qtype = GGMLQuantizationType[name.upper()]
    np.testing.assert_array_equal(there_and_back(name, x), quants.dequantize(quants.quantize(x, qtype), qtype))


def test_fp8_is_the_nearest(rng):
    """Of all floats that e4m3 has, which are given here by their definition; ties go to even, and what is larger to the
    largest."""
    values = [m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0**e for e in range(-6, 9) for m in range(8)]
    values = np.array(values[:-1])  # the last is a NaN
    assert values[-1] == FP8_MAX
    x = np.concatenate([values, (values[1:] + values[:-1]) / 2, 2 ** rng.uniform(-11, 9.5, 2000)]).astype(np.float32)
    x = np.concatenate([x, -x])
    found = there_and_back("fp8_e4m3", x)
    distance = np.abs(np.minimum(np.abs(x), FP8_MAX)[:, None] - values)
    nearest = distance == distance.min(axis=1, keepdims=True)
    index = np.abs(np.abs(found)[:, None] - values).argmin(axis=1)
    assert (values[index] == np.abs(found)).all() and nearest[np.arange(len(x)), index].all()
    assert (index[nearest.sum(axis=1) == 2] % 2 == 0).all()
    assert (np.sign(found) == np.where(found == 0, 0, np.sign(x))).all() and not np.signbit(found[found == 0]).any()


@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_spread(rng, dim):
    """Products stay, applied twice it is nothing, and an element that is large in all of them costs the others less."""
    q, k = rng.standard_normal((2, 50, dim)).astype(np.float32)
    k[:, 5] += 50
    np.testing.assert_allclose((spread(q) * spread(k)).sum(-1), (q * k).sum(-1), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(spread(spread(k)), k, atol=1e-4)
    errors = [np.linalg.norm(there_and_back("q4_0", x) - x) for x in (k, spread(k))]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("name", PACKED)
def test_rows_lie_where_they_are_put(rng, name):
    """By slices and by slots out of order; others are untouched, and bytes are those of a block after another."""
    kind, size = PACKED[name], 4
    rows = PackedRows(np.zeros((5, 2, kind.block_nbytes(64, size)), np.uint8), kind, 64, size)
    x = rng.standard_normal((20, 2, 64), np.float32)
    held = there_and_back(name, x)
    rows[3:9] = x[3:9]
    slots = np.array([17, 0, 12])
    rows[slots] = x[slots]
    put = [*range(3, 9), *slots]
    np.testing.assert_array_equal(rows[np.array(put)], held[put])
    assert not rows[np.setdiff1d(np.arange(20), put)].any() and rows.shape == x.shape
    assert (rows.data[0, 1, : kind.row_nbytes(64)] == kind.encode(x[0, 1])[0]).all()
