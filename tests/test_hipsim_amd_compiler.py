"""The simulator serves AMD's hiprtc: what rocforge and the unmodified CuPy wheel compile there is for a real card.

Code objects are found in the caches where both put them before they load them. CuPy leaves out the last byte, which it
takes for the end of a text.
"""

import pytest
from offline import code_objects, needs_amd_compiler
from simulated_program import needs_wheel, simulate

pytestmark = [needs_amd_compiler, needs_wheel, pytest.mark.slow]

HASH = 40
"""Bytes that CuPy puts before what it keeps."""
PROGRAM = """
import os
os.environ["CUPY_CACHE_IN_MEMORY"] = "0"
from rocforge.device.cards import supported_card
from rocforge.device.compiler import load_module
from rocforge.device import tuning
from rocforge.device.kernels import macros, with_defines
card = supported_card(0)
x = cp.empty(8, cp.float32)
works = [
    lambda: load_module(with_defines("norm.hip", macros("norm.hip", {}, card, tuning.of(0))), card),
    lambda: kernel('extern "C" __global__ void own_raw(int* x) { x[threadIdx.x] = 1; }', "own_raw").compile(),
    lambda: cp.ElementwiseKernel("float32 x", "float16 y", "y = x * x", "own_elementwise")(x),
    lambda: cp.ReductionKernel("float32 x", "float32 y", "x", "a + b", "y = a", "0", "own_reduction")(x),
]
for work in works:
    try:
        work()
    except cp.cuda.driver.CUDADriverError as error:
        print(error)
"""


@pytest.mark.parametrize(("arch", "card"), [("gfx942", "gfx942:sramecc+:xnack-"), ("gfx1201", "gfx1201")])
def test_code_is_for_the_card(arch, card, tmp_path):
    """By their own ways, with the card's name from the simulator; which refuses to run it."""
    settings = {"CUPY_CACHE_DIR": str(tmp_path), "ROCFORGE_CACHE_DIR": str(tmp_path), "HIPSIM_HIPRTC": "amd"}
    done = simulate(PROGRAM, arch, **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("AMD machine code cannot run on the simulator") == 4

    objects = [path.read_bytes()[HASH:] + b"\0" for path in tmp_path.glob("*.hsaco")]
    objects += [path.read_bytes() for path in tmp_path.glob("*.code")]
    assert {code_objects.target_of(code) for code in objects} == {f"amdgcn-amd-amdhsa--{card}"}
    kernels = {name: kernel for code in objects for name, kernel in code_objects.kernels_of(code, arch).items()}
    assert {"rf_rms_norm", "own_raw", "own_elementwise", "own_reduction"} <= kernels.keys()
    assert all("s_endpgm\n" in kernel.text for kernel in kernels.values())


def test_other_libraries_are_refused():
    """HIPSIM_HIPRTC names the one that there is."""
    done = simulate("", HIPSIM_HIPRTC="llvm")
    assert done.returncode == 1 and done.stderr == "hipsim: HIPSIM_HIPRTC is amd or not set, not 'llvm'\n"
