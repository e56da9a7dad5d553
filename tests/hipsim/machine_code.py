"""rocforge's kernels as the machine code that AMD's hiprtc makes of them, run by an instruction emulator.

    HIPSIM_MACHINE_CODE=TINYGRAD tests/hipsim/run --arch gfx1201 pytest tests/device/test_norm.py

TINYGRAD is a checkout of https://github.com/tinygrad/tinygrad, whose test tree has the emulator. The simulator stays in
place for memory, streams and everything that is not a `rocforge.device.kernels.Kernel`; its device memory is the
process's own, so the emulated instructions reach it at the addresses that CuPy passes. A launch waits for its stream,
then runs at once, and cannot be captured.

Source of the layouts: LLVM, User Guide for the AMDGPU Backend: kernel descriptor, kernarg segment, initial registers.
"""

from __future__ import annotations

import ctypes
import functools
import io
import mmap
import os
import struct
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from rocforge.device import tuning
from rocforge.device.arrays import cupy_module
from rocforge.device.cards import Card, card_of
from rocforge.device.compiler import options
from rocforge.device.kernels import PREFIX, Kernel, macros, with_defines

sys.path.insert(0, str(Path(__file__).resolve().parent))
from amd_compiler import compile_program, fetch
from emulator import PAGE, emulator

ARCHITECTURES = {"gfx942": "cdna", "gfx950": "cdna", "gfx11": "rdna3", "gfx12": "rdna4"}
"""What the emulator calls targets that begin so. It has no others."""
USER_SGPRS = (4, 2, 2, 2, 2, 2, 1)
"""Words of what a kernel descriptor's first property bits ask for; the fourth is the kernarg segment's address."""
KERNARG = 3
THREAD = ThreadPoolExecutor(1)
"""Runs the emulator, which works in one thread only."""


class Module:
    """A source's machine code, in memory that it can run from."""

    def __init__(self, source: str, defines: dict[str, Any], card: Card):
        fetch()
        self.arch = next(name for start, name in ARCHITECTURES.items() if card.arch.startswith(start))
        code, _ = compile_program(with_defines(source, defines), options(card), source)
        elf = ELFFile(io.BytesIO(code))
        self.symbols = {symbol.name: symbol["st_value"] for symbol in elf.get_section_by_name(".dynsym").iter_symbols()}
        segments = list(elf.iter_segments("PT_LOAD"))
        self.size = max(segment["p_vaddr"] + segment["p_memsz"] for segment in segments) + PAGE
        self._memory = mmap.mmap(-1, self.size)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        for segment in segments:
            self._memory.seek(segment["p_vaddr"])
            self._memory.write(segment.data())


_module = functools.cache(lambda source, defines, card: Module(source, dict(defines), card))  # as CuPy keeps its own


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
        THREAD.submit(lambda: emulator().run_asm(*where, resources, scratch, self._module.arch, words)).result()


def _kernarg(grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared: int) -> bytes:
    """Arguments, each aligned to its size or, a struct, to 8 bytes, and the hidden ones behind them."""
    data = b""
    for arg in args:
        value = arg.tobytes() if isinstance(arg, np.generic) else struct.pack("<Q", arg.data.ptr)
        data += bytes(-len(data) % min(len(value), 8)) + value
    data += bytes(-len(data) % 8)
    hidden = bytearray(256)
    struct.pack_into("<3I3H", hidden, 0, *grid, *block)
    struct.pack_into("<H", hidden, 64, 3)
    struct.pack_into("<I", hidden, 120, shared)
    return data + hidden


def install() -> None:
    """From now on, in this process, rocforge's kernels are run so, and decode steps are not captured."""
    os.environ["ROCFORGE_GRAPHS"] = "0"

    def load(kernel: Kernel, device: int, shared: int) -> Any:
        card = card_of(device)
        defines = tuple(sorted(macros(kernel.source, kernel.defines, card, tuning.of(device)).items()))
        function = Function(_module(kernel.source, defines, card), kernel.name)
        kernel._functions[device, tuning.of(device)] = loaded = SimpleNamespace(kernel=function)
        return loaded

    Kernel._load = load
