"""What a code object holds: its kernels' records, and their instructions as text.

Both come from libamd_comgr, as the tools of ROCm have them, for every target that it knows.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Iterator
from typing import NamedTuple

import amd_compiler

RECORDS = ("vgpr_count", "sgpr_count", "vgpr_spill_count", "sgpr_spill_count")
RECORDS += ("group_segment_fixed_size", "private_segment_fixed_size")
"""What is read of a kernel's record: registers, spills, bytes of LDS and of scratch."""
_EXECUTABLE = 8
_READ = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p)
_PRINT = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p)
_ADDRESS = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_void_p)


class Instruction(NamedTuple):
    """An instruction: where it lies, its text, and the address that it jumps to if it is a branch."""

    address: int
    text: str
    target: int | None = None

    @property
    def name(self) -> str:
        return self.text.split(maxsplit=1)[0]


class _Handle(ctypes.Structure):
    _fields_ = (("handle", ctypes.c_uint64),)


@functools.cache
def _comgr() -> ctypes.CDLL:
    return ctypes.CDLL(str(amd_compiler.folder() / "libamd_comgr.so.3"))


def _call(name: str, *args: object) -> None:
    status = getattr(_comgr(), f"amd_comgr_{name}")(*args)
    if status:
        raise RuntimeError(f"amd_comgr_{name}: status {status}")


def records(code: bytes) -> dict[str, dict[str, int]]:
    """Kernel name -> its `RECORDS`, of an ELF file."""
    data, root, kernels, count = _Handle(), _Handle(), _Handle(), ctypes.c_size_t()
    _call("create_data", _EXECUTABLE, ctypes.byref(data))
    _call("set_data", data, ctypes.c_size_t(len(code)), code)
    _call("get_data_metadata", data, ctypes.byref(root))
    _call("metadata_lookup", root, b"amdhsa.kernels", ctypes.byref(kernels))
    _call("get_metadata_list_size", kernels, ctypes.byref(count))
    found = {}
    for i in range(count.value):
        kernel = _Handle()
        _call("index_list_metadata", kernels, ctypes.c_size_t(i), ctypes.byref(kernel))
        found[_string(kernel, "name")] = {field: int(_string(kernel, field)) for field in RECORDS}
    _call("destroy_metadata", root)
    _call("release_data", data)
    return found


def _string(record: _Handle, field: str) -> str:
    value, size = _Handle(), ctypes.c_size_t()
    _call("metadata_lookup", record, f".{field}".encode(), ctypes.byref(value))
    _call("get_metadata_string", value, ctypes.byref(size), None)
    text = ctypes.create_string_buffer(size.value)
    _call("get_metadata_string", value, ctypes.byref(size), text)
    _call("destroy_metadata", value)
    return text.value.decode()


def instructions(code: bytes, target: str) -> dict[str, list[Instruction]]:
    """Kernel name -> its instructions in order, of an ELF file compiled for a target such as gfx1100."""
    return {name: list(_disassembled(code, target, *place)) for name, place in _functions(code).items()}


def _functions(code: bytes) -> dict[str, tuple[int, int, int]]:
    """Name -> address, offset in the file, and bytes, of each function of a 64-bit little-endian ELF file."""
    at, size, count = struct.unpack_from("<Q", code, 0x28)[0], *struct.unpack_from("<HH", code, 0x3A)
    # of a section: name, type, flags, address, offset, size, link, info, alignment, size of an entry
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, at + i * size) for i in range(count)]
    functions = {}
    for section in sections:
        if section[1] != 11:  # the symbols that a loader sees
            continue
        names = sections[section[6]][4]
        for entry in range(section[4], section[4] + section[5], section[9]):
            name, info, _, index, address, length = struct.unpack_from("<IBBHQQ", code, entry)
            if info & 15 == 2:  # a function
                text = code[names + name : code.index(b"\0", names + name)].decode()
                functions[text] = (address, address - sections[index][3] + sections[index][4], length)
    return functions


def _disassembled(code: bytes, target: str, start: int, offset: int, length: int) -> Iterator[Instruction]:
    texts: list[str] = []
    addresses: list[int] = []

    def read(address: int, to: int, size: int, _: object) -> int:
        data = code[offset + address - start : min(offset + address - start + size, offset + length)]
        ctypes.memmove(to, data, len(data))
        return len(data)

    callbacks = (
        _READ(read),
        _PRINT(lambda text, _: texts.append(text.decode().strip())),
        _ADDRESS(lambda address, _: addresses.append(address)),
    )
    info, size, isa = _Handle(), ctypes.c_uint64(), f"amdgcn-amd-amdhsa--{target}".encode()
    _call("create_disassembly_info", isa, *callbacks, ctypes.byref(info))
    address = start
    while address < start + length:
        texts.clear(), addresses.clear()
        _call("disassemble_instruction", info, ctypes.c_uint64(address), None, ctypes.byref(size))
        yield Instruction(address, texts[0], addresses[0] if addresses else None)
        address += size.value
    _call("destroy_disassembly_info", info)
