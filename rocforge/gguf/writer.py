"""Writing GGUF files: version 3, little-endian, one tensor after another, whole or not at all."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from rocforge.errors import GGUFError
from rocforge.gguf.values import ARRAY, BOOL, SCALARS, STRING, KeyValues
from rocforge.quant import QuantizedArray

DEFAULT_ALIGNMENT = 32
_FLOAT32, _INT32, _UINT32, _UINT64, _INT64 = 6, 5, 4, 10, 11
_INTEGERS = (_UINT32, _INT32, _UINT64, _INT64)
"""Types of an int that no file has given one: the first that holds it."""
_TYPES = {np.dtype(char): code for code, char in SCALARS.items() if code != BOOL} | {np.dtype(bool): BOOL}
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written.

    Attributes:
        shape: NumPy's.
        qtype: its type.
        parts: gives its bytes, as contiguous arrays one after another, of little-endian values or packed blocks.
    """

    shape: tuple[int, ...]
    qtype: GGMLQuantizationType
    parts: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        block, size = GGML_QUANT_SIZES[self.qtype]
        return math.prod(self.shape) // block * size


def planned(array: Any, to_host: Callable[[Any], Any] = lambda array: array) -> Planned:
    """An array as it is: of a dtype that GGUF has, or a QuantizedArray; `to_host` brings it to host memory.

    Raises:
        TypeError: GGUF has no such dtype.
    """
    if isinstance(array, QuantizedArray):
        return Planned(array.shape, array.qtype, lambda: [np.ascontiguousarray(to_host(array).data)])
    name = {"f": "F", "i": "I"}.get(array.dtype.kind, "?") + str(8 * array.dtype.itemsize)
    if name not in GGMLQuantizationType.__members__:
        raise TypeError(f"an array of {array.dtype}; GGUF has float16, 32 and 64, and int8, 16, 32 and 64")
    dtype = array.dtype.newbyteorder("<")
    return Planned(array.shape, GGMLQuantizationType[name], lambda: [np.ascontiguousarray(to_host(array), dtype)])


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Planned],
    sources: Iterable[Path] = (),
) -> None:
    """Write a file. It appears under its name once it is complete; after an error it has never been there.

    Args:
        path: where; a file of that name is replaced.
        metadata: key -> value, of the types that an open file's metadata has. A KeyValues keeps the types of its file;
            else an int is the first of uint32, int32, uint64 and int64 that holds it, in a list int32 or int64, and a
            float is a float32. Keys that say how a file was split are left out.
        tensors: name -> what is written, in that order; memory is taken for one part of one tensor at a time.
        sources: files that are read meanwhile, which stay as they are.

    Raises:
        ValueError: `path` is one of the sources, or GGUF has no such metadata value.
        GGUFError: general.alignment makes no sense.
        OSError: the file cannot be written.
    """
    target = Path(path)
    _check_target(target, sources)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(part, "xb") as file:
            _write(file, metadata, tensors)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _check_target(target: Path, sources: Iterable[Path]) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {target.parent}")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; give the name of a file")
    for source in sources:
        if target.exists() and source.exists() and target.samefile(source):
            raise ValueError(f"{target} is the file that is being read; write to another, and rename it then")


def _write(file: BinaryIO, metadata: Mapping[str, Any], tensors: Mapping[str, Planned]) -> None:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
        raise GGUFError(f"general.alignment is {alignment!r}; allowed are powers of two from 8 up")
    file.write(_header(metadata, tensors, alignment))
    for name, tensor in tensors.items():
        _pad(file, alignment)
        start = file.tell()
        for part in tensor.parts():
            file.write(part.reshape(-1).view(np.uint8).data)
        if file.tell() - start != tensor.nbytes:
            raise ValueError(f"tensor {name} has {file.tell() - start} bytes; its shape and type take {tensor.nbytes}")
    _pad(file, alignment)


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _header(metadata: Mapping[str, Any], tensors: Mapping[str, Planned], alignment: int) -> bytes:
    types = metadata.types if isinstance(metadata, KeyValues) else {}
    pairs = [(key, value) for key, value in metadata.items() if key not in _SPLIT_KEYS]
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(pairs))]
    for key, value in pairs:
        head += [_string(key), *_value(key, value, types.get(key))]
    offset = 0
    for name, tensor in tensors.items():
        dims = tensor.shape[::-1]
        head += [_string(name), struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.qtype, offset)]
        offset += -(-tensor.nbytes // alignment) * alignment
    return b"".join(head)


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any, code: int | None) -> Iterator[bytes]:
    """A value with its type: `code`, where that holds it."""
    if isinstance(value, (list, tuple, np.ndarray)):
        yield struct.pack("<I", ARRAY)
        yield from _array(key, value, code)
        return
    if isinstance(value, str):
        yield struct.pack("<I", STRING) + _string(value)
        return
    if isinstance(value, np.generic):
        code, value = _TYPES.get(value.dtype, code), value.item()
    code = _scalar_type(key, value, code)
    yield struct.pack(f"<I{SCALARS[code]}", code, value)


def _scalar_type(key: str, value: Any, code: int | None) -> int:
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, float):
        return code if code in SCALARS and SCALARS[code] in "fd" else _FLOAT32
    if isinstance(value, int):
        wanted = [code] if code in SCALARS and SCALARS[code] not in "fd" and code != BOOL else []
        for found in [*wanted, *_INTEGERS]:
            limits = np.iinfo(SCALARS[found])
            if limits.min <= value <= limits.max:
                return found
    raise ValueError(f"metadata {key} is {value!r}; allowed are bool, int of 64 bits, float, str and lists of one kind")


def _array(key: str, items: Sequence[Any] | np.ndarray, code: int | None) -> Iterator[bytes]:
    """An array with its item type; `code` is that of a list without items."""
    if not isinstance(items, np.ndarray):
        kinds = {str if isinstance(item, str) else type(item) for item in items}
        if not kinds:
            yield struct.pack("<IQ", STRING if code is None else code, 0)
            return
        if kinds == {str}:
            yield struct.pack("<IQ", STRING, len(items))
            yield b"".join(map(_string, items))
            return
        if kinds <= {list, tuple, np.ndarray}:
            yield struct.pack("<IQ", ARRAY, len(items))
            for item in items:
                yield from _array(key, item, None)
            return
        items = _numbers(key, items, kinds)
    if items.ndim != 1 or (found := _TYPES.get(items.dtype.newbyteorder("="))) is None:
        raise ValueError(f"metadata {key} is an array of {items.dtype}, {items.ndim} axes; allowed are numbers on one")
    yield struct.pack("<IQ", found, len(items))
    yield items.astype(items.dtype.newbyteorder("<"), copy=False).tobytes()


def _numbers(key: str, items: Sequence[Any], kinds: set[type]) -> np.ndarray:
    """A list of numbers as an array of the type that it has in a file."""
    if kinds == {bool}:
        return np.array(items)
    if kinds == {int}:
        small = all(-(1 << 31) <= item < 1 << 31 for item in items)
        return np.array(items, np.int32 if small else np.int64)
    if kinds <= {int, float}:
        return np.array(items, np.float32)
    raise ValueError(f"metadata {key} is a list of {', '.join(sorted(k.__name__ for k in kinds))}; allowed is one kind")
