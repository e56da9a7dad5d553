"""Packed weights on a device: layout, values, rows by id."""

import cupy as cp
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from weights import sizes

from rocforge.device.arrays import asnumpy, to_device
from rocforge.formats.blocks import QTYPES
from rocforge.formats.planar import PLANAR
from rocforge.ops.device.dequantize import dequantize_device
from rocforge.ops.embedding import embedding
from rocforge.selftest.weights import random_bytes, random_weight

pytestmark = [
    pytest.mark.any_wave,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # blocks of random bytes hold infinities
]


def same(a, b):
    """Bit for bit, whatever a NaN's bits."""
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=True)


@pytest.mark.parametrize("qtype", QTYPES)
def test_blocks_come_back(rng, qtype):
    """Any bits, packed in planes on the device and copied back, are GGUF's blocks again; odd shapes too."""
    for columns in sizes(qtype) if GGML_QUANT_SIZES[QTYPES[qtype]][0] != 64 else (512, 576, 64):
        weight = random_bytes(rng, qtype, (3, 5, columns))
        there = weight.to_device("gpu")
        assert there.planar == (qtype in PLANAR)
        assert np.array_equal(there.to_device("cpu").data, weight.data)


@pytest.mark.parametrize("qtype", QTYPES)
def test_values_are_gguf_s(rng, qtype):
    """dequantize() on the device is bit-equal to the gguf package, for any bits."""
    for columns in sizes(qtype):
        weight = random_bytes(rng, qtype, (7, columns)) if columns % 64 == 0 or qtype != "NVFP4" else None
        if weight is not None:
            assert same(asnumpy(weight.to_device("gpu")), weight.dequantize())


@pytest.mark.parametrize("qtype", QTYPES)
def test_fp16_weights(rng, qtype):
    """float16 and bfloat16 values are the float32 ones, rounded to nearest even."""
    weight = random_weight(rng, qtype, (5, 512))
    values, there = weight.dequantize(), weight.to_device("gpu")
    assert same(dequantize_device(there, "float16").get(), values.astype(np.float16))
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    assert same(dequantize_device(there, "bfloat16").get(), rounded)


@pytest.mark.parametrize("qtype, columns", [("BF16", 8), ("IQ2_XXS", 256), ("Q8_0", 32)])
def test_many_rows(rng, qtype, columns):
    """More rows than a launch may have blocks along its second axis: a vocabulary's, or those of all experts."""
    weight = random_weight(rng, qtype, (65_540, columns))
    there, values = weight.to_device("gpu"), weight.dequantize()
    assert same(asnumpy(there), values)
    ids = rng.integers(0, len(values), 5).astype(np.int32)
    assert same(dequantize_device(there, "float16", ids=cp.asarray(ids)).get(), values[ids].astype(np.float16))


@pytest.mark.parametrize("qtype", ["Q4_K", "Q8_0", "Q6_K", "IQ3_S", "F16"])
def test_slices(rng, qtype):
    """Rows by slice, by list and by step, a transpose, and a stack of matrices are those of the CPU's array."""
    weight = random_weight(rng, qtype, (4, 6, 512))
    there = weight.to_device("gpu")
    for index in (2, slice(1, 3), (1, slice(None, None, 2)), ([2, 0],)):
        assert same(asnumpy(there[index]), weight[index].dequantize())
    assert same(asnumpy(there[1].T), weight[1].dequantize().T)
    assert there[1].T.T.shape == (6, 512)


@pytest.mark.parametrize("qtype", QTYPES)
def test_embedding(rng, qtype):
    """Rows by id, ids on the host or on the device, of packed and of float tables."""
    table = random_weight(rng, qtype, (40, 256))
    ids = rng.integers(0, 40, (3, 4))
    expected = table.dequantize()[ids]
    there = table.to_device("gpu")
    assert same(embedding(ids, there).get(), expected)
    assert same(embedding(cp.asarray(ids, np.int32), there).get(), expected)
    assert same(embedding(cp.asarray(ids), cp.asarray(table.dequantize())).get(), expected)
    with pytest.raises(IndexError, match="40"):
        embedding(np.array([40]), there)


def test_on_a_device_already(rng):
    """It is returned as it is there, with what it keeps; NumPy does not copy it unasked."""
    weight = random_weight(rng, "Q4_K", (4, 256)).to_device("gpu")
    assert weight.to_device("gpu") is weight and to_device(weight, "gpu:0") is weight
    assert all(same(asnumpy(row), values) for row, values in zip(weight, asnumpy(weight), strict=True))
    with pytest.raises(TypeError, match=r"rf\.asnumpy"):
        np.asarray(weight)


@pytest.mark.skipif(cp.cuda.runtime.getDeviceCount() < 2, reason="needs two devices")
def test_on_another_device_than_the_current_one(rng):
    """It is unpacked where it is."""
    weight = random_weight(rng, "Q4_K", (4, 256))
    assert same(asnumpy(weight.to_device("gpu:1")), weight.dequantize())
