"""safetensors files: tensors by name, memory-mapped.

A file is 8 bytes of length, a JSON header of that length with each tensor's type, shape and place, and the data.
Nothing in it is trusted. Source: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rocforge.errors import CheckpointError

DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I32": "i4", "U8": "u1"}
"""The types that are read: name -> NumPy's; the bits of BF16 are unsigned integers there."""
MAX_HEADER = 100 << 20
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: name of its type, shape, and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    buffer: mmap.mmap
    offset: int


class Safetensors(Mapping[str, np.ndarray]):
    """The tensors of a folder: name -> read-only array of the mapped file; of BF16 the bits, as uint16.

    Args:
        folder: with the files.
        single: the name of the file where there is one alone, without an index.

    Attributes:
        paths: the files.

    Raises:
        CheckpointError: a file is malformed, or one of the set is missing.
        FileNotFoundError: the folder has no safetensors.
    """

    def __init__(self, folder: Path, single: str = SINGLE):
        self.paths = _files_of(folder, single)
        self._entries: dict[str, Entry] = {}
        for path in self.paths:
            for name, entry in _read_header(path):
                if name in self._entries:
                    raise CheckpointError(f"{path}: tensor {name!r} is in another file too")
                self._entries[name] = entry

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        dtype = np.dtype(DTYPES[entry.dtype]).newbyteorder("<")
        return np.frombuffer(entry.buffer, dtype, math.prod(entry.shape), entry.offset).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, name: str) -> Entry:
        """What is known of a tensor without reading it."""
        return self._entries[name]

    def float32(self, name: str) -> np.ndarray:
        """A tensor's values; of BF16 from its bits."""
        return float32(self[name], self.entry(name).dtype)


def float32(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values of a tensor of that type; of BF16 from its bits."""
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array.astype(np.float32)


def _files_of(folder: Path, single: str) -> list[Path]:
    """The files of a folder: those that its index names, or the one there is."""
    if not (folder / INDEX).is_file():
        if not (folder / single).is_file():
            raise FileNotFoundError(f"{folder} has no {single} and no {INDEX}")
        return [folder / single]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / INDEX} is no index of safetensors: {error!r}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder / INDEX} names {name!r}, which is not in the folder")
    return [folder / name for name in names]


def _read_header(path: Path) -> Iterator[tuple[str, Entry]]:
    with open(path, "rb") as file:
        try:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise CheckpointError(f"{path}: the file is empty") from None
    length = int.from_bytes(buffer[:8], "little")
    if not 2 <= length <= min(MAX_HEADER, len(buffer) - 8):
        raise CheckpointError(f"{path}: no safetensors file: its header has {length} bytes, the file {len(buffer)}")
    try:
        header = json.loads(buffer[8 : 8 + length])
        entries = {name: value for name, value in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: no safetensors file: its header is no JSON object") from None
    for name, value in entries.items():
        yield name, _entry(f"{path}: tensor {name!r}", value, buffer, 8 + length)


def _entry(where: str, value: Any, buffer: mmap.mmap, start: int) -> Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        sound = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{where} has no dtype, shape and data_offsets") from None
    if dtype not in DTYPES:
        raise CheckpointError(f"{where} has type {dtype}; supported are {', '.join(DTYPES)}")
    if not sound or end - begin != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize or start + end > len(buffer):
        raise CheckpointError(f"{where}: bytes {begin} to {end} are not those of {dtype} {shape} in this file")
    return Entry(dtype, shape, buffer, start + begin)
