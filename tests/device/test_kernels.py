"""Launching kernels: checks of arguments, streams, threads, and one compilation for all."""

import threading

import cupy as cp
import numpy as np
import pytest

from rocforge import kernels
from rocforge.errors import DeviceError
from rocforge.kernels import Kernel

SIGNATURE = "float32* float16* int64"


@pytest.fixture
def to_halves():
    return Kernel("quantize.hip", "to_halves", SIGNATURE)


def test_launch(rng, to_halves):
    """A kernel runs on the current stream, with cast numbers."""
    x, y = rng.standard_normal(300).astype(np.float32), cp.empty(300, np.float16)
    with cp.cuda.Stream(non_blocking=True) as stream:
        to_halves((2,), (256,), (cp.asarray(x), y, 300))
        stream.synchronize()
    assert np.array_equal(y.get(), x.astype(np.float16))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({0: np.zeros(4, np.float32)}, TypeError, "argument 0.*CuPy array of float32"),
        ({0: None}, TypeError, "argument 0"),
        ({2: 4.0}, TypeError, "argument 2.*int64 expected, not float"),
        ({1: "float32"}, TypeError, "argument 1.*float16 expected, not of float32"),
        ({1: "strided"}, ValueError, "argument 1.*C-contiguous"),
    ],
)
def test_wrong_arguments(to_halves, change, error, words):
    """An argument of another type, dtype or layout is an error before the launch, that names it."""
    arrays = {"float32": cp.zeros(4, np.float32), "strided": cp.zeros(8, np.float16)[::2]}
    args = [cp.zeros(4, np.float32), cp.zeros(4, np.float16), 4]
    for position, value in change.items():
        args[position] = arrays[value] if isinstance(value, str) else value
    with pytest.raises(error, match=words):
        to_halves((1,), (256,), args)
    with pytest.raises(TypeError, match="takes 3 arguments"):
        to_halves((1,), (256,), args[:2])


def test_one_compilation_for_all_threads(monkeypatch):
    """Threads that ask for kernels of one source at the same time compile it once."""
    compiled = []
    original = kernels._Module._compile

    def compile_and_count(module):
        compiled.append(module.source)
        return original(module)

    monkeypatch.setattr(kernels._Module, "_compile", compile_and_count)
    monkeypatch.setattr(kernels, "_modules", {})
    pairs = [Kernel("quantize.hip", "to_halves", SIGNATURE) for _ in range(4)]
    threads = [threading.Thread(target=kernel.compile) for kernel in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled == ["quantize.hip"]
    assert all(kernel._functions for kernel in pairs)


def test_source_that_does_not_compile():
    """The error says which source and which options, and brings the compiler's words."""
    kernel = Kernel("repack.hip", "pack", "void*", QTYPE="Q9_9")
    with pytest.raises(DeviceError, match=r"repack.hip does not compile with .*QTYPE=Q9_9[\s\S]*Q9_9"):
        kernel.compile()
