"""Kernel arguments: checks the values from Python, and converts them for the launch."""

from __future__ import annotations

import functools
import operator
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rocforge.device.params import Field, dtype_of

SCALARS_KEPT = 1024
"""Numbers whose conversion is cached, for each argument."""

Check = Callable[[Any, int], Any]
"""(value, device of the launch) -> what is passed. Raises TypeError or ValueError."""


class Arguments(Protocol):
    """How the arguments of a kernel are checked and passed."""

    def checked(self, args: Any, device: int) -> list[Any]:
        """What CuPy passes.

        Raises:
            TypeError, ValueError: an argument is wrong, which is named.
        """


class Positional:
    """Arguments one by one.

    Args:
        kinds: of each, as the signature of a Kernel has them.
        names: what the source calls them, if that is known.
    """

    def __init__(self, kinds: Sequence[str], names: Sequence[str]):
        self._checks, self._names = [check_of(kind) for kind in kinds], names

    def checked(self, args: Sequence[Any], device: int) -> list[Any]:
        """What CuPy passes for each.

        Raises:
            TypeError, ValueError: one is wrong, which is named; or their number is.
        """
        if len(args) != len(self._checks):
            raise TypeError(f"expected {len(self._checks)} arguments, got {len(args)}")
        try:
            return [check(value, device) for check, value in zip(self._checks, args, strict=True)]
        except (TypeError, ValueError) as error:
            raise type(error)(self._blame(args, device)) from error

    def _blame(self, args: Sequence[Any], device: int) -> str:
        """Which argument is wrong, and why; called after a check has failed."""
        for position, (check, value) in enumerate(zip(self._checks, args, strict=True)):
            try:
                check(value, device)
            except (TypeError, ValueError) as error:
                name = f" ({self._names[position]})" if self._names else ""
                return f"argument {position}{name}: {error}"
        return "arguments"


class Packed:
    """The fields of one struct, which is passed by value."""

    def __init__(self, fields: tuple[Field, ...]):
        self._checks = {field.name: _field_check(field) for field in fields}
        self._pack = struct.Struct(_packing(fields)).pack

    def checked(self, values: Mapping[str, Any], device: int) -> list[Any]:
        """The struct, as the one argument that CuPy passes.

        Raises:
            TypeError, ValueError: a field is wrong, missing or unknown, which is named.
        """
        if values.keys() != self._checks.keys():
            wrong = sorted(values.keys() ^ self._checks.keys())
            raise TypeError(f"expected {', '.join(self._checks)}; missing or unknown: {', '.join(wrong)}")
        packed: list[int | float] = []
        for name, check in self._checks.items():
            try:
                packed += check(values[name], device)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {error}") from error
        return [np.void(self._pack(*packed))]


FieldCheck = Callable[[Any, int], Sequence[Any]]
"""As Check, of a field: the numbers that are packed for it."""


def _field_check(field: Field) -> FieldCheck:
    if field.parts:
        one = _struct_check(field.parts)
        return _array_of_structs(one, field.length) if field.length else one
    check = check_of(field.kind)
    if "*" not in field.kind:
        return lambda value, device: (check(value, device),)
    return lambda value, device: (check(value, device) if value is None else check(value, device).data.ptr,)


def _struct_check(parts: tuple[Field, ...]) -> FieldCheck:
    """Of a sequence of the values of all its fields, in order."""
    checks = [(part.name, _field_check(part)) for part in parts]

    def check(values: Sequence[Any], device: int) -> list[Any]:
        if len(values) != len(checks):
            raise TypeError(f"expected {len(checks)} fields, got {len(values)}")
        packed: list[Any] = []
        for (name, check), value in zip(checks, values, strict=True):
            try:
                packed += check(value, device)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {error}") from error
        return packed

    return check


def _array_of_structs(one: FieldCheck, count: int) -> FieldCheck:
    def check(values: Sequence[Any], device: int) -> list[Any]:
        if len(values) != count:
            raise TypeError(f"expected {count} structs, got {len(values)}")
        packed: list[Any] = []
        for number, value in enumerate(values):
            try:
                packed += one(value, device)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{number}: {error}") from error
        return packed

    return check


def _packing(fields: tuple[Field, ...]) -> str:
    """The format by which the struct module lays out the numbers of these fields as C does."""
    parts, end, dtype = ["="], 0, dtype_of(fields)
    for offset, leaf in _leaves(dtype, 0):
        parts.append("x" * (offset - end) + leaf.char.replace("l", "q").replace("L", "Q"))
        end = offset + leaf.itemsize
    return "".join(parts) + "x" * (dtype.itemsize - end)


def _leaves(dtype: np.dtype, start: int) -> Iterator[tuple[int, np.dtype]]:
    """Where each number of a struct lies, and its type."""
    if dtype.fields is not None:
        for part, offset, *_ in dtype.fields.values():
            yield from _leaves(part, start + offset)
    elif dtype.subdtype is not None:
        one, shape = dtype.subdtype
        for i in range(shape[0]):
            yield from _leaves(one, start + i * one.itemsize)
    else:
        yield start, dtype


def check_of(kind: str) -> Check:
    """A function that checks an argument of a kind, as `Kernel` describes them, and makes it what CuPy passes."""
    name, star, optional = kind.partition("*")
    if star:
        return _array_check(None if name == "void" else np.dtype(name), optional == "?")
    scalar = np.dtype(name).type
    whole = issubclass(scalar, np.integer)
    number = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    usual: type = int if whole else float
    seen: dict[Any, Any] = {}

    def check(value: Any, device: int) -> Any:
        known = seen.get(value) if type(value) is usual else None
        if known is not None:
            return known
        if not isinstance(value, number) or isinstance(value, bool):
            raise TypeError(f"expected {name}, got {type(value).__name__} ({value!r})")
        try:
            known = scalar(value)
        except OverflowError as error:
            raise ValueError(str(error)) from None
        if type(value) is usual and len(seen) < SCALARS_KEPT and (whole or value):  # -0.0 equals 0.0
            seen[value] = known
        return known

    return check


@functools.cache
def _contiguity(kind: type) -> Callable[[Any], bool] | None:
    """The C-contiguity test of a CuPy array class; None for any other class.

    `flags` is a new object each time, which takes longer than all other checks together.
    """
    if kind.__module__.partition(".")[0] != "cupy":
        return None
    return operator.attrgetter("_c_contiguous" if hasattr(kind, "_c_contiguous") else "flags.c_contiguous")


def _array_check(dtype: np.dtype | None, optional: bool) -> Check:
    null = np.uint64(0)

    def check(value: Any, device: int) -> Any:
        if value is None and optional:
            return null
        kind: Any = type(value)
        is_contiguous = _contiguity(kind)
        if is_contiguous is None:
            raise TypeError(f"expected a CuPy array of {dtype or 'any dtype'}, got {type(value).__name__}")
        if dtype is not None and value.dtype is not dtype and value.dtype != dtype:
            raise TypeError(f"expected an array of {dtype}, got {value.dtype}")
        if not is_contiguous(value):
            raise ValueError(f"expected a C-contiguous array; this one of shape {value.shape} is not")
        if value.data.device_id != device:
            there = value.data.device_id
            raise ValueError(
                f"expected an array on gpu:{device}, the current device, got one on gpu:{there}; "
                f'`with rf.Stream("gpu:{there}")` makes that one current'
            )
        return value

    return check
