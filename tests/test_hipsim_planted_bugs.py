"""Bugs planted in small programs, which the simulator must show on the first run, each time.

Every program runs in its own process under tests/hipsim/run. Where a bug gives wrong data, the repaired program is run
beside it and must give the right data, so that the test cannot pass for another reason.
"""

import pytest
from simulated_program import error_of, needs_wheel, output_of, simulate

pytestmark = [needs_wheel, pytest.mark.slow]


# ---- order


@pytest.mark.parametrize("stream, expected", [("cp.cuda.Stream.null", "wrong"), ("a", "right")])
def test_copy_on_the_null_stream_beside_a_non_blocking_one(stream, expected):
    """The copy after BLAS on a custom stream that went to the default stream, and read unfinished data."""
    program = f"""
with a:
    x, y = cp.ones((64, 64), dtype=cp.float32), cp.zeros((64, 64), dtype=cp.float32)
    finish()
    z = x @ x
y.data.copy_from_device_async(z.data, z.nbytes, {stream})
({stream}).synchronize()
print("right" if (y.get(stream={stream}) == 64).all() else "wrong")
"""
    assert output_of(program) == expected


@pytest.mark.parametrize("wait, expected", [("pass", "wrong"), ("b.wait_event(a.record())", "right")])
@pytest.mark.parametrize("hazard", ["read after write", "write after read"])
@pytest.mark.parametrize("order", ["a.synchronize(); b.synchronize()", "b.synchronize(); a.synchronize()", "finish()"])
def test_missing_event_between_two_streams(wait, expected, hazard, order):
    first, second = {
        "read after write": ("x.fill(5)", "cp.copyto(y, x)"),
        "write after read": ("cp.copyto(y, x)", "x.fill(9)"),
    }[hazard]
    program = f"""
x, y = cp.full(1000, 5 if "{hazard}" == "write after read" else 1), cp.zeros(1000, dtype=int)
finish()
with a:
    {first}
{wait}
with b:
    {second}
{order}
print("right" if (y.get() == 5).all() else "wrong")
"""
    assert output_of(program) == expected


@pytest.mark.parametrize("wait, expected", [("pass", "wrong"), ("a.synchronize()", "right")])
def test_host_reads_before_the_stream_has_finished(wait, expected):
    program = f"""
host = np.frombuffer(cp.cuda.alloc_pinned_memory(800), np.float64, 100)
host[:] = -1
with a:
    x = cp.arange(100.0) + 1
    x.data.copy_to_host_async(host.ctypes.data, 800, a)
    {wait}
print("right" if (host == np.arange(100) + 1).all() else "wrong")
"""
    assert output_of(program) == expected


def test_host_writes_before_the_stream_has_read():
    program = """
host = np.frombuffer(cp.cuda.alloc_pinned_memory(800), np.float64, 100)
host[:] = 1
with a:
    x = cp.zeros(100)
    x.data.copy_from_host_async(host.ctypes.data, 800, a)
host[:] = 2
print(x.get(stream=a)[0])
"""
    assert output_of(program) == "2.0"


@pytest.mark.parametrize(
    "work", ["x.fill(1)", "k((1,), (1,), (x,))", "y.data.copy_from_device_async(x.data, 80, null)"]
)
def test_strict_stream_refuses_work_on_the_null_stream(work):
    program = f"""
null = cp.cuda.Stream.null
k = kernel('extern "C" __global__ void k(double* x) {{ x[0] = 1; }}')
with a:
    x, y = cp.zeros(10), cp.zeros(10)
    {work.replace("null", "a")}
{work}
"""
    assert "was put on the null stream (HIPSIM_STRICT_STREAM)" in error_of(program, HIPSIM_STRICT_STREAM="1")
    assert output_of(program) == ""


def test_every_seed_keeps_the_order_that_hip_promises():
    program = """
for trial in range(20):
    with a:
        x = cp.zeros(100)
        x += 1
    b.wait_event(a.record())
    with b:
        y = x * 3
        y -= 1
    a.wait_event(b.record())
    with a:
        x += y
    assert (x.get(stream=a) == 3).all()
"""
    for seed in range(4):
        assert output_of(program, HIPSIM_SEED=str(seed)) == ""


# ---- barriers and waves


def test_barrier_in_a_divergent_branch():
    program = """
kernel(r'''extern "C" __global__ void half_a_barrier(int* x) {
    if (threadIdx.x < 32)
        __syncthreads();
    x[threadIdx.x] = 1;
}''', "half_a_barrier")((3,), (128,), (cp.zeros(128, dtype=cp.int32),))
finish()
"""
    error = error_of(program)
    assert "hipErrorLaunchFailure" in error
    assert "kernel half_a_barrier, block (" in error
    assert "__syncthreads at program.hip:3 is not reached by all" in error
    assert "has returned" in error


def test_threads_at_two_barriers():
    program = """
kernel(r'''extern "C" __global__ void k(int* x) {
    if (threadIdx.x < 64) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}''')((1,), (128,), (0,))
finish()
"""
    error = error_of(program)
    assert "__syncthreads at program.hip:3" in error and "__syncthreads at program.hip:5" in error


def test_shuffle_that_part_of_the_wave_never_reaches():
    program = """
kernel(r'''extern "C" __global__ void k(int* x) {
    int v = threadIdx.x;
    if (v % 2)
        v = __shfl_down(v, 1);
    x[threadIdx.x] = v;
}''')((1,), (64,), (cp.zeros(64, dtype=cp.int32),))
finish()
"""
    assert "__shfl_down at program.hip:4 is not reached by all" in error_of(program)


@pytest.mark.parametrize("arch, expected", [("gfx942", "wrong"), ("gfx1100", "right")])
def test_shuffle_that_assumes_32_lanes(arch, expected):
    """A reduction over 16, 8, 4, 2 and 1 lanes is a wave's sum with 32 lanes only."""
    program = """
x = cp.ones(64, dtype=cp.float32)
kernel(r'''extern "C" __global__ void k(float* x) {
    float v = x[threadIdx.x];
    for (int o = 16; o; o /= 2) v += __shfl_xor(v, o);
    x[threadIdx.x] = v;
}''')((1,), (64,), (x,))
wave = cp.cuda.runtime.getDeviceProperties(0)["warpSize"]
print("right" if x.get()[0] == wave else "wrong")
"""
    assert output_of(program, arch) == expected


def test_mask_of_32_bits():
    """HIP's _sync functions take 64-bit masks and say so at compile time."""
    program = """
kernel('extern "C" __global__ void k(int* x) { x[0] = __shfl_sync(0xffffffffu, x[0], 0); }').compile()
"""
    assert "the mask must have 64 bits" in simulate(program).stderr


@pytest.mark.parametrize("read, missing", [("255 - t", True), ("t + 1 < 256 ? t + 1 : t", True), ("t", False)])
def test_missing_barrier_between_threads(read, missing):
    """Without a barrier the order of threads differs from wave to wave and block to block: some read too early."""
    program = f"""
x = cp.zeros((20, 256), dtype=cp.float32)
kernel(r'''extern "C" __global__ void k(float* x) {{
    __shared__ float s[256];
    int t = threadIdx.x;
    s[t] = 1;
    x[blockIdx.x * 256 + t] = s[{read}];
}}''')((20,), (256,), (x,))
print("wrong" if not (x.get() == 1).all() else "right")
"""
    assert output_of(program) == ("wrong" if missing else "right")


def test_uninitialized_shared_memory():
    program = """
x = cp.zeros(64, dtype=cp.float32)
kernel(r'''extern "C" __global__ void k(float* x) {
    __shared__ float s[64];
    if (threadIdx.x) s[threadIdx.x] = 1;
    __syncthreads();
    x[threadIdx.x] = s[threadIdx.x];
}''')((1,), (64,), (x,))
print(int(cp.isnan(x).sum()))
"""
    assert output_of(program) == "1"


# ---- memory


def test_write_past_the_end_of_dynamic_lds():
    program = """
kernel(r'''extern "C" __global__ void k() {
    extern __shared__ float s[];
    s[threadIdx.x + 1] = 1;
}''')((1,), (64,), (), shared_mem=256)
finish()
"""
    assert "a write 0 bytes past the end of 256 bytes of dynamic LDS" in error_of(program)


@pytest.mark.parametrize(
    "declaration, shared",
    [("__shared__ float s[64]", 0), ("extern __shared__ float s[]", 256)],
    ids=["static", "dynamic"],
)
def test_read_past_the_end_of_lds_under_the_address_sanitizer(declaration, shared):
    program = f"""
x = cp.zeros(64, dtype=cp.float32)
kernel(r'''extern "C" __global__ void reads_over(float* x) {{
    {declaration};
    s[threadIdx.x] = 1;
    __syncthreads();
    x[threadIdx.x] = s[threadIdx.x + 1];
}}''', "reads_over")((1,), (64,), (x,), shared_mem={shared})
finish()
"""
    assert output_of(program) == ""
    error = error_of(program, HIPSIM_ASAN="1")
    assert "kernel reads_over, block (0,0,0)" in error and "address sanitizer" in error and "program.hip:5" in error


@pytest.mark.parametrize("index", [100, 129])
def test_write_past_an_allocation(index):
    program = f"""
cp.cuda.set_allocator(None)
x = cp.zeros(100, dtype=cp.float32)
kernel(r'''extern "C" __global__ void writes_over(float* x, int i) {{
    x[i] = 1;
}}''', "writes_over")((1,), (1,), (x, np.int32({index})))
finish()
"""
    error = error_of(program)
    assert "kernel writes_over" in error
    assert f"{4 * index} bytes into an allocation of 400" in error


def test_use_after_free():
    program = """
cp.cuda.set_allocator(None)
x = cp.zeros(100, dtype=cp.float32)
pointer = x.data.ptr
del x
kernel(r'''extern "C" __global__ void late(float* x) {
    x[3] = 1;
}''', "late")((1,), (1,), (np.intp(pointer),))
finish()
"""
    error = error_of(program)
    assert "kernel late, block (0,0,0)" in error
    assert "at program.hip:2" in error
    assert "12 bytes into an allocation of 400" in error and "that was freed" in error


def test_copy_from_freed_memory():
    program = """
cp.cuda.set_allocator(None)
x, y = cp.zeros(100), cp.zeros(100)
pointer = x.data.ptr
del x
cp.cuda.runtime.memcpyAsync(y.data.ptr, pointer, 800, 3, a.ptr)
"""
    error = error_of(program)
    assert "hipErrorInvalidValue" in error and "that was freed" in error


def test_copy_longer_than_an_allocation():
    program = """
cp.cuda.set_allocator(None)
x, y = cp.zeros(100), cp.zeros(50)
cp.cuda.runtime.memcpyAsync(y.data.ptr, x.data.ptr, 800, 3, a.ptr)
"""
    assert "copy to of 800 bytes" in error_of(program)


def test_fresh_memory_is_not_zero():
    assert output_of("print(bool(cp.isnan(cp.empty(1000, dtype=cp.float32)).all()))") == "True"


def test_stack_overflow():
    program = """
kernel(r'''extern "C" __device__ __noinline__ int deep(volatile int* x) {
    volatile int a[4096];
    a[0] = x[0];
    return a[0] ? deep(a) + a[1] : 0;
}
extern "C" __global__ void k(int* x) { x[0] = deep(x); }''')((1,), (1,), (cp.ones(1, dtype=cp.int32),))
finish()
"""
    assert "stack overflow" in error_of(program)


def test_assert_in_a_kernel():
    program = """
kernel(r'''#include <cassert>
extern "C" __global__ void k(int n) {
    assert(n == 3);
}''')((1,), (1,), (np.int32(4),))
finish()
"""
    assert "assert at program.hip:3: n == 3" in error_of(program)


def test_out_of_memory_is_real():
    program = "x = cp.empty(3 << 20, dtype=cp.uint8); y = cp.empty(2 << 20, dtype=cp.uint8)"
    done = simulate(program, HIPSIM_MEMORY=str(4 << 20))
    assert done.returncode == 1 and "OutOfMemoryError" in done.stderr


# ---- limits


def test_more_threads_than_the_launch_bounds():
    program = """
kernel('extern "C" __global__ void __launch_bounds__(64) k() {}')((1,), (65,), ())
"""
    assert "its __launch_bounds__ allow 64" in error_of(program)


def test_more_lds_than_there_is():
    program = """
kernel(r'''extern "C" __global__ void k(int* x) {
    __shared__ int s[10000];
    extern __shared__ int more[];
    s[threadIdx.x] = more[threadIdx.x] = x[0];
    x[1] = s[3] + more[3];
}''')((1,), (64,), (cp.zeros(10), ), shared_mem=30000)
"""
    error = error_of(program)
    assert "40000 bytes of LDS and 30000 dynamic; the limit is 65536" in error


# ---- what is not simulated says so


@pytest.mark.parametrize("call", ["cp.argsort(x)", "cp.random.default_rng(0).random(5).get()"])
def test_machine_code_of_the_wheel_is_named(call):
    assert "is AMD machine code compiled into the wheel" in simulate(f"x = cp.arange(10)\n{call}").stderr


def test_stub_says_its_name_once():
    program = """
for _ in range(2):
    try: cp.linalg.svd(cp.ones((3, 3)))
    except cp.cuda.cusolver.CUSOLVERError: print("refused")
"""
    done = simulate(program, HIPSIM_TRACE="1")
    assert done.stdout.split() == ["refused", "refused"]
    assert done.stderr.count("rocblas_create_handle is not simulated") == 1
