"""Block formats: which there are, their sizes, and blocks as floats."""

import gguf
import numpy as np
import pytest

import rocforge as rf
from rocforge.formats.blocks import (
    QTYPES,
    as_qtype,
    block_elements,
    dequantize,
    lattice,
    row_nbytes,
)
from rocforge.formats.planar import PLANAR, planar_row_nbytes
from rocforge.formats.random_blocks import random_blocks


def test_reads_what_gguf_reads():
    """The formats of the published models are among those that the gguf package can read."""
    named = (
        "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S "
        "IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4"
    )
    assert set(named.split()) <= set(QTYPES) and "I8" not in QTYPES


@pytest.mark.filterwarnings("ignore:.*encountered in (multiply|add):RuntimeWarning")
@pytest.mark.parametrize("name", [name for name in QTYPES if name != "Q1_0"])
def test_dequantize_is_bit_equal_to_gguf(rng, name):
    """On random bytes, NaN and infinity included."""
    qtype = QTYPES[name]
    columns = 2 * max(512, block_elements(qtype))
    data = rng.integers(0, 256, (3, 2, row_nbytes(columns, qtype)), dtype=np.uint8)
    expected = gguf.dequantize(data.reshape(6, -1), qtype).astype(np.float32).reshape(3, 2, columns)
    got = dequantize(data, qtype, columns)
    assert got.shape == expected.shape and got.dtype == np.float32
    assert (got.view(np.uint32) == expected.view(np.uint32)).all()
    assert dequantize(data[:0], qtype, columns).shape == (0, 2, columns)


def test_names_and_sizes():
    """Rows are whole blocks; a name that is not known is told with those that are."""
    assert as_qtype("q6_k") is as_qtype(14) is QTYPES["Q6_K"] and row_nbytes(512, QTYPES["Q6_K"]) == 420
    with pytest.raises(rf.UnsupportedModelError, match=r"Q8_K is not supported; supported are .*Q4_K"):
        as_qtype("Q8_K")
    with pytest.raises(ValueError, match=r"33 elements .* Q8_0 blocks of 32"):
        row_nbytes(33, QTYPES["Q8_0"])


@pytest.mark.parametrize("name", PLANAR)
def test_planar_rows_keep_the_size(name):
    """A planar row of whole super-blocks is as long as GGUF's, but for those whose 110 bytes become 112."""
    expected = 16 * 112 if name in ("Q3_K", "IQ3_S") else row_nbytes(4096, QTYPES[name])
    assert planar_row_nbytes(4096, QTYPES[name]) == expected


@pytest.mark.parametrize("name", QTYPES)
def test_random_blocks_have_values_of_use(rng, name):
    """All finite, and of a size that products stay finite with."""
    qtype = QTYPES[name]
    values = dequantize(random_blocks(rng, qtype, 64), qtype, block_elements(qtype))
    assert np.isfinite(values).all() and 1e-3 < np.abs(values).mean() < 100


def test_lattices():
    """Codes of the IQ formats but IQ4 index points of four or eight dimensions, as the gguf package has them."""
    sizes = {name: points.shape[-2:] for name in QTYPES if (points := lattice(QTYPES[name])) is not None}
    assert sizes == {
        "IQ2_XXS": (256, 8),
        "IQ2_XS": (512, 8),
        "IQ2_S": (1024, 8),
        "IQ3_XXS": (256, 4),
        "IQ3_S": (512, 4),
        "IQ1_S": (2048, 8),
        "IQ1_M": (2048, 8),
    }
