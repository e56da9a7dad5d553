"""Makers of GGUF files for the tests: by gguf's own writer, and byte by byte for what that writer would not write."""

import struct
from pathlib import Path

import gguf
import numpy as np

# GGUF's value types: name -> (number, struct character).
SCALARS = {
    "uint8": (0, "B"),
    "int8": (1, "b"),
    "uint16": (2, "H"),
    "int16": (3, "h"),
    "uint32": (4, "I"),
    "int32": (5, "i"),
    "float32": (6, "f"),
    "bool": (7, "?"),
    "uint64": (10, "Q"),
    "int64": (11, "q"),
    "float64": (12, "d"),
}


def string(text: str | bytes, order: str = "<") -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(f"{order}Q", len(data)) + data


def pair(key: str | bytes, kind: str, value, order: str = "<") -> bytes:
    """A metadata pair; `kind` is a scalar's name, "string", or either in brackets for an array of them."""
    return string(key, order) + _value(kind, value, order)


def _value(kind: str, value, order: str) -> bytes:
    if kind.startswith("["):
        item = _value_type(kind[1:-1])
        payload = b"".join(_value(kind[1:-1], v, order)[4:] for v in value)
        return struct.pack(f"{order}IIQ", 9, item, len(value)) + payload
    if kind == "string":
        return struct.pack(f"{order}I", 8) + string(value, order)
    number, char = SCALARS[kind]
    return struct.pack(f"{order}I{char}", number, value)


def _value_type(kind: str) -> int:
    return 9 if kind.startswith("[") else 8 if kind == "string" else SCALARS[kind][0]


def tensor(name: str | bytes, dims, qtype: int, offset: int, order: str = "<") -> bytes:
    """A row of the tensor table; `dims` as the file has them, fastest first."""
    return string(name, order) + struct.pack(f"{order}I{len(dims)}QIQ", len(dims), *dims, qtype, offset)


def image(pairs=(), tensors=(), data=b"", version=3, order="<", alignment=32, counts=None) -> bytes:
    """A whole file from encoded `pairs` and `tensors`; `counts` overrides (tensor_count, metadata_kv_count)."""
    head = b"GGUF" + struct.pack(f"{order}IQQ", version, *(counts or (len(tensors), len(pairs))))
    head += b"".join([*pairs, *tensors])
    return head + bytes(-len(head) % alignment) + data


def write(path: Path, tensors: dict[str, np.ndarray | tuple], metadata=None, alignment=None, **options) -> Path:
    """A file by gguf.GGUFWriter. A tensor is an array, or (packed bytes, qtype); `metadata` adds by method name."""
    writer = gguf.GGUFWriter(path, "llama", **options)
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, (method, value) in (metadata or {}).items():
        getattr(writer, f"add_{method}")(key, value)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[0], raw_dtype=value[1])
        else:
            writer.add_tensor(name, value.copy())  # gguf 0.17 swaps it in place for a big-endian file
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
