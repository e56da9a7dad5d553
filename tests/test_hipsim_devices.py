"""What the simulated devices are, and for which of them code is compiled and loaded, as ROCm's runtime has it."""

import json
import sys
from pathlib import Path

import pytest
from simulated_program import error_of, needs_wheel, output_of, simulate

from rocforge.device.cards import AMD

sys.path.append(str(Path(__file__).parent / "hipsim"))
import compile as hiprtc

pytestmark = [needs_wheel, pytest.mark.slow]

COMPILE = """
from cupy_backends.cuda.libs import nvrtc
import os, tempfile
def compiled(*options):
    program = nvrtc.createProgram('extern "C" __global__ void k(int* x) { x[0] = 7; }', "k.hip", (), ())
    nvrtc.compileProgram(program, options)
    file, path = tempfile.mkstemp()
    os.write(file, nvrtc.getPTX(program))
    return path
"""


def test_every_supported_card():
    """One device of each, with its wave, its compute capability and its own memory or the host's."""
    program = """
import json
names = ("gcnArchName", "warpSize", "major", "minor", "integrated")
for device in range(cp.cuda.runtime.getDeviceCount()):
    properties = cp.cuda.runtime.getDeviceProperties(device)
    print(json.dumps([properties[name].decode() if name == "gcnArchName" else properties[name] for name in names]))
"""
    described = [json.loads(line) for line in output_of(program, ",".join(AMD)).splitlines()]
    assert {name.partition(":")[0]: wave for name, wave, *_ in described} == AMD
    capability = {name.partition(":")[0]: (major, minor) for name, _, major, minor, _ in described}
    assert capability["gfx1030"] == capability["gfx1036"] == (10, 3)
    assert capability["gfx1100"] == capability["gfx1103"] == (11, 0)
    assert capability["gfx908"] == capability["gfx90a"] == (9, 0)
    assert capability["gfx942"] == (9, 4) and capability["gfx1151"] == (11, 5) and capability["gfx1201"] == (12, 0)
    integrated = {name.partition(":")[0] for name, *_, integrated in described if integrated}
    assert integrated >= {"gfx1150", "gfx1151", "gfx1152", "gfx1036", "gfx1103"} and "gfx1100" not in integrated
    assert ["gfx90a:sramecc+:xnack-", 64, 9, 0, 0] in described


def test_an_unknown_card():
    assert "HIPSIM_ARCH: gfx1 is not one of: gfx908" in simulate("", "gfx1").stderr


@pytest.mark.parametrize("target", ["gfx942", "gfx1030", "gfx1100", "gfx1201"])
def test_the_prelude_is_precompiled(tmp_path, target):
    """It is read once and not for each kernel, though targets define macros, which g++ compares with those it names."""
    source, options = tmp_path / "k.hip", ["-std=c++17", *hiprtc.cpu_options(), *hiprtc.GENERAL, *hiprtc.OPTIMIZATION]
    source.write_text('extern "C" __global__ void k(int* x) { x[0] = threadIdx.x; }')
    header = tmp_path / hiprtc.precompiled_prelude(options, tmp_path)["header"]
    text = hiprtc.preprocess([*options, "-DRF_WAVE=32"], target, str(source), header)
    assert "#pragma GCC pch_preprocess" in text and "__hipsim_global__ void k" in text and text.count("\n") < 50


@pytest.mark.parametrize("target", ["gfx942", "gfx1030", "gfx1100", "gfx1201"])
def test_only_its_own_matrix_unit(target):
    """A target's multiplication of matrices compiles, those of other targets do not."""
    program = """
for name, arguments in {
    "gfx942": "mfma_f32_16x16x16f16(hipsim_half4{}, hipsim_half4{}, hipsim_float4{}, 0, 0, 0)",
    "gfx1100": "wmma_f32_16x16x16_f16_w32(hipsim_half16{}, hipsim_half16{}, hipsim_float8{})",
    "gfx1201": "wmma_f32_16x16x16_f16_w32_gfx12(hipsim_half8{}, hipsim_half8{}, hipsim_float8{})",
}.items():
    try:
        kernel('extern "C" __global__ void k() { __builtin_amdgcn_' + arguments + "; }").compile()
        print(name)
    except cp.cuda.compiler.CompileException as error:
        assert "__hipsim_on_GFX" in str(error), error
"""
    assert output_of(program, target).split() == [target] * (target != "gfx1030")


@pytest.mark.parametrize(
    ("options", "runs_on"),
    [
        ([], [0]),  # the current device's code
        (["--offload-arch=gfx1036"], [1]),
        (["--gpu-architecture=gfx942"], [2]),
        (["--offload-arch=gfx942:xnack-"], [2]),
        (["--offload-arch=gfx942:sramecc+:xnack-"], [2]),
        (["--offload-arch=gfx942:xnack+"], []),
        (["--offload-arch=gfx942:sramecc-"], []),
        (["--offload-arch=gfx90a"], []),
    ],
)
def test_code_runs_on_what_it_was_compiled_for(options, runs_on):
    """gfx1030 and gfx1036 have one compute capability, and each refuses the other's code."""
    program = f"""{COMPILE}
path = compiled(*{options!r})
for device in range(3):
    with cp.cuda.Device(device):
        memory = cp.cuda.alloc_pinned_memory(4)
        x = np.frombuffer(memory, np.int32, 1)
        try:
            cp.RawModule(path=path).get_function("k")((1,), (1,), (np.intp(x.ctypes.data),))
            finish()
            print(device, x[0])
        except cp.cuda.driver.CUDADriverError as error:
            print(str(error).split(":")[0])
"""
    expected = [f"{device} 7" if device in runs_on else "hipErrorNoBinaryForGpu" for device in range(3)]
    assert output_of(program, "gfx1030,gfx1036,gfx942").splitlines() == expected


def test_an_unknown_target():
    program = f"""{COMPILE}
compiled("--offload-arch=gfx942:wave64+")
"""
    assert "HIPRTC_ERROR_COMPILATION" in error_of(program)


def test_compiling_needs_no_device():
    """Unless the device is to say what for."""
    program = f"""{COMPILE}
print(os.path.getsize(compiled("--offload-arch=gfx1100")) > 0)
compiled()
"""
    done = simulate(program, HIPSIM_DEVICES="0")
    assert done.stdout == "True\n" and "HIPRTC_ERROR_COMPILATION" in done.stderr


def test_a_module_of_another_device():
    program = f"""{COMPILE}
module = cp.cuda.function.Module()
module.load_file(compiled())
k = module.get_function("k")
with cp.cuda.Device(1):
    k((1,), (1,), (np.intp(0),))
"""
    assert "loaded on device 0, launched on device 1" in error_of(program, HIPSIM_DEVICES="2")


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("", "RuntimeError: Failed to auto-detect ROCm root"), ("/usr", "FileNotFoundError: [Errno 2] No such file")],
    ids=["no folder of ROCm's", "a folder without hipcc"],
)
def test_no_hipcc(folder, expected):
    """ROCm's libraries without its development package: what CuPy itself compiles fails, as it does there."""
    program = """
kernel('extern "C" __global__ void k() {}').compile()
"""
    assert expected in error_of(program, "gfx942", "--no-hipcc", ROCM_HOME=folder)
    assert output_of(program, "gfx942") == ""
