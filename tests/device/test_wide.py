"""Products of wide.hip on Hopper's matrix unit, against float64; and the form of x that they take, on any device."""

import cupy as cp
import numpy as np
import pytest
from errors import far
from gates import GATED

from rocforge.device import geometry
from rocforge.device.tuning import ANY, current
from rocforge.formats.planar import CELL, PLANAR, cells_of
from rocforge.ops.device.matvec import GATES
from rocforge.ops.device.operands import quantized
from rocforge.ops.device.plan import OperandForm
from rocforge.selftest.weights import random_weight

pytestmark = pytest.mark.slow


def unswizzled(operand):
    """What a swizzled operand holds, float16 (tokens, whole cells), as the descriptor of hopper.h and a lane's pairs of
    weights have it: in the 16-byte chunk c ^ k % 8 of token k the even or the odd elements of 16."""
    (tokens, size), width = operand.shape, operand.width
    tiles = operand.data.get()[: cells_of(size) * 256 * width].view(np.float16).reshape(-1, width, 8, 8)
    out = np.empty((tokens, len(tiles) * 64), np.float16)
    for k in range(tokens):
        for chunk in range(8):
            row = tiles[:, k, chunk ^ k % 8]
            for i in range(8):
                element = chunk // 2 * 16 + i // 2 * 4 + i % 2 * 2 + chunk % 2
                out[k, element::64] = row[:, i]
    return out


@pytest.mark.parametrize(("n", "columns"), [(1, 128), (70, 300), (257, 256)])
def test_swizzled(rng, n, columns):
    """Every element is where it belongs, rounded; a row is filled up to whole cells with zeros."""
    x = rng.standard_normal((n, columns)).astype(np.float32)
    values = unswizzled(quantized(cp.asarray(x), OperandForm.SWIZZLED))
    assert np.array_equal(values[:, :columns], x.astype(np.float16)) and not values[:, columns:].any()
    assert values.shape == (n, cells_of(columns) * CELL)


def hopper():
    return current().wide_from < ANY


@pytest.fixture
def wide():
    if not hopper():
        pytest.skip("wide.hip is for Hopper")
    import rocforge.ops.device.wide as module

    return module


@pytest.mark.parametrize("qtype", [name for name, planes in PLANAR.items() if planes.wide])
def test_products(rng, wide, qtype):
    """Each format, with rows that fill no block and a depth of one cell and of several."""
    for rows, cells in ((37, 2), (150, 18)):
        weight = random_weight(rng, qtype, (rows, cells * CELL))
        x = rng.standard_normal((100, cells * CELL)).astype(np.float32)
        (y,) = wide.wide_products(quantized(cp.asarray(x), OperandForm.SWIZZLED), [weight.to_device("gpu")])
        w = weight.dequantize().astype(np.float64)
        assert far(y, x.astype(np.float64) @ w.T, x, w) < 1e-3


@pytest.mark.parametrize("n", [1, 64, 65, 100, 128, 200, 256, 300, 512])
@pytest.mark.parametrize(("depth", "units"), [(1, 132), (2, 132), (4, 132), (1, 1), (1, 3)])
def test_numbers_of_tokens(rng, wide, monkeypatch, n, depth, units):
    """Blocks of 64, 128 and 256 tokens, of the whole depth or a part; one block after another; three matrices, the last
    of another format."""
    rows_of = (200, 70, 33)
    weights = [random_weight(rng, q, (r, 1024)) for q, r in zip(("Q4_K", "Q4_K", "Q6_K"), rows_of, strict=True)]
    x, bias = rng.standard_normal((n, 1024)).astype(np.float32), rng.standard_normal(70).astype(np.float32)
    residual = rng.standard_normal((n, 200)).astype(np.float32)
    cut, launch = geometry.wide, wide._launch
    monkeypatch.setattr(geometry, "wide", lambda *sizes: cut(*sizes)._replace(depth=depth))
    monkeypatch.setattr(wide, "_launch", lambda *args: launch(*args[:-1], units))
    operand, on_device = quantized(cp.asarray(x), OperandForm.SWIZZLED), [w.to_device("gpu") for w in weights]
    ys = wide.wide_products(operand, on_device, [None, cp.asarray(bias), None], cp.asarray(residual))
    for y, weight, added in zip(ys, weights, (residual, bias, 0), strict=True):
        w = weight.dequantize().astype(np.float64)
        assert far(y - cp.asarray(added), x.astype(np.float64) @ w.T, x, w) < 1e-3
    (plain,) = wide.wide_products(operand, on_device[:1])
    parts = wide.wide_parts(operand, on_device[0])
    assert parts.shape == (depth, n, 200) and np.allclose(parts.get().sum(0), plain.get(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize("n", [64, 150])
def test_gated(rng, wide, activation, n):
    """The gated product is that of the two products; swizzled it is what rounding its floats gives, bit for bit."""
    gate, up = (random_weight(rng, "Q4_K", (320, 512)).to_device("gpu") for _ in range(2))
    biases = [cp.asarray(rng.standard_normal(320).astype(np.float32)) for _ in range(2)]
    operand = quantized(cp.asarray(rng.standard_normal((n, 512)).astype(np.float32)), OperandForm.SWIZZLED)
    y = wide.wide_gated(operand, gate, up, biases, activation, OperandForm.FLOAT32)
    g, u = (z.get().astype(np.float64) for z in wide.wide_products(operand, [gate, up], biases))
    reference = GATED[activation](g, u)
    assert np.linalg.norm(y.get() - reference) < 1e-5 * np.linalg.norm(reference)
    out = wide.wide_gated(operand, gate, up, biases, activation, OperandForm.SWIZZLED)
    assert np.array_equal(unswizzled(out), unswizzled(quantized(y, OperandForm.SWIZZLED)))
