"""What HIP refuses while a stream is being captured, and what rocBLAS allocates then: planted in small programs."""

import pytest
from simulated_program import error_of, needs_wheel, output_of

pytestmark = [needs_wheel, pytest.mark.slow]

TRY = """
import threading
runtime = cp.cuda.runtime
x = cp.ones((4, 4), dtype=cp.float32)
event, pinned = a.record(), cp.cuda.alloc_pinned_memory(64)
memory = runtime.malloc(64)
finish()
def error_name(call):
    try:
        call()
    except (runtime.CUDARuntimeError, cp.cuda.cublas.CUBLASError) as error:
        return str(error).split(":")[0]
def query(status):
    if status not in (0, 600):
        raise runtime.CUDARuntimeError(status)
def in_another_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
"""
GLOBAL, THREAD_LOCAL, RELAXED = range(3)
UNSUPPORTED, IMPLICIT, INVALIDATED = (
    f"hipErrorStreamCapture{what}" for what in ("Unsupported", "Implicit", "Invalidated")
)


@pytest.mark.parametrize(
    ("call", "refused"),
    [
        *(
            (call, {GLOBAL: UNSUPPORTED, THREAD_LOCAL: UNSUPPORTED})
            for call in (
                "runtime.malloc(64)",
                "runtime.hostAlloc(64, 0)",
                "runtime.mallocManaged(64)",
                "runtime.free(spare)",
                "b.synchronize()",
                "query(runtime.streamQuery(b.ptr))",
                "event.synchronize()",
                "query(runtime.eventQuery(event.ptr))",
            )
        ),
        *(
            (call, dict.fromkeys(range(3), UNSUPPORTED))
            for call in (
                "a.synchronize()",
                "query(runtime.streamQuery(a.ptr))",
                "runtime.deviceSynchronize()",
                "a.add_callback(print, None)",
            )
        ),
        ("runtime.memcpy(memory, pinned.ptr, 64, 1)", dict.fromkeys(range(3), IMPLICIT)),
        ("runtime.memset(memory, 0, 64)", dict.fromkeys(range(3), IMPLICIT)),
        ("a.record().synchronize()", dict.fromkeys(range(3), "hipErrorCapturedEvent")),
        ("runtime.memcpyAsync(memory, pinned.ptr, 64, 1, b.ptr)", {}),
        ("b.record(event)", {}),
    ],
)
def test_refused_while_capturing(call, refused):
    """The refused call spoils the capture, and its stream for good; what is not refused does not."""
    program = f"""{TRY}
for mode in range(3):
    a, spare = cp.cuda.Stream(non_blocking=True), runtime.malloc(64)
    a.begin_capture(mode)
    first = error_name(lambda: {call})
    after = error_name(lambda: runtime.memsetAsync(memory, 0, 64, a.ptr))
    print(first, after, error_name(a.end_capture), error_name(a.synchronize))
    b.synchronize()
"""
    spoiled = {mode: f"{error} {INVALIDATED} {INVALIDATED} {UNSUPPORTED}" for mode, error in refused.items()}
    assert output_of(program).splitlines() == [spoiled.get(mode, "None None None None") for mode in range(3)]


def test_other_threads():
    """A capture in the global mode, and in every mode a wait for the device, is every thread's concern."""
    program = f"""{TRY}
for mode, call in (({GLOBAL}, "malloc"), ({THREAD_LOCAL}, "malloc"), ({RELAXED}, "deviceSynchronize")):
    a.begin_capture(mode)
    arguments = (64,) if call == "malloc" else ()
    in_another_thread(lambda: print(error_name(lambda: getattr(runtime, call)(*arguments))))
    print(error_name(a.end_capture))
"""
    assert output_of(program).split() == [UNSUPPORTED, INVALIDATED, "None", "None", UNSUPPORTED, INVALIDATED]


WORKSPACE = """
import ctypes
hipblas = ctypes.CDLL("libhipblas.so.3")
def set_workspace(array):
    handle = ctypes.c_void_p(cp.cuda.device.get_cublas_handle())
    assert hipblas.hipblasSetWorkspace(handle, ctypes.c_void_p(array.data.ptr), ctypes.c_size_t(array.nbytes)) == 0
with a:
    x, big = cp.ones((4, 4), dtype=cp.float32), cp.ones((32, 32), dtype=cp.float32)
    y, z = cp.empty_like(x), cp.empty_like(big)
    cp.matmul(x, x, out=y)
    finish()
"""


def test_a_product_allocates_its_workspace_in_a_capture():
    """A product larger than those before it: refused with hipBLAS's own error, and the capture is lost."""
    program = f"""{TRY}{WORKSPACE}
with a:
    a.begin_capture({THREAD_LOCAL})
    print(error_name(lambda: cp.matmul(x, x, out=y)))
    print(error_name(lambda: cp.matmul(big, big, out=z)))
    print(error_name(a.end_capture))
with b:
    cp.matmul(big, big, out=z)
    print(z.get(stream=b)[0, 0])
"""
    assert output_of(program).split() == ["None", "HIPBLAS_STATUS_ALLOC_FAILED", INVALIDATED, "32.0"]


@pytest.mark.parametrize("ours", [False, True])
def test_a_workspace_that_was_replaced(ours):
    """A relaxed capture lets rocBLAS replace its workspace: the product captured before it has the old one, freed."""
    program = f"""{TRY}{WORKSPACE}
cp.cuda.set_allocator(None)
workspace = cp.empty(100, dtype=cp.float32)
if {ours}:
    set_workspace(workspace)
with a:
    a.begin_capture({RELAXED})
    cp.matmul(x, x, out=y)
    cp.matmul(big, big, out=z)
    graph = a.end_capture()
    graph.launch()
    print(y.get(stream=a)[0, 0], z.get(stream=a)[0, 0])
"""
    if ours:
        assert output_of(program) == "4.0 32.0"
    else:
        error = error_of(program)
        assert "hipblas gemm: its workspace of 64 bytes" in error and "that was freed" in error


def test_a_workspace_that_is_used_for_something_else():
    """Products write their workspace: two streams, or a graph and what runs beside it, may not share one."""
    program = f"""{TRY}{WORKSPACE}
workspace = cp.zeros(100, dtype=cp.float32)
set_workspace(workspace)
with a:
    cp.matmul(x, x, out=y)
finish()
print(int(cp.isnan(workspace).sum()))
"""
    assert output_of(program) == "16"
