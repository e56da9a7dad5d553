"""What a code object says of its kernels: the compiler's records of what each takes, and its instructions.

Sources: LLVM, User Guide for the AMDGPU Backend: code object metadata; LLVM-C, Disassembler.h.
"""

from __future__ import annotations

import ctypes
import functools
import io
from dataclasses import dataclass

import msgpack
from amd_compiler import folder
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection

LINE = 256
"""Characters of an instruction's text at the most."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of a code object; registers are those of a lane (VGPRs, with AGPRs) and of a wave (SGPRs).

    `lds` and `scratch` are in bytes, of a block and of a lane; `text` has an instruction a line, which begins at the
    byte of the kernel that `starts` says.
    """

    vgprs: int
    sgprs: int
    spills: int
    lds: int
    scratch: int
    text: str
    starts: tuple[int, ...]

    @property
    def instructions(self) -> int:
        return self.text.count("\n")


def kernels_of(code: bytes, arch: str) -> dict[str, Kernel]:
    """The kernels of a code object for an architecture, by name.

    Raises:
        ValueError: it has bytes that are no instruction, or a function beside the kernels, which one would call.
    """
    elf = ELFFile(io.BytesIO(code))
    records = {record[".name"]: record for record in _metadata(elf)["amdhsa.kernels"]}
    texts = {name: _disassembled(machine_code, arch) for name, machine_code in _functions(elf).items()}
    if texts.keys() != records.keys():
        raise ValueError(f"functions that are no kernels: {sorted(texts.keys() ^ records.keys())}")
    return {name: _kernel(record, *texts[name]) for name, record in records.items()}


def target_of(code: bytes) -> str:
    """What a code object is for, as amdgcn-amd-amdhsa--gfx942:sramecc+:xnack-."""
    return _metadata(ELFFile(io.BytesIO(code)))["amdhsa.target"]


def _kernel(record: dict[str, int], text: str, starts: tuple[int, ...]) -> Kernel:
    return Kernel(
        vgprs=record[".vgpr_count"],
        sgprs=record[".sgpr_count"],
        spills=record[".vgpr_spill_count"] + record[".sgpr_spill_count"],
        lds=record[".group_segment_fixed_size"],
        scratch=record[".private_segment_fixed_size"],
        text=text,
        starts=starts,
    )


def _metadata(elf: ELFFile) -> dict:
    notes = [
        note for section in elf.iter_sections() if isinstance(section, NoteSection) for note in section.iter_notes()
    ]
    return msgpack.unpackb(next(note["n_descdata"] for note in notes if note["n_name"] == "AMDGPU"))


def _functions(elf: ELFFile) -> dict[str, bytes]:
    found = {}
    for symbol in elf.get_section_by_name(".symtab").iter_symbols():
        if symbol["st_info"]["type"] == "STT_FUNC":
            section = elf.get_section(symbol["st_shndx"])
            start = symbol["st_value"] - section["sh_addr"]
            found[symbol.name] = section.data()[start : start + symbol["st_size"]]
    return found


@functools.cache
def _llvm() -> ctypes.CDLL:
    llvm = ctypes.CDLL(str(next(folder().glob("libLLVM-*"))))
    for part in ("TargetInfo", "TargetMC", "Disassembler"):
        getattr(llvm, f"LLVMInitializeAMDGPU{part}")()
    llvm.LLVMCreateDisasmCPU.restype = ctypes.c_void_p
    llvm.LLVMDisasmInstruction.restype = ctypes.c_size_t
    llvm.LLVMDisasmInstruction.argtypes = [
        *[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64],
        *[ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t],
    ]
    return llvm


@functools.cache
def _disassembler(arch: str) -> ctypes.c_void_p:
    return ctypes.c_void_p(_llvm().LLVMCreateDisasmCPU(b"amdgcn-amd-amdhsa", arch.encode(), None, 0, None, None))


def _disassembled(machine_code: bytes, arch: str) -> tuple[str, tuple[int, ...]]:
    """The text, an instruction a line, and the byte that each begins at."""
    decode, disassembler, line = _llvm().LLVMDisasmInstruction, _disassembler(arch), ctypes.create_string_buffer(LINE)
    data = ctypes.create_string_buffer(machine_code, len(machine_code))
    start, at, lines, starts = ctypes.addressof(data), 0, [], []
    while at < len(machine_code):
        size = decode(disassembler, start + at, len(machine_code) - at, at, line, LINE)
        if not size:
            raise ValueError(f"no instruction of {arch} at byte {at}: {machine_code[at : at + 8].hex()}")
        lines.append(line.value.decode())
        starts.append(at)
        at += size
    return "".join(f"{text}\n" for text in lines), tuple(starts)
