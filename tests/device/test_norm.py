"""Normalizations on a device against float64 arithmetic: every width, with and without weights."""

from __future__ import annotations

import cupy as cp
import numpy as np
import pytest

from rocforge.device.kernels import launches_recorded
from rocforge.ops.device import norm as device_norm
from rocforge.ops.device.norm import rms_norm_of_sum
from rocforge.ops.device.operands import as_operand
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.norm import add_normed, layer_norm, rms_norm
from rocforge.ops.types import NextNorm
from rocforge.selftest.weights import half_steps, relative_error, values_of

WIDTHS = [1, 3, 31, 64, 100, 127, 128, 1000, 2048, 2050, 4099]


def rms_norm_64(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return y if weight is None else y * weight


@pytest.mark.parametrize("n", WIDTHS)
def test_rms_norm(n: int):
    rng = np.random.default_rng(n)
    x, residual = (rng.standard_normal((5, n), np.float32) for _ in range(2))
    weight = rng.standard_normal(n, np.float32)
    device = cp.asarray(x)
    assert relative_error(rms_norm(device, eps=1e-6), rms_norm_64(x, None, 1e-6)) < 1e-5
    plain = rms_norm(device, cp.asarray(weight), 1e-5)
    assert relative_error(plain, rms_norm_64(x, weight, 1e-5)) < 1e-5
    added = rms_norm(device, cp.asarray(weight), 1e-5, cp.asarray(residual))
    assert relative_error(added, rms_norm_64(x, weight, 1e-5) + residual) < 1e-5


def test_sizes_at_random(rng):
    """Rows and widths that nobody has thought of: plain, rounded to int8 and in float16."""
    for rows, n in zip(rng.integers(1, 9, 6), rng.integers(1, 6000, 6), strict=True):
        x, weight = rng.standard_normal((rows, n), np.float32), rng.standard_normal(n, np.float32)
        given, expected = (cp.asarray(x), cp.asarray(weight), 1e-5), rms_norm_64(x, weight, 1e-5)
        assert relative_error(rms_norm(*given), expected) < 1e-5
        assert relative_error(device_norm.rms_norm(*given, form=OperandForm.FP16), expected) < 1e-3
        values = values_of(device_norm.rms_norm(*given, form=OperandForm.INT8))
        assert (np.abs(values[:, :n] - expected) <= half_steps(expected) + 1e-5 * np.abs(expected)).all()
        assert not values[:, n:].any()
        y = layer_norm(cp.asarray(x + 2), cp.asarray(weight), cp.asarray(x[0]))
        assert relative_error(y, layer_norm_64(x + 2, weight, x[0])) < 1e-5


def test_rms_norm_of_strided_and_shaped_arrays():
    """A view with gaps between its rows, more axes, and another float type give what their copies give."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 96), np.float32)
    weight = cp.asarray(rng.standard_normal(64, np.float32))
    view = cp.asarray(x)[:, 1:3, 16:80]
    assert relative_error(rms_norm(view, weight), rms_norm_64(x[:, 1:3, 16:80], weight.get(), 1e-5)) < 1e-5
    half = view.astype(np.float16)
    assert relative_error(rms_norm(half, weight), rms_norm_64(half.get(), weight.get(), 1e-5)) < 1e-5


def layer_norm_64(x: np.ndarray, weight: np.ndarray | float, bias: np.ndarray | float) -> np.ndarray:
    centred = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


@pytest.mark.parametrize("n", WIDTHS)
def test_layer_norm(n: int):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((3, n), np.float32) + np.float32(2)
    weight, bias = (rng.standard_normal(n, np.float32) for _ in range(2))
    if n > 1:
        assert relative_error(layer_norm(cp.asarray(x)), layer_norm_64(x, 1, 0)) < 1e-5
    y = layer_norm(cp.asarray(x), cp.asarray(weight), cp.asarray(bias))
    assert relative_error(y, layer_norm_64(x, weight, bias)) < 1e-5


@pytest.mark.parametrize("n", [32, 96, 128, 1000, 4096, 5000])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_quantized(n: int, norm: str):
    """The int8 values times their scales are within half a step of the normalized row, and the rest is zero."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((3, n), np.float32)
    weight, bias = (rng.standard_normal(n, np.float32) for _ in range(2))
    if norm == "rms":
        quantized = device_norm.rms_norm(cp.asarray(x), cp.asarray(weight), 1e-5, form=OperandForm.INT8)
        expected = rms_norm_64(x, weight, 1e-5)
    else:
        given = (cp.asarray(a) for a in (x, weight, bias))
        quantized = device_norm.layer_norm(*given, 1e-5, OperandForm.INT8)
        expected = layer_norm_64(x, weight, bias)
    assert quantized.shape == (3, n)
    values = values_of(quantized)
    assert (np.abs(values[:, :n] - expected) <= half_steps(expected) + 1e-5 * np.abs(expected)).all()
    assert not values[:, n:].any()


@pytest.mark.parametrize("form", [OperandForm.INT8, OperandForm.FRAGMENTS_8, OperandForm.FP16, OperandForm.FLOAT32])
def test_float32_and_another_form_of_one_launch(rng, form):
    """Each is what the norm of that form alone gives, bit for bit."""
    x, weight = (cp.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in ((8, 1000), 1000))
    y, operand = device_norm.rms_norm_both(x, weight, 1e-5, form)
    alone = device_norm.rms_norm(x, weight, 1e-5, form=form)
    assert cp.array_equal(y, rms_norm(x, weight, 1e-5))
    assert cp.array_equal(operand.data, alone.data) if form.packed else cp.array_equal(operand, alone)


def test_layer_norm_in_float16(rng):
    """Of two launches: the float32 norm, rounded."""
    x = cp.asarray(rng.standard_normal((3, 96)).astype(np.float32))
    y = device_norm.layer_norm(x, None, None, 1e-5, OperandForm.FP16)
    assert cp.array_equal(y, layer_norm(x).astype(np.float16))


@pytest.mark.parametrize("n", [64, 1000, 4099])
def test_fp16_weights(n: int):
    """In float16 for the product that follows: what is too large for that is cut, not infinite."""
    rng = np.random.default_rng(n)
    x, weight = rng.standard_normal((3, n), np.float32), rng.standard_normal(n, np.float32)
    weight[0] = 1e8
    y = device_norm.rms_norm(cp.asarray(x), cp.asarray(weight), 1e-5, form=OperandForm.FP16)
    expected = rms_norm_64(x, weight, 1e-5)
    assert y.dtype == np.float16 and (np.abs(y[:, 0].get()) == 65504).all()
    assert relative_error(y[:, 1:], expected[:, 1:]) < 1e-3


@pytest.mark.parametrize("n", WIDTHS)
def test_of_a_sum(n: int):
    """The sum, also of parts, is exact to a rounding or two; its norm is that of `rms_norm`, to a step of float16."""
    rng = np.random.default_rng(n)
    x, parts = rng.standard_normal((5, n), np.float32), rng.standard_normal((8, 5, n), np.float32)
    bias, weight = (rng.standard_normal(n, np.float32) for _ in range(2))
    for b, y in ((None, parts[0]), (bias, parts[:3]), (bias, parts)):
        on_device = (a if a is None else cp.asarray(a) for a in (x, y, b, weight))
        total, normed = rms_norm_of_sum(*on_device, 1e-5)
        summed = x.astype(np.float64) + y.reshape(-1, 5, n).sum(0, dtype=np.float64)
        assert relative_error(total, summed + (0 if b is None else b)) < 1e-6
        expected = device_norm.rms_norm(total, cp.asarray(weight), 1e-5, form=OperandForm.FP16).get().astype(np.float32)
        assert normed.dtype == np.float16
        np.testing.assert_allclose(normed.get().astype(np.float32), expected, rtol=2**-10, atol=2**-24)


@pytest.mark.parametrize("n", [1, 100, 128, 1000, 2816, 4099, 5376])
@pytest.mark.parametrize("count", [1, 2])
def test_add_normed(rng, n: int, count: int):
    """The stream past one result or two through their norms, times a factor, and each norm of it in a form of its own:
    all at once, one at a time, and none."""
    x, *ys = rng.standard_normal((1 + count, 5, n), np.float32)
    weights, factor = rng.standard_normal((6, n), np.float32), np.array([0.37], np.float32)
    behind = [NextNorm(cp.asarray(weights[i]), 10.0 ** -(4 + i), ()) for i in range(2 * count - 1)]
    added = [rms_norm_64(y, weights[i], norm.eps) for i, (y, norm) in enumerate(zip(ys, behind, strict=False))]
    added = added[0] if count == 1 else rms_norm_64(added[0] + added[1], weights[2], behind[2].eps)
    following = [
        (NextNorm(cp.asarray(weights[3]), 1e-5, ()), OperandForm.INT8),
        (NextNorm(cp.asarray(weights[4]), 1e-3, (), scale=0.25), OperandForm.FLOAT32),
        (NextNorm(None, 0.0, (), normalizes=False), OperandForm.FP16),
    ]
    on_device = cp.asarray(x), [cp.asarray(y) for y in ys], behind
    for some, by in ((following, factor), *(([each], None) for each in following), ([], factor)):
        total, normed = device_norm.add_normed(*on_device, None if by is None else cp.asarray(by), some)
        expected = (x + added) * (1 if by is None else by)
        assert relative_error(total, expected) < 1e-5
        for (norm, form), out in zip(some, normed, strict=True):
            exact = expected
            if norm.normalizes:
                exact = norm.scale * rms_norm_64(expected, norm.weight.get(), norm.eps)
            if form is OperandForm.INT8:
                values = values_of(out)
                assert (np.abs(values[:, :n] - exact) <= half_steps(exact) + 1e-4 * np.abs(exact).max()).all()
                assert not values[:, n:].any()
            else:
                assert relative_error(out, exact) < (1e-3 if form is OperandForm.FP16 else 1e-5)


@pytest.mark.parametrize("form", [OperandForm.FRAGMENTS_8, OperandForm.SWIZZLED, OperandForm.FP16])
def test_several_norms_of_one_launch(rng, form):
    """Each is what `rms_norm` gives, to a step of float16; without a norm, what the stream is in that form."""
    tokens, n = 256 if form is OperandForm.SWIZZLED else 8, 512  # all of an operand is written
    x, *weights = (cp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((tokens, n), n, n))
    norms, names = [NextNorm(weight, 1e-5, ()) for weight in weights], []
    norms.append(NextNorm(None, 0.0, (), normalizes=False))
    args = x, [], [], None, [(norm, form) for norm in norms]
    same, found = device_norm.add_normed(*args)
    with launches_recorded(lambda kernel: names.append(kernel.name)):
        device_norm.add_normed(*args)
    assert same is x and names == ["add_normed_for_several"]
    expected = [*(device_norm.rms_norm(x, weight, 1e-5, form=form) for weight in weights), as_operand(x, form)]
    for pair in zip(found, expected, strict=True):
        ours, theirs = ((y.data.view(np.float16) if form.packed else y).get().astype(np.float32) for y in pair)
        np.testing.assert_allclose(ours, theirs, rtol=2**-10, atol=2**-24)


def test_stream_as_it_is(rng):
    """Products that take the stream in float32 get it without a launch."""
    x, norm = cp.asarray(rng.standard_normal((2, 64), np.float32)), NextNorm(None, 0.0, (), normalizes=False)
    with launches_recorded(lambda kernel: pytest.fail(kernel.name)):
        assert device_norm.add_normed(x, [], [], None, [(norm, OperandForm.FLOAT32)])[1][0] is x


def test_wrong_shapes():
    x = cp.ones((2, 8), np.float32)
    with pytest.raises(ValueError, match="shape"):
        rms_norm(x, cp.ones(7, np.float32))
    with pytest.raises(ValueError, match=r"\(2, 8\) and \(1, 8\)"):
        rms_norm_of_sum(x, x[:1], None, x[0], 1e-5)
    with pytest.raises(ValueError, match=r"\(7,\).*\(2, 8\)"):
        add_normed(x, [x], [NextNorm(cp.ones(7, np.float32), 1e-5, ())], None, ())
    with pytest.raises(ValueError, match=r"\(1, 8\).*\(2, 8\)"):
        add_normed(x, [x[:1]], [NextNorm(x[0], 1e-5, ())], None, ())
