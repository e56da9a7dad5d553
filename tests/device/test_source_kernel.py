"""rf.Kernel: kernels of one's own on the device, with CuPy arrays, numbers and packed weights."""

import doctest
import json
from pathlib import Path

import cupy as cp
import numpy as np
import pytest

import rocforge as rf
from rocforge.selftest.weights import random_weight

pytestmark = pytest.mark.any_wave

ROOT = Path(__file__).parents[2]
FORMATS = ["Q4_0", "Q4_K", "Q6_K", "MXFP4", "IQ3_S", "TQ1_0", "BF16"]
VALUES = """
#include "formats/rows.h"
namespace rocforge {
template <class F>
RF_DEVICE void values_of(const u8* w, float* y, u32 columns) {
    const u8* row = row_at<F>(w, columns, block_x());
    for (u32 k = thread_x(); k < columns; k += 64)
        y[u64(block_x()) * columns + k] = value_at<F>(row, columns, k);
}
RF_KERNEL(64) values(const u8* w, float* y, u32 columns, u32 format) {
    EACH_FORMAT
}
}
""".replace(
    "EACH_FORMAT",
    "\n".join(f"if (format == {i}) values_of<{name}>(w, y, columns);" for i, name in enumerate(FORMATS)),
)
PLAIN = """
extern "C" __global__ void scale(float* y, const float* x, int n, float factor) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * factor;
}
"""


def test_the_example():
    """The docstring's example runs as it is written, and gives what it says."""
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder().find(rf.Kernel, "Kernel", globs={}):
        runner.run(example)
    assert runner.tries and not runner.failures


def test_the_notebook(monkeypatch):
    """examples/kernel.ipynb runs from top to bottom."""
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(ROOT / "examples")
    names: dict = {}
    for cell in json.loads(Path("kernel.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["norms"].shape == (512,) and abs(names["norms"].get() / names["expected"] - 1).max() < 1e-5


def test_elements_of_packed_rows(rng):
    """formats/rows.h gives the elements of planar formats and of floats, bit for bit."""
    kernel = rf.Kernel(VALUES, "values")
    for number, qtype in enumerate(FORMATS):
        weight = random_weight(rng, qtype, (3, 512))
        y = cp.empty(weight.shape, np.float32)
        kernel((3,), (64,), (weight.to_device("gpu"), y, 512, number))
        assert np.array_equal(y.get(), weight.dequantize())


def test_plain_hip(rng):
    """A kernel without rocforge's headers; numbers are Python's or NumPy's."""
    x, scale = cp.arange(100, dtype=np.float32), rf.Kernel(PLAIN, "scale")
    for n, factor in ((100, 2), (np.int64(100), np.float32(0.5)), (np.int32(7), 3.0)):
        y = cp.zeros_like(x)
        scale((4,), (32,), (y, x, n, factor))
        assert np.array_equal(y.get(), np.where(np.arange(100) < n, x.get() * np.float32(factor), 0))


def test_code_is_kept_on_disk(cache):
    """A second Kernel of the same source loads what the first has compiled."""
    x = cp.ones(8, np.float32)
    for _ in range(2):
        rf.Kernel(PLAIN, "scale")((1,), (32,), (x, x, 8, 1.0))
        assert len(list(cache.glob("*.code"))) == 1


def wrong_calls():
    """(error, message) -> arguments of values, of Q8_0, that it is about."""
    w, y = rf.quantize(np.ones((2, 256)), "Q8_0"), cp.empty((2, 256), np.float32)
    there, other = w.to_device("gpu"), rf.quantize(np.ones((2, 256)), "F16").to_device("gpu")
    return {
        (TypeError, r"the QuantizedArray of shape \(2, 256\) in Q8_0 is on the host; rf\.to_device"): (w, y, 256, 0),
        (TypeError, r"the ndarray of shape \(2, 256\) in float32 is on the host"): (there, y.get(), 256, 0),
        (ValueError, ".* is the transpose of packed rows"): (there.T, y, 256, 0),
        (ValueError, ".* in F16 is not in Q8_0"): (other, y, 256, 0),
        (ValueError, ".* in GGUF's blocks; rf.to_device"): (there.with_data(cp.asarray(w.data)), y, 256, 0),
        (TypeError, r"argument 1 \(y\): expected an array of float32, got int64"): (there, y.astype(int), 256, 0),
        (ValueError, r"argument 1 \(y\): expected a C-contiguous array"): (there, y[:, ::2], 256, 0),
        (TypeError, r"argument 2 \(columns\): expected uint32, got float"): (there, y, 256.0, 0),
        (ValueError, "argument 2"): (there, y, -1, 0),
        (TypeError, "expected 4 arguments, got 2"): (there, y),
    }


def test_wrong_arguments():
    """They are named, with what is wrong and what to do."""
    kernel = rf.Kernel(VALUES, "values", RF_QTYPE="Q8_0")
    for (kind, message), args in wrong_calls().items():
        with pytest.raises(kind, match=f"values: {message}"):
            kernel((2,), (64,), args)


def test_what_does_not_compile():
    """The compiler's message comes with the line of the source."""
    x = cp.ones(8, np.float32)
    wrong = PLAIN.replace("factor;", "factr;")
    with pytest.raises(rf.DeviceError, match=r"scale does not compile:\n(.|\n)*scale\.hip[:(]4.*factr"):
        rf.Kernel(wrong, "scale")((1,), (32,), (x, x, 8, 1.0))


@pytest.mark.skipif(cp.cuda.runtime.getDeviceCount() < 2, reason="needs two devices")
def test_on_the_device_of_its_arrays():
    """It runs where its arrays are, whichever device is current."""
    with cp.cuda.Device(1):
        x = cp.ones(8, np.float32)
    rf.Kernel(PLAIN, "scale")((1,), (32,), (x, x, 8, 3.0))
    assert (x.get() == 3).all()
