"""CuPy's arrays on the device: what the library builds on. Each result is held against NumPy's."""

import ctypes

import cupy as cp
import numpy as np
import pytest
from cupy.cuda import cublas, runtime

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]

FLOATS = ["float16", "float32", "float64"]
TOLERANCE = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-12}


def numbers(rng, shape, dtype):
    return (rng.random(shape) * 10).astype(dtype)


@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "int64", "uint8"])
def test_ufuncs(rng, dtype):
    a, b = numbers(rng, (33, 17), dtype), numbers(rng, (17,), dtype)
    result = (cp.asarray(a) * 2 + cp.asarray(b)).get()
    np.testing.assert_allclose(result, a * 2 + b, rtol=TOLERANCE.get(dtype, 0))
    assert result.dtype == (a * 2 + b).dtype


@pytest.mark.parametrize("name", ["exp", "log1p", "sqrt", "tanh", "sin", "floor", "isfinite", "signbit"])
def test_mathematics(rng, name):
    a = rng.standard_normal(300).astype(np.float32)
    a = abs(a) if name in ("log1p", "sqrt") else a
    np.testing.assert_allclose(getattr(cp, name)(cp.asarray(a)).get(), getattr(np, name)(a), rtol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 2)])
def test_sums(rng, dtype, axis):
    a = numbers(rng, (5, 70, 9), dtype)
    result = cp.asarray(a).sum(axis=axis, dtype="float64")
    np.testing.assert_allclose(result.get(), a.sum(axis=axis, dtype="float64"), rtol=1e-9)


def test_other_reductions(rng):
    a = rng.standard_normal((40, 300)).astype(np.float32)
    d = cp.asarray(a)
    np.testing.assert_array_equal(d.max(axis=1).get(), a.max(axis=1))
    np.testing.assert_array_equal(d.argmin(axis=0).get(), a.argmin(axis=0))
    np.testing.assert_allclose(d.mean().get(), a.mean(), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(cp.cumsum(d, axis=1).get(), np.cumsum(a, axis=1), rtol=1e-3, atol=1e-4)
    assert bool(cp.any(d > 3)) == bool(np.any(a > 3))


def test_slicing_and_indexing(rng):
    a = numbers(rng, (50, 60), "float32")
    d = cp.asarray(a)
    np.testing.assert_array_equal(d[::2, 40:3:-3].get(), a[::2, 40:3:-3])
    np.testing.assert_array_equal(d[cp.asarray([3, 1, 2])].get(), a[[3, 1, 2]])
    np.testing.assert_array_equal(d[d > 5].get(), a[a > 5])
    d[5:10] = 7
    d[:, 3] += 1
    a[5:10] = 7
    a[:, 3] += 1
    np.testing.assert_array_equal(d.get(), a)


def test_copies(rng):
    a = numbers(rng, (20, 30, 4), "float32")
    d = cp.asarray(a)
    np.testing.assert_array_equal(d.transpose(2, 0, 1).copy().get(), a.transpose(2, 0, 1))
    np.testing.assert_array_equal(cp.concatenate([d, d[:3]]).get(), np.concatenate([a, a[:3]]))
    e = cp.empty_like(d)
    e[...] = d
    e.data.copy_from_device_async(d.data, 40, cp.cuda.get_current_stream())
    np.testing.assert_array_equal(e.get(), a)


@pytest.mark.parametrize("source", [*FLOATS, "int32", "uint8", "bool"])
@pytest.mark.parametrize("target", [*FLOATS, "int64", "bool"])
def test_astype(rng, source, target):
    a = numbers(rng, 100, source)
    np.testing.assert_array_equal(cp.asarray(a).astype(target).get(), a.astype(target))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "shapes", [((40, 30), (30, 20)), ((3, 40, 30), (3, 30, 20)), ((40, 30), (30,)), ((30,), (30,))]
)
def test_matmul(rng, dtype, shapes):
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    expected = a.astype("float64") @ b.astype("float64")
    for left, right in [(cp.asarray(a), cp.asarray(b)), (cp.asfortranarray(cp.asarray(a)), cp.asarray(b))]:
        result = (left @ right).get()
        assert result.dtype == a.dtype
        np.testing.assert_allclose(result, expected, rtol=20 * TOLERANCE[dtype], atol=20 * TOLERANCE[dtype])


def test_gemm_of_float16_into_float32(rng):
    """float16 in, float32 sums and out, columns first, as the products of many rows call it."""
    m, n, k = 33, 20, 47
    a, b = rng.standard_normal((k, m)).astype("float16"), rng.standard_normal((n, k)).astype("float16")
    da, db, y = cp.asarray(a), cp.asarray(b), cp.empty((n, m), cp.float32)
    one, zero = np.array(1, np.float32), np.array(0, np.float32)
    half, single = runtime.CUDA_R_16F, runtime.CUDA_R_32F
    cublas.gemmEx(
        cp.cuda.device.get_cublas_handle(),
        *(cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_N, m, n, k, one.ctypes.data),
        *(da.data.ptr, half, m, db.data.ptr, half, k, zero.ctypes.data),
        *(y.data.ptr, single, m, single if runtime.is_hip else cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT),
    )
    expected = b.astype("float64") @ a.astype("float64")
    np.testing.assert_allclose(y.get(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not runtime.is_hip, reason="hipBLAS is ROCm's library")
def test_hipblas_gemm_of_bfloat16(rng):
    """bfloat16 in, float32 out, through the library itself: CuPy 14.2 does not pass that type on to hipBLAS."""
    m, n, k = 13, 7, 21
    words = [rng.standard_normal(shape).astype("float32").view("uint32") >> 16 for shape in ((k, m), (n, k))]
    a, b = ((word << 16).view("float32").astype("float64") for word in words)
    da, db = (cp.asarray(word.astype("uint16")) for word in words)
    y, one, zero = cp.empty((n, m), cp.float32), ctypes.c_float(1), ctypes.c_float(0)
    pointer, normal, bfloat16, single, compute_32f = ctypes.c_void_p, 111, 14, 0, 2
    status = ctypes.CDLL("libhipblas.so.3").hipblasGemmEx(
        *(pointer(cp.cuda.device.get_cublas_handle()), normal, normal, m, n, k, ctypes.byref(one)),
        *(pointer(da.data.ptr), bfloat16, m, pointer(db.data.ptr), bfloat16, k, ctypes.byref(zero)),
        *(pointer(y.data.ptr), single, m, compute_32f, 160),
    )
    assert status == 0
    np.testing.assert_allclose(y.get(), b @ a, rtol=1e-5, atol=1e-5)


def test_random(rng):
    cp.random.seed(int(rng.integers(1 << 31)))
    uniform, normal = cp.random.random(20000), cp.random.standard_normal(20000, dtype=cp.float32)
    assert float(uniform.min()) >= 0 and float(uniform.max()) <= 1
    assert abs(float(uniform.mean()) - 0.5) < 0.02
    assert abs(float(normal.mean())) < 0.05 and abs(float(normal.std()) - 1) < 0.05
    integers = cp.random.randint(3, 9, 1000).get()
    assert integers.min() >= 3 and integers.max() < 9


def test_elementwise_and_reduction_kernels(rng):
    a = numbers(rng, (30, 40), "float32")
    d = cp.asarray(a)
    madd = cp.ElementwiseKernel("T x, T y", "T z", "z = x * y + 1", "madd")
    np.testing.assert_allclose(madd(d, d).get(), a * a + 1, rtol=1e-6)
    squares = cp.ReductionKernel("T x", "T y", "x * x", "a + b", "y = a", "0", "squares")
    np.testing.assert_allclose(squares(d, axis=1).get(), (a * a).sum(axis=1), rtol=1e-5)
