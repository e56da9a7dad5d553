"""The header of one GGUF file: metadata and tensor table, parsed from a memory map.

Nothing in the file is trusted: every length and count is checked against the bytes left before anything is read or
allocated, so a malformed file ends in a GGUFError that names the field and its byte offset. The format is
specified in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from rocforge.errors import GGUFError
from rocforge.gguf.values import ARRAY, BOOL, SCALARS, SMALLEST_ITEM, STRING, KeyValues

MAX_NAME = 65535  # bytes of a metadata key or tensor name
MAX_STRING = 1 << 26  # bytes of a metadata string
MAX_ITEMS = 1 << 23  # items in all metadata arrays together; Gemma 3's 262 thousand tokens with merges take 1.3 million
INNER_ARRAY_ITEMS = 256  # items that a nested array counts as, since each costs an object
MAX_NESTING = 4  # arrays within arrays

_SMALLEST_PAIR = 13  # an empty key (8 bytes), a value type (4), one byte
_SMALLEST_TENSOR = 24  # an empty name (8 bytes), n_dims (4), type (4), offset (8)


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    `shape` is NumPy's (slowest dimension first), `offset` counts bytes from the start of the file `path`, `byteorder`
    is "little" or "big". For a type unknown to the gguf package, `qtype` is the plain number and `nbytes` is None.
    """

    name: str
    shape: tuple[int, ...]
    qtype: GGMLQuantizationType | int
    nbytes: int | None
    path: Path
    offset: int
    byteorder: str


@dataclass(frozen=True)
class Header:
    """One parsed file: its map, metadata, the byte offset of each metadata key, and its tensors in file order."""

    path: Path
    buffer: mmap.mmap
    version: int
    byteorder: str
    metadata: KeyValues
    key_offsets: dict[str, int]
    tensors: dict[str, TensorInfo]

    def integer(self, key: str, default: int) -> int:
        """The metadata value `key` as an int; GGUFError if it is anything else."""
        value = self.metadata.get(key, default)
        if type(value) is not int:
            raise self.key_error(key, f"must be an integer, not {type(value).__name__}")
        return value

    def key_error(self, key: str, problem: str) -> GGUFError:
        where = f" at byte {self.key_offsets[key]}" if key in self.key_offsets else ""
        return GGUFError(f"{self.path}: metadata key {key!r}{where}: {problem}")


def read_header(path: Path) -> Header:
    """Map the file `path` and parse its header; no tensor data is read. Raises GGUFError, and OSError as open does."""
    buffer = _map(path)
    cursor = _Cursor(path, buffer)
    version = _read_version(cursor)
    tensor_count = cursor.count("tensor_count", _SMALLEST_TENSOR)
    pair_count = cursor.count("metadata_kv_count", _SMALLEST_PAIR)
    metadata, key_offsets = _read_metadata(cursor, pair_count)
    byteorder = "little" if cursor.order == "<" else "big"
    header = Header(path, buffer, version, byteorder, metadata, key_offsets, {})
    alignment = _alignment(header)
    entries = _read_tensor_table(cursor, tensor_count)
    _locate_tensors(cursor, header, entries, alignment)
    return header


def _map(path: Path) -> mmap.mmap:
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
        raise GGUFError(f"{path}: not a regular file")
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise GGUFError(f"{path}: magic at byte 0: the file is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class _Cursor:
    """Reads values from the front of a mapped file, each checked against the file's end."""

    def __init__(self, path: Path, buffer: mmap.mmap):
        self.path, self.buffer, self.size = path, buffer, len(buffer)
        self.position, self.order, self.items = 0, "<", 0

    def error(self, field: str, offset: int, problem: str) -> GGUFError:
        return GGUFError(f"{self.path}: {field} at byte {offset}: {problem}")

    def take(self, size: int, field: str) -> int:
        """Skip `size` bytes; returns their offset."""
        start = self.position
        if size > self.size - start:
            raise self.error(field, start, f"needs {size} bytes, but the file has {self.size - start} left")
        self.position = start + size
        return start

    def scalar(self, code: int, field: str) -> Any:
        start = self.take(SMALLEST_ITEM[code], field)
        (value,) = struct.unpack_from(self.order + SCALARS[code], self.buffer, start)
        if code != BOOL:
            return value
        if value > 1:
            raise self.error(field, start, f"a bool is 0 or 1, not {value}")
        return bool(value)

    def uint32(self, field: str) -> int:
        return self.scalar(4, field)

    def uint64(self, field: str) -> int:
        return self.scalar(10, field)

    def count(self, field: str, smallest: int) -> int:
        """A uint64 count of entries of at least `smallest` bytes each, checked against the bytes left."""
        start = self.position
        count = self.uint64(field)
        left = self.size - self.position
        if count > left // smallest:
            raise self.error(field, start, f"{count} entries of {smallest} bytes or more, but {left} bytes are left")
        return count

    def string(self, field: str) -> str:
        """A string of any bytes: those that are not UTF-8 become lone surrogates."""
        return self._string_bytes(field, MAX_STRING).decode("utf-8", "surrogateescape")

    def name(self, field: str) -> str:
        """A metadata key or tensor name: UTF-8, not empty."""
        start = self.position
        data = self._string_bytes(field, MAX_NAME)
        if not data:
            raise self.error(f"{field} length", start, "is 0; at least 1 byte is needed")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(field, start + 8 + error.start, "not UTF-8") from None

    def _string_bytes(self, field: str, limit: int) -> bytes:
        start = self.position
        length = self.uint64(f"{field} length")
        if length > limit:
            raise self.error(f"{field} length", start, f"{length} exceeds the limit of {limit} bytes")
        start = self.take(length, field)
        return self.buffer[start : self.position]

    def strings(self, count: int, field: str) -> list[str]:
        """`count` strings as string() reads them, in one loop: vocabularies hold hundreds of thousands."""
        unpack, buffer, size = struct.Struct(f"{self.order}Q").unpack_from, self.buffer, self.size
        end, strings = self.position, list[str]()
        append = strings.append
        for i in range(count):
            begin = end + 8
            if begin > size:
                raise self.error(f"{field}[{i}] length", end, "the file ends here")
            (length,) = unpack(buffer, end)
            end = begin + length
            if length > MAX_STRING or end > size:
                left = min(MAX_STRING, size - begin)
                raise self.error(f"{field}[{i}] length", begin - 8, f"{length} exceeds the {left} bytes allowed here")
            append(buffer[begin:end].decode("utf-8", "surrogateescape"))
        self.position = end
        return strings

    def value(self, field: str) -> Any:
        """A typed metadata value: bool, int, float, str, or what array() gives."""
        start = self.position
        code = self.uint32(f"{field} value type")
        if code == STRING:
            return self.string(field)
        if code == ARRAY:
            return self.array(field)
        if code not in SCALARS:
            raise self.error(f"{field} value type", start, f"is {code}; allowed are GGUF's types 0 to 12")
        return self.scalar(code, field)

    def array(self, field: str, depth: int = 0) -> list[Any] | np.ndarray:
        """A list of str, a list of arrays, or a 1-D array of native byte order."""
        start = self.position
        code = self.uint32(f"{field} item type")
        if code not in SMALLEST_ITEM:
            raise self.error(f"{field} item type", start, f"is {code}; allowed are GGUF's types 0 to 12")
        if depth > MAX_NESTING:
            raise self.error(field, start, f"arrays nest more than {MAX_NESTING} deep")
        count = self.count(f"{field} length", SMALLEST_ITEM[code])
        self.items += count * (INNER_ARRAY_ITEMS if code == ARRAY else 1)
        if self.items > MAX_ITEMS:
            raise self.error(f"{field} length", start + 4, f"metadata arrays have more than {MAX_ITEMS} items in all")
        if code == STRING:
            return self.strings(count, field)
        if code == ARRAY:
            return [self.array(f"{field}[{i}]", depth + 1) for i in range(count)]
        dtype = np.dtype(self.order + SCALARS[code])
        start = self.take(count * dtype.itemsize, field)
        items = np.frombuffer(self.buffer, dtype, count, start).astype(dtype.newbyteorder("="))
        if code != BOOL:
            return items
        if count and items.max() > 1:
            raise self.error(field, start + int((items > 1).argmax()), "a bool is 0 or 1")
        return items.astype(bool)


def _read_version(cursor: _Cursor) -> int:
    """Check the magic, find the byte order, and return the version, 2 or 3."""
    magic = cursor.buffer[cursor.take(4, "magic") : 4]
    if magic != b"GGUF":
        raise cursor.error("magic", 0, f"{magic.hex(' ')} is not 47 47 55 46, GGUF: not a GGUF file")
    version = cursor.uint32("version")
    if version and version & 0xFFFF == 0:  # a small number read in the wrong byte order
        cursor.order = ">"
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        raise cursor.error("version", 4, f"GGUF version {version} is not supported; supported are 2 and 3")
    return version


def _read_metadata(cursor: _Cursor, count: int) -> tuple[KeyValues, dict[str, int]]:
    """The metadata, and where each key starts."""
    metadata = KeyValues()
    offsets: dict[str, int] = {}
    for i in range(count):
        start = cursor.position
        key = cursor.name(f"metadata key {i}")
        if key in metadata:
            raise cursor.error(f"metadata key {key!r}", start, f"already set at byte {offsets[key]}")
        value_start = cursor.position
        metadata[key] = cursor.value(f"metadata value {key!r}")
        metadata.types[key] = _type_of(cursor, value_start)
        offsets[key] = start
    return metadata, offsets


def _type_of(cursor: _Cursor, start: int) -> int:
    """The type of a value that has been read from there; of an array that of its items."""
    read = struct.Struct(f"{cursor.order}I").unpack_from
    (code,) = read(cursor.buffer, start)
    return read(cursor.buffer, start + 4)[0] if code == ARRAY else code


def _alignment(header: Header) -> int:
    alignment = header.integer("general.alignment", 32)
    if alignment < 8 or alignment & (alignment - 1):
        raise header.key_error("general.alignment", f"is {alignment}; allowed are powers of two from 8 up")
    return alignment


@dataclass(frozen=True)
class _TensorEntry:
    """A row of the tensor table; `start` is where the row itself lies, `offset` counts from the data section."""

    name: str
    shape: tuple[int, ...]
    qtype: GGMLQuantizationType | int
    nbytes: int | None
    start: int
    offset: int


def _read_tensor_table(cursor: _Cursor, count: int) -> list[_TensorEntry]:
    entries: dict[str, _TensorEntry] = {}
    for i in range(count):
        start = cursor.position
        name = cursor.name(f"tensor {i} name")
        if name in entries:
            raise cursor.error(f"tensor name {name!r}", start, f"already used at byte {entries[name].start}")
        n_dims = cursor.uint32(f"tensor {name!r} n_dims")
        if n_dims > 4:
            raise cursor.error(f"tensor {name!r} n_dims", cursor.position - 4, f"is {n_dims}; allowed are 0 to 4")
        dims_at = cursor.position
        shape = tuple(cursor.uint64(f"tensor {name!r} dimensions") for _ in range(n_dims))[::-1]
        code = cursor.uint32(f"tensor {name!r} type")
        qtype, nbytes = _type_and_size(cursor, f"tensor {name!r} dimensions", dims_at, shape, code)
        offset = cursor.uint64(f"tensor {name!r} offset")
        entries[name] = _TensorEntry(name, shape, qtype, nbytes, start, offset)
    return list(entries.values())


def _type_and_size(
    cursor: _Cursor, field: str, dims_at: int, shape: tuple[int, ...], code: int
) -> tuple[GGMLQuantizationType | int, int | None]:
    """The tensor's type and its size in bytes; (code, None) for a type that the gguf package does not know."""
    # Zeros are left out of the product: NumPy multiplies the other dimensions even of an empty array.
    items = math.prod(n for n in shape if n)
    if items >= 1 << 60:
        raise cursor.error(field, dims_at, f"{shape} has too many items")
    if code not in GGMLQuantizationType.__members__.values():
        return code, None
    qtype = GGMLQuantizationType(code)
    block_items, block_bytes = GGML_QUANT_SIZES[qtype]
    row = shape[-1] if shape else 1
    if row % block_items:
        raise cursor.error(
            field, dims_at, f"rows of {row} items are not a multiple of {qtype.name}'s block of {block_items}"
        )
    return qtype, math.prod(shape) // block_items * block_bytes


def _locate_tensors(cursor: _Cursor, header: Header, entries: list[_TensorEntry], alignment: int) -> None:
    """Fill `header.tensors` in file order, checked: aligned, inside the file, not overlapping."""
    data_start = -(-cursor.position // alignment) * alignment
    for entry in entries:
        field = f"tensor {entry.name!r} offset"
        if entry.offset % alignment:
            raise cursor.error(field, entry.start, f"{entry.offset} is not a multiple of the alignment {alignment}")
        begin = data_start + entry.offset
        if begin + (entry.nbytes or 0) > cursor.size:
            size = "unknown" if entry.nbytes is None else entry.nbytes
            raise cursor.error(field, entry.start, f"data at {begin}, size {size}, ends past the file's {cursor.size}")
        header.tensors[entry.name] = TensorInfo(
            entry.name, entry.shape, entry.qtype, entry.nbytes, header.path, begin, header.byteorder
        )
    _refuse_overlaps(cursor, entries)


def _refuse_overlaps(cursor: _Cursor, entries: list[_TensorEntry]) -> None:
    filled = [(entry, entry.nbytes) for entry in entries if entry.nbytes]
    filled.sort(key=lambda pair: pair[0].offset)
    for (first, nbytes), (second, _) in pairwise(filled):
        if first.offset + nbytes > second.offset:
            problem = f"{second.offset} lies inside tensor {first.name!r}, {nbytes} bytes from {first.offset}"
            raise cursor.error(f"tensor {second.name!r} offset", second.start, problem)
