"""rf.quantize on a device: as near as on the host, in planes, and with the host's errors."""

import cupy as cp
import numpy as np
import pytest
from golden import quantizing

import rocforge as rf

INPUTS, IMPORTANCE = quantizing.inputs(), quantizing.importance()
EXACT = ("Q5_0", "Q4_1", "Q8_0", "MXFP4")
FAMILIES = ("Q1_0", "Q5_0", "Q4_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4")
"""Each quantizer of the source. A block has sixteen lanes at most; one format runs in waves of either size."""
COLUMNS = 1024


@pytest.mark.parametrize(
    "name", [name if name == "Q6_K" else pytest.param(name, marks=pytest.mark.any_wave) for name in FAMILIES]
)
def test_as_near_as_on_the_host(name):
    """With importance weights of two matrices and without; bit for bit where nothing is searched."""
    x = np.stack([INPUTS["normal"][:3, :COLUMNS], INPUTS["heavy"][:3, :COLUMNS]])
    weights = np.stack([IMPORTANCE[:COLUMNS], IMPORTANCE[-COLUMNS:]])
    for importance in (None, weights):
        there = rf.quantize(cp.asarray(x), name, importance)
        assert there.planar and there.device == "gpu:0" and there.shape == x.shape
        got, expected = there.to_device("cpu"), rf.quantize(x, name, importance)
        if importance is None and name in EXACT:
            assert (got.data == expected.data).all()
        for i in range(2):
            weight = None if importance is None else importance[i]
            errors = [quantizing.error(x[i], packed.dequantize()[i], weight) for packed in (got, expected)]
            assert errors[0] <= 1.005 * errors[1]
        assert (got.data == expected.data).mean() > 0.95


@pytest.mark.any_wave
def test_rows_of_any_number(rng):
    """Blocks that do not fill the last launch's threads, none, and parts of wider rows."""
    x = rng.standard_normal((3, 96)).astype(np.float32)
    whole = cp.asarray(x)
    for part in (np.s_[:1, :32], np.s_[:], np.s_[:0], np.s_[:, 32:64], np.s_[0]):
        there = rf.quantize(whole[part], "Q8_0")
        assert (there.to_device("cpu").data == rf.quantize(x[part], "Q8_0").data).all()


@pytest.mark.any_wave
def test_other_formats(rng):
    """Those that the kernel does not know are packed on the host, and lie on the array's device."""
    x = rng.standard_normal((2, 256)).astype(np.float32)
    for name in ("IQ3_S", "BF16"):
        there = rf.quantize(cp.asarray(x), name)
        assert there.device == "gpu:0" and (there.to_device("cpu").data == rf.quantize(x, name).data).all()


@pytest.mark.any_wave
@pytest.mark.parametrize("bad", [np.nan, -np.inf, 65536])
def test_what_blocks_cannot_hold(bad):
    """The error is the host's."""
    x = np.zeros((2, 256), np.float32)
    x[1, 7] = bad
    for name in ("Q4_K", "Q8_0"):
        with pytest.raises(
            ValueError, match=rf"{name} blocks cannot hold {bad}, the value at \(1, 7\); magnitudes up to"
        ):
            rf.quantize(cp.asarray(x), name)
    x[1, 7] = 1e30
    assert (rf.asnumpy(rf.quantize(cp.asarray(x), "MXFP4")) == rf.quantize(x, "MXFP4").dequantize()).all()
