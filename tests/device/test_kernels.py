"""Launching kernels: checks of arguments, streams, threads, and one compilation for all."""

import threading
from collections import deque

import cupy as cp
import numpy as np
import pytest
from cupy.cuda import runtime

from rocforge.device import background, kernels, overlap
from rocforge.device.kernels import Kernel
from rocforge.errors import DeviceError
from rocforge.ops.activation import softcap, swiglu
from rocforge.ops.device.matvec import products
from rocforge.ops.device.norm import rms_norm
from rocforge.ops.device.plan import OperandForm
from rocforge.selftest.weights import random_weight

pytestmark = pytest.mark.any_wave

SIGNATURE = "float32* float16* int64"


@pytest.fixture
def to_fp16():
    return Kernel("quantize.hip", "to_fp16", SIGNATURE)


def test_launch(rng, to_fp16):
    """A kernel runs on the current stream, with cast numbers."""
    x, y = rng.standard_normal(300).astype(np.float32), cp.empty(300, np.float16)
    with cp.cuda.Stream(non_blocking=True) as stream:
        to_fp16((2,), (256,), (cp.asarray(x), y, 300))
        stream.synchronize()
    assert np.array_equal(y.get(), x.astype(np.float16))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({0: np.zeros(4, np.float32)}, TypeError, r"argument 0 \(x\): expected a CuPy array of float32"),
        ({0: None}, TypeError, "argument 0"),
        ({2: 4.0}, TypeError, r"argument 2 \(size\): expected int64, got float"),
        ({1: "float32"}, TypeError, r"argument 1 \(y\): expected an array of float16, got float32"),
        ({1: "strided"}, ValueError, "argument 1.*C-contiguous"),
    ],
)
def test_wrong_arguments(to_fp16, change, error, words):
    """An argument of another type, dtype or layout is an error before the launch, that names it."""
    arrays = {"float32": cp.zeros(4, np.float32), "strided": cp.zeros(8, np.float16)[::2]}
    args = [cp.zeros(4, np.float32), cp.zeros(4, np.float16), 4]
    for position, value in change.items():
        args[position] = arrays[value] if isinstance(value, str) else value
    with pytest.raises(error, match=words):
        to_fp16((1,), (256,), args)
    with pytest.raises(TypeError, match="expected 3 arguments"):
        to_fp16((1,), (256,), args[:2])


@pytest.mark.parametrize(
    ("source", "kernel", "count", "expected"),
    [
        (
            "norm.hip",
            "rms_norm_of_sum",
            12,
            ["sum", "fp16", "quantized", "x", "y", "bias", "weight", "parts", "part", "width", "n", "eps"],
        ),
        ("blocks.hip", "dequantize_float16", 4, ["blocks", "ids", "y", "columns"]),
        ("activation.hip", "swiglu", 7, []),
        ("norm.hip", "layer_norm", 5, []),
    ],
)
def test_parameter_names(source, kernel, count, expected):
    """They are the source's, where it declares such a kernel without a macro."""
    assert kernels.parameter_names(source, kernel, count) == expected


def test_wrong_device(to_fp16):
    """An array on another device than the current one: both are named, and what to do."""
    if cp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two devices")
    with cp.cuda.Device(1):
        x, y = cp.zeros(4, np.float32), cp.zeros(4, np.float16)
    message = r'argument 0 \(x\): expected an array on gpu:0, .* got one on gpu:1; .*with rf.Stream\("gpu:1"\)'
    with pytest.raises(ValueError, match=message):
        to_fp16((1,), (256,), (x, y, 4))


@pytest.fixture
def fresh_modules(monkeypatch):
    """No kernel has been compiled, as in a new process."""
    monkeypatch.setattr(kernels, "_modules", {})


def compile_all(wanted):
    compilation = background.BackgroundCompilation()
    for kernel in wanted:
        compilation.add(kernel)
    return compilation


def test_one_compilation_for_all_threads(monkeypatch):
    """Threads that ask for kernels of one source at the same time compile it once."""
    compiled = []
    original = kernels._Module._loaded

    def compile_and_count(module, *compile):
        compiled.append(module.source)
        return original(module, *compile)

    monkeypatch.setattr(kernels._Module, "_loaded", compile_and_count)
    monkeypatch.setattr(kernels, "_modules", {})
    pairs = [Kernel("quantize.hip", "to_fp16", SIGNATURE) for _ in range(4)]
    x, y = cp.zeros(4, np.float32), cp.ones((4, 4), np.float16)
    cp.cuda.get_current_stream().synchronize()
    launches = [(kernel, ((1,), (256,), (x, row, 4))) for kernel, row in zip(pairs, y, strict=True)]
    threads = [threading.Thread(target=kernel, args=args) for kernel, args in launches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled == ["quantize.hip"]
    assert not y.get().any()


@pytest.mark.skipif(runtime.getDeviceCount() < 2, reason="there is one GPU")
def test_a_module_for_each_device(fresh_modules, monkeypatch, to_fp16):
    """A kernel that runs on two devices is compiled for each, once, while that one is current."""
    compiled, original = [], kernels._Module._loaded
    monkeypatch.setattr(
        kernels._Module, "_loaded", lambda m, *compile: compiled.append((m.device, runtime.getDevice())) or original(m)
    )
    for device in (0, 1, 0, 1):
        with cp.cuda.Device(device):
            x, y = cp.ones(300, np.float32), cp.zeros(300, np.float16)
            to_fp16((2,), (256,), (x, y, 300))
            assert (y.get() == 1).all()
    assert compiled == [(0, 0), (1, 1)]


def test_source_that_does_not_compile():
    """The error says which source and which defines, and brings the compiler's words."""
    kernel = Kernel("repack.hip", "pack", "void*", RF_QTYPE="Q9_9")
    with pytest.raises(DeviceError, match=r"repack.hip does not compile with .*RF_QTYPE=Q9_9[\s\S]*Q9_9"):
        kernel((1,), (256,), (cp.zeros(1),))


def test_background_compilation(fresh_modules, monkeypatch):
    """Modules are compiled once each, in other threads; a launch in the meantime waits for its own."""
    threads, gate, original = [], threading.Event(), kernels._Module._loaded
    begun = {source: threading.Event() for source in ("quantize.hip", "norm.hip")}

    def compile_late(module, *compile):
        threads.append((module.source, threading.current_thread()))
        begun[module.source].set()
        gate.wait(10)
        return original(module, *compile)

    monkeypatch.setattr(kernels._Module, "_loaded", compile_late)
    fp16 = Kernel("quantize.hip", "to_fp16", SIGNATURE)
    wanted = [fp16, Kernel("quantize.hip", "quantize_activations", "void*"), Kernel("norm.hip", "rms_norm", "void*")]
    compilation = compile_all(wanted)
    assert begun["quantize.hip"].wait(10)
    threading.Timer(0.1, gate.set).start()
    x, y = cp.ones(300, np.float32), cp.zeros(300, np.float16)
    fp16((2,), (256,), (x, y, 300))
    assert (y.get() == 1).all()
    compilation.wait()
    assert sorted(source for source, _ in threads) == ["norm.hip", "quantize.hip"]
    assert threading.current_thread() not in {thread for _, thread in threads}
    compilation.add(fp16)
    assert len(threads) == 2


def test_background_error_surfaces_at_the_launch(fresh_modules):
    """What does not compile in the background is no one's error until its kernel is launched: then with the log."""
    kernel = Kernel("repack.hip", "pack", "void*", RF_QTYPE="Q9_9")
    compile_all([kernel, Kernel("norm.hip", "rms_norm", "void*")]).wait()
    with pytest.raises(DeviceError, match=r"repack.hip does not compile with RF_QTYPE=Q9_9:[\s\S]*Q9_9"):
        kernel((1,), (256,), (cp.zeros(1),))


def test_cancelled_compilation(fresh_modules, monkeypatch):
    """Cancelled, it begins no more and its threads have ended; what is launched later is compiled then."""
    begun, both, gate = [], threading.Barrier(3), threading.Event()

    def compile_late(module, *compile):
        begun.append(module.defines)
        if len(begun) <= 2:
            both.wait(10)
        gate.wait(10)

    class Waiting(deque):
        def clear(self):
            super().clear()
            gate.set()

    monkeypatch.setattr(kernels._Module, "_loaded", compile_late)
    monkeypatch.setattr(background, "deque", Waiting)
    monkeypatch.setattr(background, "processors", lambda: 2)
    compilation = compile_all([Kernel("norm.hip", "rms_norm", "void*", N=n) for n in range(50)])
    both.wait(10)
    compilation.cancel()
    assert len(begun) == 2 and not any(thread.is_alive() for thread in compilation._threads)


def test_launches_recorded(to_fp16):
    """Launches of this thread are recorded instead of done, new arrays are zeros; other threads are not concerned."""
    x, y = cp.ones(300, np.float32), cp.zeros(300, np.float16)
    other = threading.Thread(target=to_fp16, args=((1,), (100,), (x, y, 100)))
    recorded = []
    with kernels.launches_recorded(recorded.append):
        to_fp16((2,), (256,), (x, y, 300))
        fresh = [cp.empty(1000, np.float32) for _ in range(3)]
        other.start()
        other.join()
    assert recorded == [to_fp16] and not any(array.get().any() for array in fresh)
    assert y.get().sum() == 100
    to_fp16((2,), (256,), (x, y, 300))
    assert y.get().sum() == 300 and len(recorded) == 1


def chain(x, weights, count=40):
    """Launches of which each reads what the one before has written, over the same memory again and again."""
    for i in range(count):
        (y,) = products(rms_norm(x, None, 1e-5, form=OperandForm.INT8), [weights[i % len(weights)]])
        x = swiglu(softcap(y, 5.0), x)
    return x


def test_launches_overlap_in_order(rng):
    """A graph of launches that begin early gives, replayed, the bits that the launches give one by one."""
    with cp.cuda.Stream(non_blocking=True) as stream:
        weights = [random_weight(rng, "Q8_0", (512, 512)).to_device("gpu") for _ in range(3)]
        x = cp.asarray(rng.standard_normal((1, 512), np.float32))
        expected = chain(x, weights).get()
        stream.begin_capture()
        with kernels.launches_overlap():
            y = chain(x, weights)
        graph = stream.end_capture()
        for _ in range(20):
            y[...] = -1
            graph.launch()
            assert np.array_equal(y.get(), expected)


@pytest.mark.skipif(not overlap.overlaps(0), reason="launches do not overlap on this device")
def test_overlapping_launch_that_the_driver_refuses():
    """More threads than a block may have: an error that says so, instead of a launch that is lost."""
    x, y = cp.zeros(8, np.float32), cp.zeros(8, np.float16)
    with kernels.launches_overlap(), pytest.raises(DeviceError, match="cuLaunchKernelEx"):
        Kernel("quantize.hip", "to_fp16", SIGNATURE)((1,), (4096,), (x, y, 8))
