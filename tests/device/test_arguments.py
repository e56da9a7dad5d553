"""What ops say of arguments that do not fit: the same on the host and on a device, before anything is launched."""

import cupy as cp
import numpy as np
import pytest
from weights import WITHOUT_MATRIX_UNIT

import rocforge as rf
from rocforge.device import tuning
from rocforge.nn.state import PagedKV
from rocforge.ops.device.strided import ALIGNMENT, float32, rows_of
from rocforge.selftest.weights import random_weight

pytestmark = pytest.mark.any_wave

SIDES = {"cpu": np.asarray, "gpu": cp.asarray}


@pytest.fixture(params=SIDES)
def side(request):
    return request.param


@pytest.fixture(autouse=True)
def exact_allocations():
    """What is read past an array's end is then past its allocation's."""
    cp.cuda.set_allocator(None)
    yield
    cp.cuda.set_allocator(cp.get_default_memory_pool().malloc)


def operands(side):
    """x (4, 64); ones (64,); a packed weight (32, 64); queries (6, 4, 32), keys (6, 2, 32)."""
    rng = np.random.default_rng(0)
    shapes = ((4, 64), (6, 4, 32), (6, 2, 32))
    x, q, k = (SIDES[side](rng.standard_normal(shape).astype(np.float32)) for shape in shapes)
    weight = rf.to_device(rf.quantize(rng.standard_normal((32, 64)), "Q8_0"), side)
    return x, SIDES[side](np.ones(64, np.float32)), weight, q, k


MISFITS = {
    "rms_norm: residual": lambda x, one, w, q, k: rf.rms_norm(x, one, residual=one),
    r"rms_norm: a weight of shape \(1,\) does not fit x of shape \(4, 64\); allowed is \(64,\)": (
        lambda x, one, w, q, k: rf.rms_norm(x, one[:1])
    ),
    "attention: v is None": lambda x, one, w, q, k: rf.attention(q, k, None),
    "linear: weight is None": lambda x, one, w, q, k: rf.linear(x, None),
    "rms_norm: x is a number": lambda x, one, w, q, k: rf.rms_norm(2.0),
    "softmax: axis is 2": lambda x, one, w, q, k: rf.softmax(x, axis=2),
    "rms_norm: weight is no array of numbers": lambda x, one, w, q, k: rf.rms_norm(x, [[1], [1, 2]]),
    "layer_norm: a bias": lambda x, one, w, q, k: rf.layer_norm(x, one, one[:1]),
    "linear: a bias": lambda x, one, w, q, k: rf.linear(x, w, one[:3]),
    "linear: residual": lambda x, one, w, q, k: rf.linear(x, w, None, x[:, :3]),
    "linear: x of shape": lambda x, one, w, q, k: rf.linear(x[:, :32], w),
    "linear: weight is the transpose": lambda x, one, w, q, k: rf.linear(x, w.T),
    "linear: weight is of shape": lambda x, one, w, q, k: rf.linear(x, w[0]),
    "embedding: table is the transpose": lambda x, one, w, q, k: rf.embedding(np.array([40]), w.T),
    "swiglu: gate and up": lambda x, one, w, q, k: rf.swiglu(x, one),
    "attention: sinks": lambda x, one, w, q, k: rf.attention(q, k, k, sinks=one[:2]),
    "attention: window is 0": lambda x, one, w, q, k: rf.attention(q, k, k, window=0),
    "attention: window is -1": lambda x, one, w, q, k: rf.attention(q, k, k, window=-1),
    r"attention: q is of shape \(4, 32\); allowed is an array \(queries, heads, head_dim\)": (
        lambda x, one, w, q, k: rf.attention(q[0], k, k)
    ),
    r"attention: k is of shape \(2, 32\)": lambda x, one, w, q, k: rf.attention(q, k[0], k),
    r"attention: v has the shape \(5, 2, 32\); allowed is \(6, 2, 32\)": (
        lambda x, one, w, q, k: rf.attention(q, k, k[1:])
    ),
    r"attention: q .* \(6, 0, 32\)": lambda x, one, w, q, k: rf.attention(q, k[:, :0], k[:, :0]),
    "rope: a position is -1": lambda x, one, w, q, k: rf.rope(q, np.arange(6) - 1),
    "rope: a position is 2147483648": lambda x, one, w, q, k: rf.rope(q, np.arange(6) + (1 << 31)),
}


@pytest.mark.parametrize("message", MISFITS)
def test_misfits(side, message):
    """Shapes and values that do not fit are ValueErrors that name the argument."""
    with pytest.raises(ValueError, match=message):
        MISFITS[message](*operands(side))


NO_INTEGERS = {
    "embedding: ids are float64": lambda to, q: rf.embedding(to(np.array([1.7])), to(np.ones((4, 2)))),
    "rope: positions are float64": lambda to, q: rf.rope(q, to(np.arange(6.0))),
}


@pytest.mark.parametrize("message", NO_INTEGERS)
def test_integers_only(side, message):
    """Ids and positions are not rounded."""
    with pytest.raises(TypeError, match=f"{message}; allowed are integers"):
        NO_INTEGERS[message](SIDES[side], operands(side)[3])


def test_lists_and_numbers(side):
    """They are arrays on the side of the others, as for NumPy."""
    x, one, weight, q, k = operands(side)
    ones, ids = [1.0] * 64, [3, 0]
    pairs = [
        (rf.rms_norm(x, ones), rf.rms_norm(x, one)),
        (rf.layer_norm(x, ones, ones), rf.layer_norm(x, one, one)),
        (rf.linear(ones, weight), rf.linear(one, weight)),
        (rf.linear(x, weight, [2] * 32), rf.linear(x, weight, 2 * one[:32])),
        (ones @ weight.T, one @ weight.T),
        (rf.rope(q, range(6)), rf.rope(q, np.arange(6))),
        (rf.embedding(ids, weight), rf.embedding(np.array(ids), weight)),
        (rf.embedding(3, weight), weight.dequantize()[3]),
        (rf.attention(q, k, k, sinks=ones[:4]), rf.attention(q, k, k, sinks=one[:4])),
        (rf.add(x, 1), x + 1),
        (rf.add(x, ones), x + 1),
        (rf.swiglu(x, np.ones((4, 64), int).tolist()), rf.swiglu(x, x * 0 + 1)),
    ]
    for got, expected in pairs:
        assert type(got) is type(expected) and got.dtype == np.float32
        np.testing.assert_array_equal(rf.asnumpy(got), rf.asnumpy(expected))
    assert (
        rf.silu(2.0).dtype == np.float32 and rf.softmax([1, 2]).shape == (2,) and rf.embedding([], x).shape == (0, 64)
    )


NO_FLOATS = {
    r"rms_norm: weight is a QuantizedArray of shape \(64,\) in Q8_0; allowed are floats, .*dequantize": (
        lambda x, w, q: rf.rms_norm(x, w[0])
    ),
    "linear: x is a QuantizedArray": lambda x, w, q: rf.linear(w, w),
    "linear: bias is a QuantizedArray": lambda x, w, q: rf.linear(x, w, w[0]),
    "attention: k is a QuantizedArray": lambda x, w, q: rf.attention(q, w, w),
    "embedding: ids is a QuantizedArray": lambda x, w, q: rf.embedding(w, w),
    "silu: x is of type str; allowed are real numbers": lambda x, w, q: rf.silu("x"),
    "silu: x is of type NoneType": lambda x, w, q: rf.silu(None),
    "softmax: x is of type list": lambda x, w, q: rf.softmax([1, "a"]),
    "silu: x is an array of complex64": lambda x, w, q: rf.silu(x.astype(np.complex64)),
    "add: out is of type list": lambda x, w, q: rf.add(x, x, out=[0]),
    "rms_norm: .*eps.*'1'": lambda x, w, q: rf.rms_norm(x, eps="1"),
    "scale: factor is None": lambda x, w, q: rf.scale(x.astype(int), None),
    r"unsupported operand type\(s\) for @: 'QuantizedArray' and 'NoneType'": lambda x, w, q: w @ None,
}


@pytest.mark.parametrize("message", NO_FLOATS)
def test_no_floats(side, message):
    """Packed weights where values are wanted, and what is no number, are TypeErrors that say what to pass."""
    x, _, weight, q, _ = operands(side)
    with pytest.raises(TypeError, match=message):
        NO_FLOATS[message](x, weight, q)


def test_sides_are_not_mixed():
    """Which argument is on which side is told, and what moves it."""
    x, one, weight, q, k = operands("cpu")
    x_there, one_there, weight_there, q_there, _ = operands("gpu")
    calls = {
        "left is NumPy's, right is CuPy's": lambda: x @ weight_there.T,
        "right is NumPy's, left is CuPy's": lambda: x_there @ weight.T,
        "attention: k and v are NumPy's, q is CuPy's": lambda: rf.attention(q_there, k, k),
        "add: y is NumPy's, x is CuPy's": lambda: rf.add(x_there, x),
        "scale: x is NumPy's, out is CuPy's": lambda: rf.scale(x, 2.0, out=x_there),
        "rms_norm: weight is NumPy's, x is CuPy's": lambda: rf.rms_norm(x_there, one),
        "linear: x is NumPy's, weight and bias are CuPy's": lambda: rf.linear(x, weight_there, one_there[:32]),
        "swiglu: up is NumPy's, gate is CuPy's": lambda: rf.swiglu(x_there, x),
        "rope: x is NumPy's, positions is CuPy's": lambda: rf.rope(q, cp.arange(6)),
        "embedding: table is NumPy's, ids is CuPy's": lambda: rf.embedding(cp.arange(2), x),
    }
    for message, call in calls.items():
        with pytest.raises(TypeError, match=f"{message}; rf.to_device"):
            call()
    assert rf.rope(q_there, np.arange(6)).shape == q.shape and rf.embedding(np.arange(2), x_there).shape == (2, 64)
    assert rf.add(x_there, 1.0).dtype == rf.add(x, 1.0).dtype == np.float32


def test_devices_are_named_by_strings():
    """A number or another object is a TypeError that lists what is allowed."""
    for call in (rf.Stream, lambda device: rf.to_device(np.ones(2), device), rf.device_info):
        with pytest.raises(TypeError, match='device is 1; allowed are None, "cpu", "gpu" and "gpu:N"'):
            call(1)


def test_nothing_to_multiply(side):
    """A weight of no rows gives no columns, one of no columns zeros."""
    x, _, weight, _, _ = operands(side)
    assert (x @ weight[:0].T).shape == rf.linear(x, x[:0]).shape == (4, 0)
    assert rf.asnumpy(rf.linear(x[:, :0], x[:, :0])).tolist() == np.zeros((4, 4)).tolist()


@pytest.mark.parametrize("n", [1, 9, 70])
def test_other_types_of_numbers(side, n):
    """Operands of another type than float32 are taken as float32, and so is the result."""
    x, one, weight, _, _ = operands(side)
    x = SIDES[side](np.resize(rf.asnumpy(x), (n, 64)))
    half, double = one.astype(np.float16), one.astype(np.float64)
    results = {
        rf.rms_norm: (x, half, 1e-5, x.astype(np.float64)),
        rf.layer_norm: (x, double, half),
        rf.linear: (x, weight, double[:32], x[:, :32].astype(np.float16)),
    }
    for op, args in results.items():
        whole = [a.astype(np.float32) if isinstance(a, type(x)) else a for a in args]
        y, exact = op(*args), op(*whole)
        assert y.dtype == np.float32
        np.testing.assert_allclose(rf.asnumpy(y), rf.asnumpy(exact), rtol=2e-3, atol=2e-3)
    for kind in (np.float64, np.int32, np.int64):
        y = rf.linear(x, SIDES[side](np.eye(5, 64, dtype=kind)))
        assert y.dtype == np.float32
        np.testing.assert_allclose(rf.asnumpy(y), rf.asnumpy(x)[:, :5], rtol=1e-5)


def test_reversed_rows(side):
    """Rows in reverse order are what their copy is."""
    x, _, _, q, _ = operands(side)
    pairs = [
        (rf.rope(q[::-1], np.arange(6)), rf.rope(q[::-1].copy(), np.arange(6))),
        (rf.swiglu(x[::-1], x), rf.swiglu(x[::-1].copy(), x)),
        (rf.swiglu(x[::2, ::-1], x[::2]), rf.swiglu(x[::2, ::-1].copy(), x[::2].copy())),
    ]
    for of_view, of_copy in pairs:
        assert np.array_equal(rf.asnumpy(of_view), rf.asnumpy(of_copy))


def test_one_query_with_a_window(side):
    """The last token has none after it, so `causal` changes nothing for it."""
    _, _, _, q, k = operands(side)
    expected = rf.attention(q, k, k, window=2)[-1:]
    for causal in (True, False):
        y = rf.attention(q[-1:], k, k, window=2, causal=causal)
        np.testing.assert_allclose(rf.asnumpy(y), rf.asnumpy(expected), rtol=2e-3, atol=2e-3)


def test_loads_are_aligned():
    """What begins between multiples of 16 bytes is copied for kernels that load so much, and nothing else is."""
    buffer = cp.arange(65 * 4, dtype=np.float32)
    whole, odd = buffer[:256].reshape(4, 64), buffer[1:257].reshape(4, 64)
    assert float32(whole) is whole and float32(None) is None
    assert float32(odd).data.ptr % ALIGNMENT == 0 and cp.array_equal(float32(odd), odd)
    assert rows_of(whole[:, :32])[0].data.ptr == whole.data.ptr
    for op in (rf.rms_norm, rf.layer_norm, lambda a: rf.linear(a, odd), lambda a: rf.linear(odd, a)):
        assert cp.array_equal(op(odd), op(odd.copy()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 3, 9, 65])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K", "F32", "F16"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_shows(rng, side, kind, n, value):
    """A NaN or an infinity in a row of x makes that row of the product not finite, and no other."""
    weight = rf.to_device(random_weight(rng, kind, (40, 256)), side)
    x = rng.standard_normal((n, 256)).astype(np.float32)
    x[n // 2, 77] = value
    for changes in ({}, WITHOUT_MATRIX_UNIT):
        with tuning.trying(**changes):
            y = rf.asnumpy(rf.linear(SIDES[side](x), weight))
        bad = np.isnan(y) if np.isnan(value) else ~np.isfinite(y)
        assert bad[n // 2].all() and np.isfinite(np.delete(y, n // 2, axis=0)).all()


def test_a_device_has_one_block_size():
    """Its kernels know one; a cache of another is refused."""
    states = [PagedKV(1, 32, 32)]
    assert rf.KVCache(states, 4, block_size=16).paged[0].keys.shape == (1, 4, 16, 1, 32)
    with pytest.raises(ValueError, match="block_size is 16; allowed on a device is 32"):
        rf.KVCache(states, 4, block_size=16, device="gpu")
