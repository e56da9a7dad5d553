"""Kernels as AMD machine code: what stands between AMD's compiler and the emulator, and the emulator where it is."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from offline import card_with

from rocforge.device import tuning
from rocforge.device.kernels import macros

HIPSIM = Path(__file__).parent / "hipsim"
_spec = importlib.util.spec_from_file_location("hipsim_machine_code", HIPSIM / "machine_code.py")
machine_code = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(machine_code)

import amd_compiler  # noqa: E402 - machine_code has put its folder on the path
import emulator  # noqa: E402

TARGETS = {"gfx942": "cdna", "gfx1100": "rdna3", "gfx1201": "rdna4"}
CHOSEN = [
    "test_norm.py::test_rms_norm[100]",
    "test_products.py::test_one_token[Q4_K]",
    "test_tiles.py::test_numbers_of_tokens[3-50]",
    "test_attention.py::test_decode[2-1-64]",
]


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


@pytest.mark.skipif(
    not amd_compiler.available() and os.environ.get("CI") != "true",
    reason="needs AMD's compiler: python tests/hipsim/amd_compiler.py",
)
@pytest.mark.parametrize("target", TARGETS)
def test_code_in_memory(target):
    """The kernels of a source, compiled for a target, lie in memory as their descriptors say."""
    arch = TARGETS[target]
    card = card_with(target)
    module = machine_code.Module("norm.hip", macros("norm.hip", {}, card, tuning.shipped(card.arch)), card)
    assert module.arch == arch and {"rf_rms_norm.kd", "rf_layer_norm.kd"} <= set(module.symbols)
    descriptor = module._memory[module.symbols["rf_rms_norm.kd"] :][:64]
    entry = module.symbols["rf_rms_norm.kd"] + int.from_bytes(descriptor[16:24], "little", signed=True)
    assert entry == module.symbols["rf_rms_norm"] and int.from_bytes(descriptor[:4], "little") > 0


def test_another_version_of_the_emulator_is_refused(tmp_path):
    """A checkout without the text that is to be mended is not run as it is."""
    (tmp_path / "emu.py").write_text("right = 1\n")
    assert emulator.mended(tmp_path, "emu", [("1", "2"), ("right", "wrong")]).wrong == 2
    with pytest.raises(RuntimeError, match=r"emu\.py .* does not have 'left'"):
        emulator.mended(tmp_path, "emu", [("left", "right")])


@pytest.mark.skipif("HIPSIM_MACHINE_CODE" not in os.environ, reason="HIPSIM_MACHINE_CODE names no checkout of tinygrad")
@pytest.mark.parametrize("target", TARGETS)
def test_in_the_emulator(target):
    """A norm, a product in Q4_K, one on the matrix unit and attention are right as the machine code of each target."""
    chosen = [str(HIPSIM.parent / "device" / test) for test in CHOSEN]
    command = [sys.executable, HIPSIM / "run", "--arch", target, "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and f"{len(CHOSEN)} passed" in done.stdout, done.stdout + done.stderr
