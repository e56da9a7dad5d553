"""Products of 3 to 64 tokens with 16-bit floats on the matrix unit, against float64."""

import cupy as cp
import numpy as np
import pytest
from errors import far
from gates import GATED

from rocforge import quantize
from rocforge.device.geometry import FloatTile
from rocforge.ops.device import float_tiles
from rocforge.ops.device.float_tiles import float_tile_gated, float_tile_products
from rocforge.ops.device.matvec import GATES
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.linear import gated_linear, linears


def weights(rng, qtype, *shapes):
    """Weights of a format on the device, and their values as the kernel multiplies them, float64."""
    packed = [quantize(rng.standard_normal(shape).astype(np.float32), qtype) for shape in shapes]
    values = [w.dequantize().astype(np.float16).astype(np.float64) for w in packed]
    return [w.to_device("gpu") for w in packed], values


def floats(rng, *shape):
    """Numbers that float16 holds."""
    return rng.standard_normal(shape).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize(
    ("n", "qtype", "rows", "columns"),
    [(3, "F16", 50, 64), (8, "BF16", 17, 1096), (31, "F16", 5, 520), (64, "F16", 70, 640)],
)
def test_products(rng, n, qtype, rows, columns):
    """Sums are exact to 1e-5, of rows that end inside a stripe too; with a bias and a residual."""
    (weight, other), (w, v) = weights(rng, qtype, (rows, columns), (3, columns))
    x, bias, residual = floats(rng, n, columns), floats(rng, rows), floats(rng, n, rows)
    a, b = linears(cp.asarray(x), [weight, other], [cp.asarray(bias), None], cp.asarray(residual))
    assert a.dtype == np.float32 and a.shape == (n, rows) and b.shape == (n, 3)
    assert far(a - cp.asarray(bias + residual), x @ w.T, x, w) < 1e-5
    assert far(b, x @ v.T, x, v) < 1e-5


@pytest.mark.parametrize("activate", GATES)
@pytest.mark.parametrize(("n", "rows"), [(5, 33), (64, 70)])
def test_gated(rng, n, rows, activate):
    """In float32, and in float16 for a product that takes that: bit for bit the same, rounded."""
    (gate, up, down), (g, u, _) = weights(rng, "F16", (rows, 96), (rows, 96), (8, rows // 8 * 8))
    x, biases = floats(rng, n, 96) / 8, [floats(rng, rows) for _ in range(2)]
    there = [cp.asarray(bias) for bias in biases]
    y = gated_linear(cp.asarray(x), gate, up, *there, activate)
    expected = GATED[activate](x @ g.T + biases[0], x @ u.T + biases[1])
    assert np.abs(y.get() - expected).max() < 1e-4 * np.abs(expected).max()
    rounded = gated_linear(cp.asarray(x), gate, up, *there, activate, consumer=down)
    assert rounded.dtype == np.float16 and cp.array_equal(rounded, y.astype(np.float16))


def test_both_formats(rng):
    """The last of three matrices may be of the other format."""
    ((a, b), (v, w)), ((c,), (u,)) = weights(rng, "F16", (40, 128), (24, 128)), weights(rng, "BF16", (33, 128))
    x = floats(rng, 12, 128)
    ys = float_tile_products(cp.asarray(x.astype(np.float16)), [a, b, c])
    assert all(far(y, x @ z.T, x, z) < 1e-5 for y, z in zip(ys, (v, w, u), strict=True))


def test_runs_of_rows(rng, monkeypatch):
    """The waves of a block may share out its depth, its rows, or both, and a block take several: results agree to
    1e-5."""
    (a, b), _ = weights(rng, "F16", (150, 768), (150, 768))
    x = cp.asarray(rng.standard_normal((12, 768)).astype(np.float16))
    seen = []
    for waves, resident in ((1, 1000), (1, 3), (4, 2)):
        cut = FloatTile(16, waves, 16 * waves, resident)
        monkeypatch.setattr(float_tiles, "float_tile", lambda *sizes, cut=cut: cut)
        gated = float_tile_gated(x, a, b, (None, None), "swiglu", OperandForm.FLOAT32)
        seen.append((*float_tile_products(x, [a]), gated))
    for y, z in zip(seen[1], seen[0], strict=True):
        assert cp.array_equal(y, z)
    for y, z in zip(seen[2], seen[0], strict=True):
        assert cp.abs(y - z).max() < 1e-5 * cp.abs(z).max()
