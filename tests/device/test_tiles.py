"""Products of up to 64 tokens on the matrix unit, against float64."""

import cupy as cp
import numpy as np
import pytest
from errors import far
from gates import GATED
from weights import sizes

from rocforge.formats.planar import KINDS
from rocforge.ops.device.matvec import GATES
from rocforge.ops.device.operands import quantized
from rocforge.ops.device.plan import MAX_TILE_TOKENS, OperandForm, fragments_for
from rocforge.ops.device.tiles import tile_gated, tile_products
from rocforge.ops.linear import gated_linear, linear, linears
from rocforge.selftest.weights import product_error, random_weight

pytestmark = pytest.mark.slow

ROWS = 37


def unpacked(weight):
    """The float16 values that the kernel multiplies with, float64 (rows, columns): its products with unit vectors."""
    on_device, columns = weight.to_device("gpu"), weight.shape[1]
    parts = []
    for start in range(0, columns, MAX_TILE_TOKENS):
        x = cp.eye(min(MAX_TILE_TOKENS, columns - start), columns, start, dtype=np.float32)
        parts.append(tile_products(quantized(x, OperandForm.FRAGMENTS_64), [on_device])[0].get())
    return np.concatenate(parts).T.astype(np.float64)


def fp16(x):
    return x.astype(np.float16).astype(np.float64)


@pytest.mark.parametrize("qtype", KINDS)
def test_products(rng, qtype):
    """Weights are those of the blocks to a few 2^-11 of the row's largest; the sums of products are exact (1e-5).

    Of 20 tokens products are within 1e-3 of those of the unrounded x and weights.
    """
    for columns in sizes(qtype):
        weight = random_weight(rng, qtype, (ROWS, columns))
        w, exact = unpacked(weight), weight.dequantize().astype(np.float64)
        assert (np.abs(w - exact) <= 3e-3 * np.abs(exact).max(axis=1, keepdims=True)).all()
        x = rng.standard_normal((5, columns)).astype(np.float32)
        (y,) = tile_products(quantized(cp.asarray(x), OperandForm.FRAGMENTS_8), [weight.to_device("gpu")])
        assert y.dtype == np.float32 and y.shape == (5, ROWS)
        assert far(y, fp16(x) @ w.T, x, w) < 1e-5
        x = rng.standard_normal((20, columns)).astype(np.float32)
        assert product_error(linear(cp.asarray(x), weight.to_device("gpu")), x, exact) < 1e-3


@pytest.mark.parametrize(("n", "rows"), [(3, 50), (9, 37), (17, 5), (33, 70), (64, 300)])
def test_numbers_of_tokens(rng, n, rows):
    """From 3 to 64 rows of x, filled up to 8, 16, 32 or 64; with a bias and a residual."""
    weight = random_weight(rng, "Q4_K", (rows, 768))
    x, bias, residual = (rng.standard_normal(shape).astype(np.float32) for shape in ((n, 768), rows, (n, rows)))
    y = linear(cp.asarray(x), weight.to_device("gpu"), cp.asarray(bias), cp.asarray(residual))
    w = unpacked(weight)
    assert far(y - cp.asarray(residual + bias), fp16(x) @ w.T, x, w) < 1e-5


@pytest.mark.parametrize(("n", "qtype", "rows", "columns"), [(65, "Q4_K", 50, 1024), (128, "Q8_0", 37, 64)])
def test_more_tokens_than_a_wave_has(rng, n, qtype, rows, columns):
    """x comes through LDS, 128 tokens a block: products, with bias and residual, and gated ones."""
    weight = random_weight(rng, qtype, (rows, columns))
    x, bias, residual = (rng.standard_normal(shape).astype(np.float32) for shape in ((n, columns), rows, (n, rows)))
    fragments, on_device = quantized(cp.asarray(x), OperandForm.FRAGMENTS_128), weight.to_device("gpu")
    (y,) = tile_products(fragments, [on_device], [cp.asarray(bias)], cp.asarray(residual))
    w = unpacked(weight)
    assert far(y - cp.asarray(residual + bias), fp16(x) @ w.T, x, w) < 1e-5


def test_three_matrices(rng):
    """A launch takes up to three, of which the last may be of another format; each has its bias."""
    weights = [random_weight(rng, qtype, (rows, 512)) for qtype, rows in (("Q4_K", 70), ("Q4_K", 33), ("Q6_K", 5))]
    x, biases = rng.standard_normal((12, 512)).astype(np.float32), [None, cp.ones(33, np.float32), None]
    ys = linears(cp.asarray(x), [weight.to_device("gpu") for weight in weights], biases)
    for y, weight, bias in zip(ys, weights, biases, strict=True):
        w = unpacked(weight)
        assert far(y if bias is None else y - bias, fp16(x) @ w.T, x, w) < 1e-5


@pytest.mark.parametrize("waves", [1, 2, 4])
def test_runs_of_rows(rng, monkeypatch, waves):
    """The waves of a block may share out its depth, its rows, or both: results agree to 1e-5."""
    import rocforge.ops.device.tiles as tiles

    weight, other = (random_weight(rng, "Q5_K", (150, 2048)) for _ in range(2))
    x = cp.asarray(rng.standard_normal((16, 2048)).astype(np.float32))
    fragments, (a, b) = quantized(x, OperandForm.FRAGMENTS_16), (w.to_device("gpu") for w in (weight, other))
    gated = fragments, a, b, (None, None), "swiglu", OperandForm.FLOAT32
    wanted = tile_products(fragments, [a])[0], tile_gated(*gated)
    monkeypatch.setattr(tiles, "tile_row_waves", lambda *sizes: waves)
    seen = tile_products(fragments, [a])[0], tile_gated(*gated)
    for y, z in zip(seen, wanted, strict=True):
        assert cp.abs(y - z).max() < 1e-5 * cp.abs(z).max()


@pytest.mark.parametrize(
    ("qtype", "n"), [*((qtype, 8) for qtype in KINDS), ("Q4_K", 16), *((q, 64) for q in ("Q4_K", "Q6_K", "Q8_0"))]
)
def test_blocks_of_several_tiles(rng, monkeypatch, qtype, n):
    """However many blocks share the tiles of a gated product, the result is the same, bit for bit."""
    import rocforge.ops.device.tiles as tiles

    for columns in (256, 4864):
        gate, up = (random_weight(rng, qtype, (230, columns)).to_device("gpu") for _ in range(2))
        fragments = quantized(cp.asarray(rng.standard_normal((n, columns)).astype(np.float32)), fragments_for(n))
        seen = []
        for resident in (100, 3, 1):
            monkeypatch.setattr(tiles, "tile_blocks", lambda *sizes, count=resident: count)
            seen.append(tile_gated(fragments, gate, up, (None, None), "swiglu", OperandForm.FLOAT32))
        assert cp.array_equal(seen[0], seen[1]) and cp.array_equal(seen[0], seen[2])


@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize("n", [6, 20])
def test_gated(rng, activation, n):
    """The gated product is that of the two products; its fragments are what rounding its floats gives, bit for bit."""
    gate, up = (random_weight(rng, "Q4_0", (160, 256)).to_device("gpu") for _ in range(2))
    biases = [cp.asarray(rng.standard_normal(160).astype(np.float32)) for _ in range(2)]
    x = cp.asarray(rng.standard_normal((n, 256)).astype(np.float32))
    y = gated_linear(x, gate, up, *biases, activation)
    g, u = (z.get().astype(np.float64) for z in linears(x, [gate, up], biases))
    reference = GATED[activation](g, u)
    assert np.linalg.norm(y.get() - reference) < 1e-5 * np.linalg.norm(reference)
    form = fragments_for(n)
    fragments = tile_gated(quantized(x, form), gate, up, biases, activation, form)
    then = random_weight(rng, "Q8_0", (64, 160)).to_device("gpu")
    (z,), (wanted,) = (tile_products(a, [then]) for a in (fragments, quantized(y, form)))
    assert cp.array_equal(z, wanted)
