"""GGUF files, and split sets of them, as a read-only mapping of tensor names to memory-mapped arrays."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, KeysView, Mapping
from mmap import mmap
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gguf import GGMLQuantizationType

from rocforge import html
from rocforge.errors import GGUFError, UnsupportedModelError
from rocforge.formats import byteorder
from rocforge.formats.blocks import QTYPES, row_nbytes
from rocforge.gguf.header import Header, TensorInfo, read_header
from rocforge.quant import QuantizedArray

_DTYPES = {"F32": "f4", "F16": "f2", "F64": "f8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8"}

_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_REPR_ROWS, _HTML_ROWS = 20, 400
"""Tensors that are shown, at most."""


def open_gguf(path: str | os.PathLike[str], *more: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF file, version 2 or 3, of either byte order; tensor data is mapped, not read.

    Any member of a split set (`name-00001-of-00003.gguf`) opens the whole set, found by name beside it. `more` gives
    the other members, in any order, where their names do not follow that pattern.

    Raises:
        GGUFError: the file is malformed (the message names the field and its byte offset), or a set is incomplete.
        OSError: the file cannot be opened.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    >>> file = rf.open_gguf("model.gguf")
    >>> file["blk.0.attn_q.weight"]
    QuantizedArray(shape=(512, 512), qtype=Q8_0, 8.5 bits per element)
    >>> file.metadata["llama.block_count"]
    4
    """
    header = read_header(Path(path))
    others = [Path(p) for p in more] or _other_members(header)
    return GGUFFile(_in_order([header, *map(read_header, others)]))


class Tensors(Protocol):
    """Arrays by name, and what is said of them: an open file, or what stands for one.

    Attributes:
        metadata: as a GGUFFile has it.
    """

    @property
    def metadata(self) -> dict[str, Any]: ...

    def __getitem__(self, name: str, /) -> Any: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...


class GGUFFile(Mapping[str, Any]):
    """An open GGUF file or split set: tensor name -> array, in file order. `open_gguf` makes one.

    `f[name]` is a read-only NumPy array for F32, F16, F64, I8, I16, I32 and I64, and a QuantizedArray for BF16 and
    every block format; both are views of the mapped file, or byte-swapped copies if it is big-endian. Shapes are
    NumPy's: GGUF's dimensions reversed. An unknown name raises KeyError, an unsupported tensor type
    UnsupportedModelError, and any tensor of a closed file ValueError.

    Attributes:
        metadata: dict of the key-value pairs (of a split set, the first member's): int, float, bool, str, list[str],
            1-D NumPy arrays for arrays of numbers and bools, lists of these for arrays of arrays. Bytes of a string
            that are not UTF-8 are lone surrogates; `s.encode("utf-8", "surrogateescape")` restores them. It remembers
            how the file has them; see KeyValues.
        version: 2 or 3.
        byteorder: "little" or "big", as the file (of a split set, the first member) is written.
        paths: the files, in order.

    The files must not shrink while they are open: reading a page that is gone kills the process (SIGBUS).

    >>> with rf.open_gguf("model.gguf") as file:
    ...     print(len(file), file.version, list(file)[:2])
    38 3 ['token_embd.weight', 'blk.0.attn_norm.weight']
    """

    def __init__(self, headers: list[Header]):
        first = headers[0]
        self.metadata: dict[str, Any] = first.metadata
        self.version, self.byteorder = first.version, first.byteorder
        self.paths = [header.path for header in headers]
        self._infos: dict[str, TensorInfo] = {}
        for header in headers:
            for name, info in header.tensors.items():
                if name in self._infos:
                    raise GGUFError(f"{header.path}: tensor {name!r} is also in {self._infos[name].path}")
                self._infos[name] = info
        self._buffers = {header.path: header.buffer for header in headers}
        self._closed = False

    def __getitem__(self, name: str) -> Any:
        info = self.tensor_info(name)
        if self._closed:
            raise ValueError(f"cannot read {name!r}: {self.paths[0]} is closed")
        return _read_tensor(info, self._buffers[info.path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def keys(self) -> KeysView[str]:
        """The tensors' names, in file order; they print as a dict's keys do.

        >>> "output_norm.weight" in rf.open_gguf("model.gguf").keys()
        True
        """
        return self._infos.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def tensor_info(self, name: str) -> TensorInfo:
        """Where tensor `name` lies: file, absolute offset and bytes, with its shape and type.

        >>> rf.open_gguf("model.gguf").tensor_info("output_norm.weight").shape
        (512,)
        """
        try:
            return self._infos[name]
        except KeyError:
            near = difflib.get_close_matches(str(name), self._infos, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise KeyError(f"no tensor {name!r} in {self.paths[0]}{hint}") from None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors (those of unknown type count nothing)."""
        return sum(info.nbytes or 0 for info in self._infos.values())

    def close(self) -> None:
        """Close the files; arrays taken from them stay valid, and the last one unmaps its file.

        >>> file = rf.open_gguf("model.gguf")
        >>> weight = file["output_norm.weight"]
        >>> file.close()
        >>> weight.shape
        (512,)
        """
        self._buffers, self._closed = {}, True

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        """One line about the file, then a table of the tensors, shortened in its middle."""
        return "\n".join([self._title(), *_lines(_rows(list(self._infos.values()), _REPR_ROWS))])

    def _repr_html_(self) -> str:
        head, *rows = _rows(list(self._infos.values()), _HTML_ROWS)
        metadata = [(_printable(key), _shortened(value)) for key, value in self.metadata.items()]
        return html.details(
            html.code(self._title()),
            html.details(f"metadata ({len(metadata)})", html.table(metadata)),
            html.details(f"tensors ({len(self)})", html.table(rows, head, numbers=1)),
            open=True,
        )

    def _title(self) -> str:
        architecture, name = (_printable(self.metadata.get(f"general.{key}", "")) for key in ("architecture", "name"))
        files = f", {len(self.paths)} files" if len(self.paths) > 1 else ""
        title = " ".join(filter(None, ["GGUF", architecture, name and f"'{name}'"]))
        return f"{title}: {len(self)} tensors, {self.nbytes:,} bytes{files}{', closed' if self._closed else ''}"


def _other_members(header: Header) -> list[Path]:
    """The other files of the split set that `header` belongs to; [] for a single file."""
    count, number = _split_place(header)
    if count == 1:
        return []
    match = _SPLIT_NAME.fullmatch(header.path.name)
    if not match or (int(match["number"]), int(match["count"])) != (number + 1, count):
        expected = f"-{number + 1:05}-of-{count:05}.gguf"
        problem = f"this file's name should end in {expected}; or pass the whole set: open_gguf(first, *others)"
        raise header.key_error("split.count", problem)
    paths = []
    for i in range(count):
        path = header.path.with_name(f"{match['stem']}-{i + 1:05}-of-{count:05}.gguf")
        if not path.exists():
            raise header.key_error("split.count", f"the set has {count} files, but {path} is missing")
        paths.append(path)
    return paths[:number] + paths[number + 1 :]


def _split_place(header: Header) -> tuple[int, int]:
    """How many files make the set of `header`, and which of them it is, counted from 0."""
    count, number = header.integer("split.count", 1) or 1, header.integer("split.no", 0)
    if not 0 <= number < count:
        raise header.key_error("split.no", f"is {number}; allowed are 0 to {count - 1}")
    return count, number


def _in_order(headers: list[Header]) -> list[Header]:
    """The members of a set by split.no, checked: complete, consistent, with all tensors."""
    by_number: dict[int, Header] = {}
    for header in headers:
        count, number = _split_place(header)
        if count != len(headers):
            raise header.key_error("split.count", f"the set has {count} files, but {len(headers)} were given")
        if number in by_number:
            raise header.key_error("split.no", f"{number} is also that of {by_number[number].path}")
        by_number[number] = header
    total = sum(len(header.tensors) for header in headers)
    for header in headers:
        expected = header.integer("split.tensors.count", total)
        if expected != total:
            raise header.key_error("split.tensors.count", f"{expected}, but there are {total} tensors")
    return [by_number[number] for number in sorted(by_number)]


def _read_tensor(info: TensorInfo, buffer: mmap) -> Any:
    """The array of one tensor: a view of `buffer`, or a copy in native byte order of a big-endian file."""
    qtype, nbytes, is_big = info.qtype, info.nbytes, info.byteorder == "big"
    if not isinstance(qtype, GGMLQuantizationType) or nbytes is None or qtype.name not in {*_DTYPES, *QTYPES}:
        problem = f"has type {getattr(qtype, 'name', qtype)}, which is not supported; supported are"
        raise UnsupportedModelError(f"tensor {info.name!r} {problem} {', '.join([*_DTYPES, *QTYPES])}")
    if code := _DTYPES.get(qtype.name):
        dtype = np.dtype((">" if is_big else "<") + code)
        array = np.frombuffer(buffer, dtype, nbytes // dtype.itemsize, info.offset).reshape(info.shape)
        return _read_only(array.astype(dtype.newbyteorder("="))) if is_big else array
    shape = info.shape or (1,)
    data = np.frombuffer(buffer, np.uint8, nbytes, info.offset)
    if is_big:
        data = _read_only(_swapped(data, qtype, info.name))
    return QuantizedArray(data.reshape(*shape[:-1], row_nbytes(shape[-1], qtype)), shape, qtype)


def _swapped(data: np.ndarray, qtype: GGMLQuantizationType, tensor: str) -> np.ndarray:
    """Packed blocks in native byte order, as a copy."""
    if qtype.name not in byteorder.FIELDS:
        problem = f"big-endian {qtype.name} is not supported; supported are {', '.join([*_DTYPES, *byteorder.FIELDS])}"
        raise UnsupportedModelError(f"tensor {tensor!r}: {problem}")
    return byteorder.swapped(data, qtype)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _printable(text: Any) -> str:
    """`text` without line breaks, control characters or lone surrogates."""
    text = str(text)
    return text if text.isprintable() else ascii(text)[1:-1]


def _rows(infos: list[TensorInfo], most: int) -> list[tuple[str, str, str, str]]:
    """Name, shape, type and bytes of tensors, under a head, without those in the middle where there are more."""
    rows = [("name", "shape", "type", "bytes")]
    for info in infos:
        nbytes = "?" if info.nbytes is None else f"{info.nbytes:,}"
        rows.append((_printable(info.name), str(info.shape), getattr(info.qtype, "name", str(info.qtype)), nbytes))
    left_out = len(infos) - most
    if left_out <= 0:
        return rows
    half = most // 2
    return [*rows[: half + 1], (f"... {left_out} more ...", "", "", ""), *rows[-half:]]


def _lines(rows: list[tuple[str, str, str, str]]) -> list[str]:
    """Aligned lines."""
    name, shape, qtype, size = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [f"  {a:{name}}  {b:{shape}}  {c:{qtype}}  {d:>{size}}" for a, b, c, d in rows]


def _shortened(value: Any) -> str:
    """A value of the metadata in a line."""
    if isinstance(value, (list, np.ndarray)):
        first = ", ".join(_printable(item) for item in value[:4])
        value = f"[{first}{', ...' if len(value) > 4 else ''}]" + (f" ({len(value):,})" if len(value) > 4 else "")
    text = _printable(value)
    return text if len(text) <= 120 else text[:117] + "..."
