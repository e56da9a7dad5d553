"""Q1_0: signs and one size, in the bits that ggml has them in."""

import numpy as np

import rocforge as rf
from rocforge.formats import q1_0


def test_bits_of_a_block():
    """Byte i holds elements 8 i to 8 i + 7, the first in its lowest bit; the size comes before them."""
    block = np.zeros(18, np.uint8)
    block[:2] = np.array([0.75], np.float16).view(np.uint8)
    block[2], block[17] = 0b00000101, 0b10000000
    values = q1_0.dequantize(block[None])[0]
    assert values.dtype == np.float32 and set(np.flatnonzero(values > 0)) == {0, 2, 127}
    assert (np.abs(values) == 0.75).all()


def test_packed(rng):
    """The size is the mean of the absolute values; zero counts as positive; rows are blocks one after another."""
    x = rng.standard_normal((3, 256)).astype(np.float32)
    x[1, :128] = 0
    packed = rf.quantize(x, "Q1_0")
    expected = np.abs(x.reshape(3, 2, 128)).mean(-1).astype(np.float16).astype(np.float32).repeat(128, axis=1)
    assert packed.shape == x.shape and packed.nbytes == 3 * 2 * 18
    np.testing.assert_array_equal(packed.dequantize(), np.where(x >= 0, expected, -expected))
    again = q1_0.quantize(packed.dequantize())
    np.testing.assert_array_equal(q1_0.dequantize(again), packed.dequantize())
