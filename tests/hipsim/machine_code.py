"""rocforge's kernels as AMD machine code: compiled by clang for HIPSIM_ARCH, and run by an instruction emulator.

    HIPSIM_MACHINE_CODE=TINYGRAD tests/hipsim/run --arch gfx1201 pytest tests/device/test_norm.py

TINYGRAD is a checkout of https://github.com/tinygrad/tinygrad, whose test tree has the emulator. The simulator stays in
place for memory, streams and everything that is not a `rocforge.kernels.Kernel`; its device memory is the process's
own, so the emulated instructions reach it at the addresses that CuPy passes. A launch waits for its stream, then runs
at once, and cannot be captured.

Source of the layouts: LLVM, User Guide for the AMDGPU Backend: kernel descriptor, kernarg segment, initial registers.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rocforge.arrays import cupy_module
from rocforge.kernels import PREFIX, Kernel, wave_size, with_defines

PAGE = 4096
USER_SGPRS = (4, 2, 2, 2, 2, 2, 1)
"""Words of what a kernel descriptor's first property bits ask for; the fourth is the kernarg segment's address."""
KERNARG = 3
LDS_WINDOW = 4 << 30
"""Bytes that an LDS address can reach: the emulator also loads for lanes that are switched off."""
A, B, S = "v254", "v255", "s105"
"""Registers that no kernel uses."""
THREAD = ThreadPoolExecutor(1)
"""Runs the emulator, which works in one thread only."""
MAP_NORESERVE = 0x4000
"""Linux's; Python's mmap does not name it."""


@functools.cache
def _emulator() -> Any:
    """tinygrad's, with LDS in a window where every address may be read."""
    sys.path.insert(0, os.environ["HIPSIM_MACHINE_CODE"])
    os.environ.setdefault("CC", "clang-19")
    from test.mockgpu.amd import emu

    window = mmap.mmap(-1, LDS_WINDOW + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    address, plain, memory_is_made = ctypes.addressof(ctypes.c_char.from_buffer(window)), emu.Buffer, False

    def buffer(device: str, size: int, dtype: Any, options: Any = None, **more: Any) -> Any:
        # a launch makes a buffer of all memory, at address 0, and then that of LDS
        nonlocal memory_is_made
        if options is None and memory_is_made:
            options = emu.BufferSpec(external_ptr=address)
        memory_is_made = options is not None and options.external_ptr == 0
        return plain(device, size, dtype, options=options, **more)

    # whether an atomic operation gives the old value: a bit with another name on each architecture
    attribute = emu._iattr

    def attribute_of_any(inst: Any, name: str, *default: Any) -> Any:
        if name != "glc":
            return attribute(inst, name, *default)
        return attribute(inst, "glc", 0) or attribute(inst, "sc0", 0) or attribute(inst, "th", 0) & 1

    emu.Buffer, emu._iattr, emu.lds_window = buffer, attribute_of_any, window
    return emu


def _compiled(source: str, target: str, wave: int, folder: Path) -> Path:
    code, text, path = folder / "source.hip", folder / "code.s", folder / "code.elf"
    code.write_text(source)
    options = ["-x", "hip", "--cuda-device-only", f"--offload-arch={target}", "-nogpuinc", "-nogpulib", "-O3"]
    options += ["-mllvm", "-amdgpu-sdwa-peephole=0"]  # the emulator lacks the sign of gfx9's sub-word operands
    _run("clang++-19", *options, "-std=c++17", f"-DRF_WAVE={wave}", "-S", code, "-o", text)
    text.write_text(_for_the_emulator(text.read_text()))
    _run("clang-19", "--target=amdgcn-amd-amdhsa", f"-mcpu={target}", text, "-o", path)
    return path


def _run(*command: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr}")
    return done.stdout


def _for_the_emulator(assembly: str) -> str:
    """The same program, without what the emulator lacks or gets wrong.

    It knows no caches: instructions about these are left out. It goes lane by lane, so an instruction that moves lanes
    within one register is given a copy of it to read. It takes v128 and up in short 16-bit instructions for high halves
    of registers, as RDNA has them, on CDNA too: there the long encoding is used. It takes no literal for which lanes to
    permute: that goes through a register. And it multiplies all bits of operands of which only 24 count: the others are
    cleared before.
    """
    if re.search(r"\b(v25[45]|s105)\b|\bv\[\d+:25[45]\]|\bs\[\d+:105\]", assembly):
        raise RuntimeError(f"the kernel uses {A}, {B} or {S}, which are to be spare")
    vector, high = r"v\d+", r"v(?:12[89]|1[3-9]\d|2\d\d)\b"

    def masked(found: re.Match) -> str:
        name, target, *operands, rest = found.groups()
        spare = [
            operand if operand[0].isdigit() else register for register, operand in zip((A, B), operands, strict=True)
        ]
        masks = [f"v_bfe_u32 {s}, {operand}, 0, 24" for s, operand in zip(spare, operands, strict=True) if s != operand]
        return "\n".join(f"\t{line}" for line in [*masks, f"{name} {target}, {spare[0]}, {spare[1]}{rest}"])

    for pattern, change in {
        r"(?:global_(?:wb|inv|wbinv)|buffer_(?:wbl2|inv|gl[01]_inv))\b.*": r"\ts_nop 0",
        rf"(v_\w+_dpp) ({vector}), \2(,? .*)": rf"\tv_mov_b32_e32 {A}, \2\n\t\1 \2, {A}\3",
        rf"(v_\w+16\w*)_e32( .*\b{high}.*)": r"\t\1_e64\2",
        r"(v_permlanex16_b32 .*), (0x\w+)(.*)": rf"\ts_mov_b32 {S}, \2\n\t\1, {S}\3",
        rf"(v_m\w+_u24\w*) ({vector}), (\w+), (\w+)(.*)": masked,
    }.items():
        assembly = re.sub(rf"^\t{pattern}$", change, assembly, flags=re.M)
    return assembly


class Module:
    """A source's machine code, in memory that it can run from."""

    def __init__(self, source: str, defines: dict[str, Any], target: str, wave: int):
        with tempfile.TemporaryDirectory() as folder:
            path = _compiled(with_defines(source, defines), target, wave, Path(folder))
            elf, listing = path.read_bytes(), _run("llvm-readelf-19", "--symbols", "--wide", path)
        lines = [line.split() for line in listing.splitlines()]
        self.symbols = {words[7]: int(words[1], 16) for words in lines if len(words) == 8 and words[0][0].isdigit()}
        (start,), (size, count) = struct.unpack_from("<Q", elf, 32), struct.unpack_from("<HH", elf, 54)
        headers = [struct.unpack_from("<IIQQQQQQ", elf, start + i * size) for i in range(count)]
        loads = [(offset, at, filled, end) for kind, _, offset, at, _, filled, end, _ in headers if kind == 1]
        self.size = max(at + end for _, at, _, end in loads) + PAGE
        self._memory = mmap.mmap(-1, self.size)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        for offset, at, filled, _ in loads:
            self._memory[at : at + filled] = elf[offset : offset + filled]
        self.arch = "cdna" if target.startswith("gfx9") else {"gfx11": "rdna3", "gfx12": "rdna4"}[target[:5]]


_module = functools.cache(
    lambda source, defines, target, wave: Module(source, dict(defines), target, wave)
)  # as CuPy keeps its own


class Function:
    """A kernel, to be called as cupy.cuda.function.Function is."""

    def __init__(self, module: Module, name: str):
        self._module, self._address = module, module.base + module.symbols[f"{PREFIX}{name}.kd"]

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0) -> None:
        stream = cupy_module().cuda.get_current_stream()
        if stream.is_capturing():
            stream.end_capture()
            pytest.skip("the emulator runs no captured launches")
        stream.synchronize()
        grid, block = ((*axes, 1, 1)[:3] for axes in (grid, block))
        descriptor = ctypes.string_at(self._address, 64)
        fixed, scratch = struct.unpack_from("<II", descriptor)
        (entry,) = struct.unpack_from("<q", descriptor, 16)
        resources, properties = struct.unpack_from("<IH", descriptor, 52)
        lds = -(-(fixed + shared_mem) // 512)
        kernarg = ctypes.create_string_buffer(_kernarg(grid, block, args, shared_mem))
        address = struct.unpack("<II", struct.pack("<Q", ctypes.addressof(kernarg)))
        wanted = [(bit, count) for bit, count in enumerate(USER_SGPRS) if properties >> bit & 1]
        words = [word for bit, count in wanted for word in (address if bit == KERNARG else [0] * count)]
        words += [0] * ((resources >> 1 & 31) - len(words))
        where = self._address + entry, self._module.size, *grid, *block, ctypes.addressof(kernarg)
        resources = resources & ~(0x1FF << 15) | lds << 15
        THREAD.submit(lambda: _emulator().run_asm(*where, resources, scratch, self._module.arch, words)).result()


def _kernarg(grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared: int) -> bytes:
    """Arguments, each aligned to its size, and the hidden ones behind them."""
    data = b""
    for arg in args:
        value = arg.tobytes() if isinstance(arg, np.generic) else struct.pack("<Q", arg.data.ptr)
        data += bytes(-len(data) % len(value)) + value
    data += bytes(-len(data) % 8)
    hidden = bytearray(256)
    struct.pack_into("<3I3H", hidden, 0, *grid, *block)
    struct.pack_into("<H", hidden, 64, 3)
    struct.pack_into("<I", hidden, 120, shared)
    return data + hidden


def install() -> None:
    """From now on, in this process, rocforge's kernels are run so, and decode steps are not captured."""
    target, os.environ["ROCFORGE_GRAPHS"] = os.environ["HIPSIM_ARCH"], "0"

    def load(kernel: Kernel, device: int) -> Any:
        defines = tuple(sorted(kernel.defines.items()))
        function = Function(_module(kernel.source, defines, target, wave_size(device)), kernel.name)
        kernel._functions[device] = loaded = SimpleNamespace(kernel=function)
        return loaded

    Kernel._load = load
