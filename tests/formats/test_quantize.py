"""Quantizers: how far packed values lie from the floats, against ggml's own quantizers; importance; what is refused."""

import json
import re

import numpy as np
import pytest
from gguf import quants
from golden import quantizing

import rocforge as rf
from rocforge.formats.blocks import QTYPES, block_elements, block_nbytes
from rocforge.formats.quantize import NEED_IMPORTANCE, QUANTIZERS

GGML = json.loads(quantizing.STORED.read_text())
INPUTS, IMPORTANCE = quantizing.inputs(), quantizing.importance()
FLOATS = ("F32", "F16", "BF16")
SEARCHED = [name for name in GGML if name not in ("Q1_0", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", *NEED_IMPORTANCE)]


@pytest.mark.parametrize("name", GGML)
def test_error_is_within_ggmls(name):
    """At most 1.005 times the error that ggml makes on the same input, with importance weights and without."""
    for case, expected in GGML[name].items():
        kind, _, weighted = case.partition(", ")
        weight = IMPORTANCE if weighted else None
        packed = rf.quantize(INPUTS[kind], name, weight)
        got = quantizing.error(INPUTS[kind], packed.dequantize(), weight)
        assert got <= 1.005 * expected, f"{case}: {got} where ggml has {expected}"


def test_all_that_is_read_is_written():
    """Every format of blocks that rocforge reads, all of which ggml's quantizer writes."""
    assert set(GGML) == set(QUANTIZERS) == set(QTYPES) - set(FLOATS)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", *FLOATS])
def test_same_bits_as_gguf(name):
    """Without importance weights, formats that gguf quantizes come out with its bits."""
    x = INPUTS["heavy"]
    expected = quants.quantize(x, QTYPES[name]).view(np.uint8)
    assert (rf.quantize(x, name).data == expected).all()


@pytest.mark.parametrize("name", SEARCHED)
def test_importance_lowers_the_weighted_error(name):
    """By more than a hundredth, and no expert takes another's weights."""
    x = np.stack([INPUTS["heavy"][:3]] * 2)
    weights = np.stack([IMPORTANCE, IMPORTANCE[::-1]])
    plain, aware = rf.quantize(x, name).dequantize(), rf.quantize(x, name, importance=weights).dequantize()
    for i, weight in enumerate(weights):
        assert quantizing.error(x[i], aware[i], weight) < 0.99 * quantizing.error(x[i], plain[i], weight)
        alone = rf.quantize(x[i], name, importance=weight)
        assert (alone.dequantize() == aware[i]).all()


@pytest.mark.parametrize("name", GGML)
def test_shapes_and_special_values(rng, name):
    """float16 is taken; zeros stay near zero, equal values near each other, tiny ones finite; no rows are no rows."""
    columns = 2 * block_elements(QTYPES[name])
    x = rng.standard_normal((2, 3, columns)).astype(np.float16)
    packed = rf.quantize(x, name, importance=np.ones(columns))
    assert packed.shape == x.shape and packed.qtype is QTYPES[name]
    assert packed.nbytes == 12 * block_nbytes(QTYPES[name])
    flat = np.zeros((4, columns), np.float32)
    flat[1], flat[2], flat[3, 5] = 0.75, -0.75, 1e-30
    values = rf.quantize(flat, name, importance=1 + np.arange(columns) % 3).dequantize()
    assert np.isfinite(values).all() and (values[0] == 0).all() and np.abs(values[3]).max() <= 1e-4
    assert np.abs(values[1:3] - flat[1:3]).mean() <= 0.25
    assert rf.quantize(x[:0], name, importance=np.ones(columns)).shape == (0, 3, columns)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad):
    """The value and its place are told; formats of plain floats keep it."""
    x = np.zeros((2, 3, 256), np.float32)
    x[1, 2, 7] = bad
    with pytest.raises(ValueError, match=rf"Q4_K blocks cannot hold {bad}, the value at \(1, 2, 7\)"):
        rf.quantize(x, "Q4_K")
    np.testing.assert_array_equal(rf.quantize(x, "BF16").dequantize(), x)


@pytest.mark.parametrize("name", GGML)
def test_largest(name):
    """Scales of the largest magnitudes that are taken fit their format; larger ones are told, not made infinite."""
    largest = {"MXFP4": 3e38, "NVFP4": 2688}.get(name, 65504)
    x = np.full(block_elements(QTYPES[name]), largest, np.float32)
    values = rf.quantize(x, name, importance=np.ones(len(x))).dequantize()
    assert np.isfinite(values).all() and np.abs(values / x - 1).mean() < 0.3
    x[5] *= -1.1
    told = rf"{name} blocks cannot hold -\S+, the value at \(5,\); magnitudes up to {re.escape(f'{largest:g}')} can"
    with pytest.raises(ValueError, match=told):
        rf.quantize(x, name, importance=np.ones(len(x)))


@pytest.mark.parametrize("name", NEED_IMPORTANCE)
def test_importance_that_is_needed(name):
    """As in llama.cpp, those formats are not written without."""
    with pytest.raises(ValueError, match=f"{name} needs importance weights: importance="):
        rf.quantize(np.zeros((1, 256)), name)


def test_arguments():
    """Errors name the argument, what it was and what is allowed."""
    x = np.zeros((4, 2, 256), np.float32)
    with pytest.raises(ValueError, match=r"importance of shape \(2, 256\) is not \(256,\) or \(4, 256\)"):
        rf.quantize(x, "Q4_K", importance=np.ones((2, 256)))
    with pytest.raises(ValueError, match=r"importance must be finite and at least 0"):
        rf.quantize(x, "Q4_K", importance=-np.ones(256))
    with pytest.raises(ValueError, match=r"100 elements is not a whole number of Q4_K blocks of 256"):
        rf.quantize(x[..., :100], "Q4_K")
    with pytest.raises(ValueError, match="packs the last axis"):
        rf.quantize(np.float32(1), "F32")
    with pytest.raises(TypeError, match="real numbers, and the array is of complex128"):
        rf.quantize(np.zeros(32, complex), "Q8_0")
    with pytest.raises(rf.UnsupportedModelError, match="Q4_K_M is a mix of types for a whole model; supported are"):
        rf.quantize(x, "q4_k_m")
    packed = rf.quantize([[1.0] * 32, [2.0] * 32], "q8_0")
    assert packed.shape == (2, 32) and (rf.quantize(packed, "F32").dequantize() == packed.dequantize()).all()


def test_importance_of_what_was_never_used():
    """An expert without a token, whose weights are all 0, is quantized as if all columns counted alike."""
    x = np.stack([INPUTS["normal"], INPUTS["normal"]])
    packed = rf.quantize(x, "Q4_K", importance=np.stack([np.zeros(quantizing.COLUMNS), np.ones(quantizing.COLUMNS)]))
    assert (packed.data[0] == packed.data[1]).all()
