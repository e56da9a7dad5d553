"""Products with weights on a device, against float64."""

import itertools

import cupy as cp
import numpy as np
import pytest
from weights import WITHOUT_MATRIX_UNIT, sizes

from rocforge.device import tuning
from rocforge.device.cards import card_of
from rocforge.formats.planar import KINDS, PLANAR
from rocforge.ops.activation import geglu, swiglu, swiglu_oai
from rocforge.ops.device import plan
from rocforge.ops.device.dequantize import dequantize_device
from rocforge.ops.device.matvec import product_then_norm
from rocforge.ops.device.operands import quantized
from rocforge.ops.device.weights import format_of
from rocforge.ops.linear import gated_linear, linear, linear_then_norm, linears
from rocforge.ops.norm import rms_norm
from rocforge.quant import QuantizedArray
from rocforge.selftest.weights import half_steps, product_error, random_weight, relative_error, values_of

pytestmark = pytest.mark.slow

FLOATS = ["F32", "F16", "BF16"]


@pytest.fixture(autouse=True)
def no_matrix_unit():
    """test_tiles.py has what a card with a matrix unit does with three to 64 tokens."""
    with tuning.trying(**WITHOUT_MATRIX_UNIT):
        yield


def rounded(x):
    """What the device's int8 values of x stand for, float64; test_quantized says how near they are."""
    return values_of(quantized(cp.asarray(x)))[:, : x.shape[1]]


@pytest.mark.parametrize("size", [32, 128, 300, 2049])
def test_quantized(rng, size):
    """Values are x to 1/127 of the largest of their 32; a last cell is filled up with zeros; zeros stay zero."""
    x = rng.standard_normal((3, size)).astype(np.float32) * rng.uniform(0.01, 100, (3, 1)).astype(np.float32)
    x[1, :32] = 0
    values = values_of(quantized(cp.asarray(x)))
    assert not values[:, size:].any() and not values[1, :32].any()
    assert (np.abs(values[:, :size] - x) <= half_steps(x)).all()


@pytest.mark.parametrize("qtype", [q if q in KINDS else pytest.param(q, marks=pytest.mark.any_wave) for q in PLANAR])
def test_one_token(rng, qtype):
    """Exact (1e-5) for x as rounded; from x itself as far as their half steps can add up to."""
    for columns in (*sizes(qtype), 2816):
        x, weight = rng.standard_normal((1, columns)).astype(np.float32), random_weight(rng, qtype, (37, columns))
        y, w = linear(cp.asarray(x), weight.to_device("gpu")), weight.dequantize().astype(np.float64)
        assert y.dtype == np.float32 and y.shape == (1, 37)
        assert product_error(y, rounded(x), w) < 1e-5
        bound = (half_steps(x) + 1e-5 * np.abs(x)) @ np.abs(w).T
        assert (np.abs(y.get() - x.astype(np.float64) @ w.T) <= bound).all()


@pytest.mark.parametrize(("rows", "columns"), [(32, 768), (96, 2816), (2080, 1024), (9024, 256)])
@pytest.mark.parametrize("qtype", ["Q8_0", "Q5_K", "NVFP4", "TQ1_0", "IQ3_S"])
def test_product_then_norm(rng, qtype, rows, columns):
    """A product and, for the products after it, its norm, to 1e-5 of what these values are once they are rounded."""
    x, residual = (rng.standard_normal((1, n)).astype(np.float32) for n in (columns, rows))
    w, after = random_weight(rng, qtype, (rows, columns)), [random_weight(rng, "Q8_0", (n, rows)) for n in (40, 5)]
    bias, norm = rng.standard_normal(rows).astype(np.float32), rng.uniform(0.5, 2, rows).astype(np.float32)
    on_device = w.to_device("gpu"), *map(cp.asarray, (bias, residual, norm))
    matrices = [a.to_device("gpu") for a in after]
    y, normed = product_then_norm(quantized(cp.asarray(x)), *on_device, 1e-3)
    assert product_error(y, rounded(x), w.dequantize(), bias, residual) < 1e-5
    y = y.get().astype(np.float64)
    scaled, factor = y * norm, 1 / np.sqrt(np.mean(y * y) + 1e-3)
    values = values_of(normed)
    assert not values[:, rows:].any()
    assert (np.abs(values[:, :rows] - scaled) <= half_steps(scaled)).all()
    expected = [values[:, :rows] * factor @ a.dequantize().astype(np.float64).T for a in after]
    for result, e in zip(linears(normed, matrices), expected, strict=True):
        assert np.abs(result.get() - e).max() < 1e-5 * np.abs(values * factor).sum() * 4
    gated = gated_linear(normed, matrices[0], matrices[0]).get()
    assert relative_error(gated, swiglu(expected[0], expected[0])) < 1e-5


@pytest.mark.parametrize("biased", [False, True])
def test_product_then_norm_of_many_rows(rng, biased):
    """What the BLAS library multiplies is added to the residual where it is normalized, in float16 for the next."""
    x, residual = (cp.asarray(rng.standard_normal((70, n)).astype(np.float32)) for n in (96, 64))
    weight, after = (random_weight(rng, "Q8_0", shape).to_device("gpu") for shape in ((64, 96), (40, 64)))
    bias, norm = (cp.asarray(rng.standard_normal(64).astype(np.float32)) for _ in range(2))
    bias = bias if biased else None
    expected = linear(x, weight, bias, residual).get()
    y, normed = linear_then_norm(x, weight, bias, residual, norm, 1e-5, [after])
    assert relative_error(y.get(), expected) < 1e-6
    assert normed.dtype == np.float16 and relative_error(normed.get(), rms_norm(y, norm, 1e-5).get()) < 1e-3
    before = residual.copy()
    for kept in (False, True):
        if kept:
            weight.fp16 = dequantize_device(weight, "float16")
        to = before.copy()
        y, normed = linear_then_norm(x, weight, bias, to, norm, 1e-5, [after], overwrite_residual=True)
        assert relative_error(y.get(), expected) < 1e-6 and (y is to) is not biased
        assert normed.dtype == np.float16 and relative_error(normed.get(), rms_norm(y, norm, 1e-5).get()) < 1e-3
    assert cp.array_equal(residual, before)
    for given, then in ((None, after), (residual, norm[None])):  # nothing to add to; a next weight in float32
        assert linear_then_norm(x, weight, bias, given, norm, 1e-5, [then])[1] is None


def test_product_then_norm_of_few_rows_is_for_one_of_packed_weights(rng):
    """Anything else is the product alone, and so is what would leave most of the card idle for half of the time."""
    packed, floats = (random_weight(rng, name, (64, 64)).to_device("gpu") for name in ("Q8_0", "F16"))
    norm, x = cp.ones(64, np.float32), cp.asarray(rng.standard_normal((2, 64)).astype(np.float32))
    for rows, weight, after in ((2, packed, packed), (1, floats, packed), (1, packed, floats)):
        y, normed = linear_then_norm(x[:rows], weight, None, None, norm, 1e-5, [after])
        assert normed is None and cp.array_equal(y, linear(x[:rows], weight))
    y, normed = linear_then_norm(x[:1], packed, None, None, norm, 1e-5, [packed])
    assert normed.norm.eps == 1e-5 and cp.array_equal(y, linear(x[:1], packed))
    units, tuned = card_of(0).compute_units, tuning.current()
    assert plan.fills_units(32 * units, units, tuned) and not plan.fills_units(32 * units + 1, units, tuned)


@pytest.mark.parametrize(("qtype", "n"), [*itertools.product(KINDS, (2, 8)), ("Q4_K", 3), ("Q8_0", 1)])
def test_few_tokens(rng, qtype, n):
    """One to eight tokens a launch: within 1e-5 for x as rounded, 1e-2 for x itself, of 32 tokens."""
    x, weight = rng.standard_normal((32, 256)).astype(np.float32), random_weight(rng, qtype, (21, 256))
    there, w = weight.to_device("gpu"), weight.dequantize()
    y = cp.concatenate([linear(cp.asarray(x[i : i + n]), there) for i in range(0, 32, n)])
    assert product_error(y, rounded(x), w) < 1e-5 and product_error(y, x, w) < 1e-2


def test_sizes_at_random(rng):
    """Rows, columns and numbers of tokens that nobody has thought of."""
    for n in (1, 1, 2, 3, 8, 9, 14):
        rows, columns = int(rng.integers(1, 400)), 32 * int(rng.integers(1, 60))
        x, weight = rng.standard_normal((n, columns)).astype(np.float32), random_weight(rng, "Q8_0", (rows, columns))
        y, few = linear(cp.asarray(x), weight.to_device("gpu")), n <= plan.MAX_GEMV_TOKENS
        assert product_error(y, rounded(x) if few else x, weight.dequantize()) < (1e-5 if few else 1e-3)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("qtype", FLOATS)
def test_float_weights(rng, qtype, n):
    """Weights of floats, packed as such or ordinary arrays, are multiplied in float32."""
    x, weight = rng.standard_normal((n, 520)).astype(np.float32), random_weight(rng, qtype, (19, 520))
    w = weight.dequantize()
    assert product_error(linear(cp.asarray(x), weight.to_device("gpu")), x, w) < 1e-5
    if qtype == "F16":
        assert product_error(linear(cp.asarray(x), cp.asarray(weight.dequantize(np.float16))), x, w) < 1e-5


def test_bias_and_residual(rng):
    """A bias for each matrix, a residual for the first; leading axes of x are kept."""
    x, residual = (
        rng.standard_normal((2, 1, 256)).astype(np.float32),
        rng.standard_normal((2, 1, 33)).astype(np.float32),
    )
    weights = [random_weight(rng, "Q5_K", (rows, 256)) for rows in (33, 8, 1)]
    biases = [rng.standard_normal(len(w)).astype(np.float32) for w in weights]
    there = [w.to_device("gpu") for w in weights]
    ys = linears(cp.asarray(x), there, [cp.asarray(b) for b in biases], cp.asarray(residual))
    exact = rounded(x[:, 0])[:, None]
    for y, w, b, *more in zip(ys, weights, biases, [residual, 0, 0], strict=True):
        assert y.shape == (2, 1, len(w)) and product_error(y, exact, w.dequantize(), b, *more) < 1e-5


def test_matrices_of_several_formats(rng):
    """q and k of one format and v of another are one launch; floats and more than four matrices are launches apart."""
    qtypes = ["Q4_K", "Q4_K", "Q6_K", "F16", *["Q4_K"] * 5]
    x = rng.standard_normal((1, 512)).astype(np.float32)
    weights = [random_weight(rng, qtype, (rows, 512)) for rows, qtype in enumerate(qtypes, 5)]
    there = [w.to_device("gpu") for w in weights]
    launches = plan.launches(tuple(map(format_of, there)), 1, tuning.current())
    assert [(launch.start, launch.stop) for launch in launches] == [(0, 3), (3, 4), (4, 8), (8, 9)]
    for y, weight in zip(linears(cp.asarray(x), there), weights, strict=True):
        exact = x if weight.qtype.name == "F16" else rounded(x)
        assert product_error(y, exact, weight.dequantize()) < 1e-5


@pytest.mark.parametrize("qtype", KINDS)
def test_gated(rng, qtype):
    """activation(gate, up) of both products with their biases, in one launch; gates of some units each way."""
    x = 0.01 * rng.standard_normal((1, 512)).astype(np.float32)
    weights = [random_weight(rng, qtype, (45, 512)) for _ in range(2)]
    biases = [rng.standard_normal(45).astype(np.float32) for _ in range(2)]
    there = cp.asarray(x), *[w.to_device("gpu") for w in weights], *map(cp.asarray, biases)
    products = [rounded(x) @ w.dequantize().astype(np.float64).T + b for w, b in zip(weights, biases, strict=True)]
    for activation, function in {"swiglu": swiglu, "geglu": geglu, "swiglu_oai": swiglu_oai}.items():
        assert relative_error(gated_linear(*there, activate=activation), function(*products)) < 1e-5


@pytest.mark.parametrize(("n", "rows"), [(1, 160), (3, 70), (8, 256)])
def test_gated_rounds_for_what_follows(rng, n, rows):
    """Given the weight that follows, gated_linear gives its float result as int8, filled up to whole cells."""
    x = rng.standard_normal((n, 256)).astype(np.float32)
    gate, up = (random_weight(rng, "Q4_0", (rows, 256)).to_device("gpu") for _ in range(2))
    down = random_weight(rng, "Q8_0", (5, -(-rows // 32) * 32)).to_device("gpu")
    plain = gated_linear(cp.asarray(x), gate, up)
    packed = gated_linear(cp.asarray(x), gate, up, consumer=down)
    assert np.array_equal(packed.data.get(), quantized(plain).data.get())


@pytest.mark.parametrize("n", [1, 8, 70])
@pytest.mark.parametrize("qtype", ["Q4_K", "F16"])
def test_gate_and_up_of_one_matrix(rng, qtype, n):
    """A gated product of a matrix with the rows of both is that of its halves, bit for bit."""
    x, weight = cp.asarray(rng.standard_normal((n, 256)).astype(np.float32)), random_weight(rng, qtype, (128, 256))
    bias, halves = cp.asarray(rng.standard_normal(128).astype(np.float32)), (weight[:64], weight[64:])
    both, gate, up = (w.to_device("gpu") for w in (weight, *halves))
    expected = gated_linear(x, gate, up, bias[:64], bias[64:], "geglu")
    assert cp.array_equal(gated_linear(x, both, None, bias, None, "geglu"), expected)


@pytest.mark.parametrize("qtype", ["Q4_K", "Q8_0", "F16", "F32", "BF16", "IQ2_XXS"])
def test_many_tokens(rng, qtype):
    """More than eight tokens go through float16 tiles and the BLAS library: within 1e-3."""
    x, weight = rng.standard_normal((11, 512)).astype(np.float32), random_weight(rng, qtype, (23, 512))
    bias, residual = rng.standard_normal(23).astype(np.float32), rng.standard_normal((11, 23)).astype(np.float32)
    y = linear(cp.asarray(x), weight.to_device("gpu"), cp.asarray(bias), cp.asarray(residual))
    assert product_error(y, x, weight.dequantize(), bias, residual) < 1e-3


@pytest.mark.parametrize("rows", [48, 51])
@pytest.mark.parametrize("biased", [False, True])
def test_gated_of_many_tokens(rng, rows, biased):
    """For a float16 product, the BLAS library's gate and up are float16 too; with biases they are not."""
    x = rng.standard_normal((70, 128)).astype(np.float16)
    gate, up, down = (rng.standard_normal(shape).astype(np.float16) / 8 for shape in ((rows, 128),) * 2 + ((5, rows),))
    biases = [rng.standard_normal(rows).astype(np.float32) if biased else None for _ in range(2)]
    there = [cp.asarray(a) for a in (x, gate, up)], [None if b is None else cp.asarray(b) for b in biases]
    y = gated_linear(*there[0], *there[1], consumer=cp.asarray(down))
    products = [x.astype(np.float64) @ w.astype(np.float64).T for w in (gate, up)]
    expected = swiglu(*[p if b is None else p + b for p, b in zip(products, biases, strict=True)])
    assert y.dtype == np.float16 and relative_error(y, expected) < 1e-3


def test_tiles(rng):
    """A weight of more than one tile is multiplied a tile at a time, the last one smaller."""
    x, weight = rng.standard_normal((9, 256)).astype(np.float32), random_weight(rng, "Q6_K", (37, 256))
    with tuning.trying(dequantize_rows=10):
        y = linear(cp.asarray(x), weight.to_device("gpu"))
    assert product_error(y, x, weight.dequantize()) < 1e-3


def test_tiles_keep_to_their_bound(rng):
    """However many rows a weight has, what it takes to multiply it is one tile."""
    weight, pool = random_weight(rng, "Q6_K", (1000, 1024)).to_device("gpu"), cp.cuda.MemoryPool()
    x = cp.asarray(rng.standard_normal((9, 1024)).astype(np.float16))
    with cp.cuda.using_allocator(pool.malloc), tuning.trying(dequantize_rows=128):
        y = linear(x, weight)
    assert 2 * 128 * 1024 <= pool.total_bytes() - y.nbytes < 2 * 128 * 1024 + 2**16


def test_kept_fp16_weights(rng, monkeypatch):
    """A weight whose float16 values are kept is not unpacked for many tokens; for few the blocks are used."""
    x, weight = rng.standard_normal((9, 256)).astype(np.float32), random_weight(rng, "Q6_K", (37, 256)).to_device("gpu")
    y, few = linear(cp.asarray(x), weight), linear(cp.asarray(x[:3]), weight)
    weight.fp16 = dequantize_device(weight, "float16")
    monkeypatch.setattr("rocforge.ops.device.gemm.dequantize_device", None)
    assert relative_error(linear(cp.asarray(x), weight), y.get()) < 1e-6
    assert np.array_equal(linear(cp.asarray(x[:3]), weight).get(), few.get())


def test_operators(rng):
    """x @ w.T and w @ x on the device, by slices of rows too; a large x does not overflow float16."""
    weight = random_weight(rng, "Q8_0", (24, 256))
    there, x = weight.to_device("gpu"), rng.standard_normal((256,)).astype(np.float32)
    w, exact = weight.dequantize(), rounded(x[None])[0]
    assert product_error(cp.asarray(x) @ there.T, exact, w) < 1e-5
    assert product_error(there @ cp.asarray(x), exact, w) < 1e-5
    assert product_error(cp.asarray(x) @ there[3:9].T, exact, w[3:9]) < 1e-5
    many = np.full((9, 256), 1e6, np.float32)
    assert np.isfinite((cp.asarray(many) @ there.T).get()).all()


def test_no_rows(rng):
    """An x of no rows gives no rows."""
    there = random_weight(rng, "Q4_0", (5, 64)).to_device("gpu")
    assert isinstance(there, QuantizedArray) and linear(cp.zeros((0, 64), np.float32), there).shape == (0, 5)
