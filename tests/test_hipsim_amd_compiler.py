"""The simulator serves AMD's hiprtc: what the unmodified CuPy wheel compiles there is machine code for the card.

Code objects are found in CuPy's cache, where it puts them, behind their hash, before it loads them; without their last
byte, which it takes for the end of a text.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from offline import code_objects, needs_amd_compiler

from rocforge.kernels import compile_options, with_defines

RUN = Path(__file__).parent / "hipsim" / "run"
WHEELS = {distribution.name for distribution in importlib.metadata.distributions()}
HASH = 40
"""Bytes that CuPy puts before what it keeps."""
pytestmark = [
    needs_amd_compiler,
    pytest.mark.skipif("cupy-rocm-7-0" not in WHEELS, reason="the simulator runs the cupy-rocm-7-0 wheel"),
]

PROGRAM = """
import os
os.environ["CUPY_CACHE_IN_MEMORY"] = "0"
import cupy as cp
x = cp.empty(8, cp.float32)
works = [
    lambda: cp.RawModule(code={code!r}, options={options}).get_function("rf_rms_norm"),
    lambda: cp.ElementwiseKernel("float32 x", "float16 y", "y = x * x", "own_elementwise")(x),
    lambda: cp.ReductionKernel("float32 x", "float32 y", "x", "a + b", "y = a", "0", "own_reduction")(x),
]
for work in works:
    try:
        work()
    except cp.cuda.driver.CUDADriverError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("arch", "wave", "card"), [("gfx942", 64, "gfx942:sramecc+:xnack-"), ("gfx1201", 32, "gfx1201")]
)
def test_cupy_compiles_for_the_card(arch, wave, card, tmp_path):
    """Modules of ours and CuPy's own kernels compile by its own path, for the card it sees, which cannot run them."""
    code = with_defines("norm.hip", {})
    program = PROGRAM.format(code=code, options=compile_options(wave))
    command = [sys.executable, str(RUN), "--arch", arch, "python", "-c", program]
    settings = {"HIPSIM_HIPRTC": "amd", "CUPY_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("AMD machine code cannot run on the simulator") == 3

    objects = [path.read_bytes()[HASH:] + b"\0" for path in tmp_path.glob("*.hsaco")]
    assert {code_objects.target_of(code) for code in objects} == {f"amdgcn-amd-amdhsa--{card}"}
    kernels = {name: kernel for code in objects for name, kernel in code_objects.kernels_of(code, arch).items()}
    assert {"rf_rms_norm", "own_elementwise", "own_reduction"} <= kernels.keys()
    assert all(kernel.text.endswith("s_endpgm\n") for kernel in kernels.values())


def test_other_libraries_are_refused():
    """HIPSIM_HIPRTC names the one that there is."""
    environment = {**os.environ, "HIPSIM_HIPRTC": "llvm"}
    done = subprocess.run([sys.executable, str(RUN), "true"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr == "hipsim: HIPSIM_HIPRTC is amd or not set, not 'llvm'\n"
