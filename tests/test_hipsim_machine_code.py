"""Kernels as AMD machine code: what stands between clang's output and the emulator, which is not at hand here."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

_path = Path(__file__).parent / "hipsim" / "machine_code.py"
_spec = importlib.util.spec_from_file_location("hipsim_machine_code", _path)
machine_code = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(machine_code)


BEFORE = """
v_add_f32_dpp v0, v0, v1 quad_perm:[1,0,3,2]
v_mov_b32_dpp v7, v7 row_mirror
v_add_f32_dpp v1, v0, v1 row_mirror
v_mov_b32_dpp v1, v11 row_mirror
v_cvt_f32_f16_e32 v3, v128
v_cvt_f32_f16_e32 v3, v127
v_permlanex16_b32 v2, v1, s2, 0xfedcba98 op_sel:[1,0]
v_mul_hi_u32_u24_e32 v2, s3, v4
v_mul_u32_u24_e32 v2, 0x140, v4
v_mad_u32_u24 v3, v0, v4, v3
global_wb scope:SCOPE_DEV
buffer_wbl2 sc1
global_load_b32 v1, v2, s[4:5]
"""
AFTER = """
v_mov_b32_e32 v254, v0
v_add_f32_dpp v0, v254, v1 quad_perm:[1,0,3,2]
v_mov_b32_e32 v254, v7
v_mov_b32_dpp v7, v254 row_mirror
v_add_f32_dpp v1, v0, v1 row_mirror
v_mov_b32_dpp v1, v11 row_mirror
v_cvt_f32_f16_e64 v3, v128
v_cvt_f32_f16_e32 v3, v127
s_mov_b32 s105, 0xfedcba98
v_permlanex16_b32 v2, v1, s2, s105 op_sel:[1,0]
v_bfe_u32 v254, s3, 0, 24
v_bfe_u32 v255, v4, 0, 24
v_mul_hi_u32_u24_e32 v2, v254, v255
v_bfe_u32 v255, v4, 0, 24
v_mul_u32_u24_e32 v2, 0x140, v255
v_bfe_u32 v254, v0, 0, 24
v_bfe_u32 v255, v4, 0, 24
v_mad_u32_u24 v3, v254, v255, v3
s_nop 0
s_nop 0
global_load_b32 v1, v2, s[4:5]
"""


def test_what_the_emulator_gets_wrong():
    """Such instructions are replaced by others that do the same; all others stay."""
    before, after = (text.replace("\n", "\n\t") for text in (BEFORE, AFTER))
    assert machine_code._for_the_emulator(before) == after


@pytest.mark.parametrize("line", ["v_mov_b32 v255, v0", "global_load_b128 v[252:255], v[2:3]", "s_mov_b32 s105, 0"])
def test_spare_registers_are_spare(line):
    """A kernel that uses the registers that replacements need is refused."""
    with pytest.raises(RuntimeError, match="spare"):
        machine_code._for_the_emulator(f"\t{line}\n")


def test_arguments_are_aligned():
    """Each to its size, the hidden ones to eight bytes behind them."""

    class Array:
        class data:
            ptr = 0x1122334455667788

    args = [np.int32(7), Array(), np.float32(1), np.uint64(2), np.int32(-1)]
    data = machine_code._kernarg((5, 6, 7), (64, 1, 1), args, 1024)
    assert data[:4] == b"\7\0\0\0" and int.from_bytes(data[8:16], "little") == Array.data.ptr
    assert data[16:20] == np.float32(1).tobytes() and data[24:36] == b"\2" + bytes(7) + b"\xff" * 4
    hidden = np.frombuffer(data[40:], np.uint32)
    assert hidden[:3].tolist() == [5, 6, 7] and hidden[3] == 64 | 1 << 16 and hidden[30] == 1024


@pytest.mark.skipif(shutil.which("clang++-19") is None, reason="needs clang++-19 with the AMDGPU target")
@pytest.mark.parametrize(
    ("target", "wave", "arch"), [("gfx942", 64, "cdna"), ("gfx1100", 32, "rdna3"), ("gfx1201", 32, "rdna4")]
)
def test_code_in_memory(target, wave, arch):
    """The kernels of a source, compiled for a target, lie in memory as their descriptors say."""
    module = machine_code.Module("norm.hip", {}, target, wave)
    assert module.arch == arch and {"rms_norm.kd", "layer_norm.kd"} <= set(module.symbols)
    descriptor = module._memory[module.symbols["rms_norm.kd"] :][:64]
    entry = module.symbols["rms_norm.kd"] + int.from_bytes(descriptor[16:24], "little", signed=True)
    assert entry == module.symbols["rms_norm"] and int.from_bytes(descriptor[:4], "little") > 0
