"""RawKernel and RawModule: the way this library's kernels reach the device."""

import cupy as cp
import numpy as np
import pytest

pytestmark = pytest.mark.slow

HIP = cp.cuda.runtime.is_hip
WAVE = cp.cuda.runtime.getDeviceProperties(0)["warpSize"]
SHUFFLE_XOR = "__shfl_xor(v, o)" if HIP else "__shfl_xor_sync(0xffffffffu, v, o)"
BALLOT = "__ballot(p)" if HIP else "__ballot_sync(0xffffffffu, p)"


def raw(source, name="k", **options):
    return cp.RawKernel(source, name, **options)


def test_arguments_of_every_kind():
    source = r"""
    struct Pair { float x; double y; };
    extern "C" __global__ void k(double* out, char a, unsigned short b, long long c, float d, Pair e, bool f) {
        out[0] = a; out[1] = b; out[2] = c; out[3] = d; out[4] = e.x; out[5] = e.y; out[6] = f;
    }"""
    pair = np.array((1.5, 2.5), dtype=np.dtype([("x", "f4"), ("y", "f8")], align=True))
    out = cp.zeros(7)
    arguments = (out, np.int8(-3), np.uint16(65535), np.int64(-(1 << 40)), np.float32(0.25), pair, np.bool_(True))
    raw(source)((1,), (1,), arguments)
    assert out.get().tolist() == [-3, 65535, -(1 << 40), 0.25, 1.5, 2.5, 1]


def test_grid_and_block_of_three_dimensions():
    source = r"""
    extern "C" __global__ void k(int* out) {
        int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
    }"""
    out = cp.full(2 * 3 * 4 * 60, -1, dtype=cp.int32)
    raw(source)((2, 3, 4), (3, 4, 5), (out,))
    assert out.get().tolist() == [b * 1000 + t for b in range(24) for t in range(60)]


def test_barrier_and_static_shared_memory(rng):
    source = r"""
    extern "C" __global__ void __launch_bounds__(256) k(const float* x, float* y) {
        __shared__ float turned[256];
        turned[255 - threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
        __syncthreads();
        y[blockIdx.x * 256 + threadIdx.x] = turned[threadIdx.x];
    }"""
    x = rng.random((40, 256), dtype=np.float32)
    y = cp.empty((40, 256), dtype=cp.float32)
    raw(source)((40,), (256,), (cp.asarray(x), y))
    np.testing.assert_array_equal(y.get(), x[:, ::-1])


def test_dynamic_shared_memory(rng):
    source = r"""
    extern "C" __global__ void k(const int* x, int* y, int n) {
        extern __shared__ int ints[];
        for (int i = threadIdx.x; i < n; i += blockDim.x) ints[i] = x[i];
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = ints[n - 1 - i];
    }"""
    x = rng.integers(0, 1000, 5000, dtype=np.int32)
    y = cp.empty(5000, dtype=cp.int32)
    raw(source)((1,), (128,), (cp.asarray(x), y, np.int32(5000)), shared_mem=20000)
    np.testing.assert_array_equal(y.get(), x[::-1])


def test_wave_reduction_and_ballot(rng):
    source = f"""
    extern "C" __global__ void k(const float* x, float* sums, unsigned long long* votes) {{
        float v = x[threadIdx.x];
        bool p = v > 0.5f;
        unsigned long long vote = {BALLOT};
        for (int o = WAVE / 2; o; o /= 2) v += {SHUFFLE_XOR};
        sums[threadIdx.x] = v;
        votes[threadIdx.x] = vote;
    }}"""
    x = rng.random(256, dtype=np.float32)
    sums, votes = cp.empty(256, dtype=cp.float32), cp.empty(256, dtype=cp.uint64)
    raw(source, options=(f"-DWAVE={WAVE}",))((1,), (256,), (cp.asarray(x), sums, votes))
    waves = x.reshape(-1, WAVE)
    np.testing.assert_allclose(sums.get(), np.repeat(waves.sum(axis=1), WAVE), rtol=1e-5)
    expected = [sum(1 << i for i, v in enumerate(wave) if v > 0.5) for wave in waves]
    assert votes.get().tolist() == [e for e in expected for _ in range(WAVE)]


@pytest.mark.parametrize(
    "dtype, name", [("int32", "int"), ("uint32", "unsigned"), ("float32", "float"), ("float64", "double")]
)
def test_atomics_from_many_blocks(dtype, name):
    source = f"""
    extern "C" __global__ void k({name}* out) {{
        atomicAdd(out, ({name})1);
    }}"""
    out = cp.zeros(1, dtype=dtype)
    raw(source)((50,), (96,), (out,))
    assert out.get().tolist() == [4800]


@pytest.mark.parametrize("dtype, name", [("int32", "int"), ("uint32", "unsigned"), ("float32", "float")])
def test_atomic_exchange(dtype, name):
    source = f"""
    extern "C" __global__ void k({name}* out) {{
        atomicExch(out, ({name})7);
    }}"""
    out = cp.zeros(1, dtype=dtype)
    raw(source)((50,), (96,), (out,))
    assert out.get().tolist() == [7]


def test_half_precision(rng):
    source = r"""
    #ifdef __HIPCC_RTC__
    typedef _Float16 half_t;
    #else
    #include <cuda_fp16.h>
    typedef __half half_t;
    #endif
    extern "C" __global__ void k(const half_t* a, const half_t* b, half_t* c) {
        int i = threadIdx.x;
        c[i] = half_t(float(a[i] * b[i]) + float(a[i]));
    }"""
    a, b = rng.random((2, 100)).astype(np.float16)
    c = cp.empty(100, dtype=cp.float16)
    raw(source)((1,), (100,), (cp.asarray(a), cp.asarray(b), c))
    np.testing.assert_array_equal(c.get(), ((a * b).astype(np.float32) + a).astype(np.float16))


def test_module_with_options_templates_and_globals():
    source = r"""
    template <typename T> __global__ void scale(T* x, T by, int n) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) x[i] *= by + T(EXTRA);
    }
    extern "C" { __device__ int counter[3]; }
    extern "C" __global__ void count() { atomicAdd(&counter[1], 1); }
    """
    names = ("scale<float>", "scale<long long>")
    module = cp.RawModule(code=source, options=("-DEXTRA=1", "-std=c++17"), name_expressions=names)
    for name, dtype in zip(names, (cp.float32, cp.int64), strict=True):
        x = cp.arange(100, dtype=dtype)
        module.get_function(name)((2,), (64,), (x, dtype(2), np.int32(100)))
        assert x.get().tolist() == [3 * i for i in range(100)]
    counter = cp.ndarray(3, cp.int32, module.get_global("counter"))
    counter.fill(0)
    module.get_function("count")((4,), (10,), ())
    assert counter.get().tolist() == [0, 40, 0]


def test_modules_that_come_and_go():
    """A module loaded after others were dropped is its own, not one of theirs."""
    for number in range(10):
        source = f"""
        template <int n> struct Value {{ static constexpr int value[1] = {{n}}; }};
        extern "C" __global__ void k{number % 4}(int* x) {{ x[0] = Value<{number}>::value[x[0]]; }}"""
        out = cp.zeros(1, dtype=cp.int32)
        cp.RawModule(code=source, options=("-std=c++17",)).get_function(f"k{number % 4}")((1,), (1,), (out,))
        assert int(out[0]) == number
        cp.clear_memo()  # which holds the module


def test_compile_error_carries_the_log():
    with pytest.raises(cp.cuda.compiler.CompileException, match="no_such_name"):
        raw('extern "C" __global__ void k(int* x) { x[0] = no_such_name; }').compile()


def test_missing_kernel():
    module = cp.RawModule(code='extern "C" __global__ void k() {}')
    with pytest.raises(cp.cuda.driver.CUDADriverError, match=r"(?i)not.?found"):
        module.get_function("other")


@pytest.mark.parametrize("block, shared", [((1025, 1, 1), 0), ((32, 32, 2), 0), ((64, 1, 1), 1 << 20)])
def test_launch_past_the_limits(block, shared):
    kernel = raw('extern "C" __global__ void k() {}')
    with pytest.raises(cp.cuda.driver.CUDADriverError):
        kernel((1,), block, (), shared_mem=shared)


def test_attributes():
    source = r"""
    extern "C" __global__ void k(int* x) {
        __shared__ int s[100];
        s[threadIdx.x] = x[0];
        __syncthreads();
        x[1] = s[5];
    }"""
    kernel = raw(source)
    assert kernel.shared_size_bytes == 400
    assert kernel.max_threads_per_block >= 256


def test_undocumented_parts():
    """What rocforge/device/ takes of CuPy beyond its documentation, for which pyproject.toml bounds its version."""
    assert cp.empty((3, 4))._c_contiguous is True and cp.empty((3, 4)).T._c_contiguous is False
    kernel = raw('extern "C" __global__ void k(int* x) { *x = 3; }').kernel
    x = cp.zeros(1, cp.int32)
    kernel((1,), (1,), (x,))
    assert isinstance(kernel.ptr, int) and kernel.ptr and x.get() == 3
