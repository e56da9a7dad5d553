"""The structs that kernels take by value, read from their sources: one definition for host and device.

    struct ScaleParams {
        float* out;
        RF_NULLABLE const float* bias;  // None gives a null pointer
        u32 size;
        Part parts[3];  // another struct of the source
    };

`assertions` appends static_asserts to a source, so that the compiler checks the host's layout.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_SCALARS = {"i32": "int32", "u32": "uint32", "i64": "int64", "u64": "uint64", "float": "float32", "double": "float64"}
_TARGETS = {**_SCALARS, "u8": "uint8", "f16": "float16", "void": "void"}
_FIELD = re.compile(r"(RF_NULLABLE\s+)?(?:const\s+)?(\w+)\b(.+)", re.S)
_DECLARED = re.compile(r"\s*(\*?)\s*(\w+)\s*(?:\[(\d+)\])?\s*")
_KEPT = 512
"""Answers that are kept of each function: to search a source takes milliseconds, and it has many variants."""


class Field(NamedTuple):
    """A field of a struct.

    Attributes:
        name: in the struct.
        kind: as in the signature of a Kernel, "float32*?" or "uint32"; empty for another struct.
        parts: the fields of that other struct.
        length: of an array of it; 0 where it is none.
    """

    name: str
    kind: str
    parts: tuple[Field, ...] = ()
    length: int = 0

    @property
    def dtype(self) -> np.dtype:
        """As the compiler lays it out; a pointer is a uint64."""
        if self.parts:
            one = dtype_of(self.parts)
            return np.dtype((one, (self.length,))) if self.length else one
        return np.dtype(np.uint64 if "*" in self.kind else self.kind)


def dtype_of(fields: tuple[Field, ...]) -> np.dtype:
    """A struct of those fields, aligned as C aligns them."""
    return np.dtype([(field.name, field.dtype) for field in fields], align=True)


@functools.lru_cache(_KEPT)
def struct_fields(text: str, name: str) -> tuple[Field, ...]:
    """The fields of a struct of a source.

    Args:
        text: of the source, with what it includes.
        name: of the struct.

    Raises:
        ValueError: there is no such struct, or a field is none that both sides know.
    """
    found = re.search(rf"\bstruct {name} \{{(.*?)^\}};", text, re.S | re.M)
    if found is None:
        raise ValueError(f"the source has no struct {name}")
    body = re.sub(r"//[^\n]*", "", found[1])
    return tuple(field for part in body.split(";") if part.strip() for field in _fields(text, name, part.strip()))


def _fields(text: str, struct: str, declaration: str) -> Iterator[Field]:
    """Of a declaration, which may be of several names."""
    whole = _FIELD.fullmatch(declaration)
    nullable, kind, names = whole.groups() if whole else (None, "", "")
    for declared in names.split(","):
        match = _DECLARED.fullmatch(declared)
        star, name, length = match.groups() if match else ("", "", None)
        if name and (kind in _TARGETS if star else kind in _SCALARS and not length):
            yield Field(name, (_TARGETS if star else _SCALARS)[kind] + star + ("?" if nullable else ""))
        elif name and not star and kind not in _TARGETS:
            yield Field(name, "", struct_fields(text, kind), int(length or 0))
        else:
            raise ValueError(f"struct {struct}: {declaration!r} is not a field of a supported type")


@functools.lru_cache(_KEPT)
def kernel_structs(text: str) -> dict[str, str]:
    """The kernels of a source that take one struct, by name without prefix, and its name."""
    return dict(re.findall(r"\brf_(\w+)\((\w+) \w+\)\s*\{", text))


@functools.lru_cache(_KEPT)
def assertions(text: str) -> str:
    """C++ static_asserts that the compiler's layout of a source's structs is that of `dtype_of`."""
    lines = []
    for name in sorted(set(kernel_structs(text).values())):
        dtype = dtype_of(struct_fields(text, name))
        lines.append(f'static_assert(sizeof({name}) == {dtype.itemsize}, "{name} as the host lays it out");')
        lines += [
            f'static_assert(RF_OFFSET({name}, {field}) == {offset}, "{name}.{field} as on the host");'
            for field, (_, offset, *_) in (dtype.fields or {}).items()
        ]
    return "\n".join(["", "namespace rocforge {", *lines, "}", ""]) if lines else ""
