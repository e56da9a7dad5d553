"""Devices and array modules on a machine whose CuPy, if any, may not work."""

import subprocess
import sys

import numpy as np
import pytest

import rocforge as rf
from rocforge.device.arrays import resolve_device

HAS_GPU = rf.device_info().device != "cpu"


def test_numpy_arrays_are_numpys(rng):
    """Plain and packed arrays on the host belong to NumPy."""
    x = rng.standard_normal((2, 32))
    assert rf.get_array_module(x, rf.quantize(x, "Q8_0")) is np
    assert rf.asnumpy(x) is x and rf.to_device(x, "cpu") is x
    assert rf.asnumpy(rf.quantize(x, "F32")).shape == x.shape


@pytest.mark.parametrize("name", ["cuda", "gpu:x", "gpu:", "CPU", "gpu0", ""])
def test_bad_names(name):
    """A device that is no device is a ValueError that lists what is allowed."""
    with pytest.raises(ValueError, match='allowed are None, "cpu", "gpu" and "gpu:N"'):
        resolve_device(name)


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_without_a_gpu_the_reason_is_told():
    """device_info says why there is no GPU, in one line, and asking for one repeats it."""
    info = rf.device_info()
    assert info.device == "cpu" and info.reason and "\n" not in info.reason
    assert info.reason in str(info) and info.memory_total > info.memory_free > 0
    with pytest.raises(rf.DeviceError, match="no GPU: "):
        rf.load("x.gguf", device="gpu")


@pytest.mark.parametrize("fault", ["import_error", "no_module"])
def test_a_failing_import_is_quiet_and_explained(tmp_path, fault):
    """CuPy that does not import, for want of a library or altogether: nothing on stderr, and a reason."""
    lines = {
        "import_error": "raise ImportError('x\\nImportError: libamdhip64.so.7: cannot open shared object')",
        "no_module": "raise ModuleNotFoundError(\"No module named 'cupy'\", name='cupy')",
    }
    (tmp_path / "cupy.py").write_text(lines[fault])
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import rocforge as rf; print(rf.device_info().reason)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert {"import_error": "libamdhip64.so.7", "no_module": "not installed"}[fault] in done.stdout


def test_import_is_light():
    """Importing rocforge loads neither CuPy nor tokenizers nor jinja2."""
    heavy = ["cupy", "tokenizers", "jinja2", "huggingface_hub"]
    code = f"import sys, rocforge; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
