"""What a function reaches: whether it acts on arrays alone, so that a captured graph repeats all that it does.

A function that a graph is captured with is called once. So whatever it does beside launching on the device would be
done once as well: appending to a list, counting, printing, reading a value. It is captured only where its code shows
that it does nothing of that kind; all else is called at every step.

What code may be made of is listed here, and anything else is taken for an effect: straight-line code, without
branches, loops, and assignments outside of the function; names of arrays' attributes and functions; ops of rocforge;
numbers, and arrays on the device. Lists, tuples other than an index, and arrays on the host are not among them, since
they would be copied to the device as they are while the graph is captured.
"""

from __future__ import annotations

import builtins
import dis
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from numbers import Number
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.quant import QuantizedArray

_NAMES = """
    T all any argmax argmin astype broadcast_to clip copy cumsum diagonal dot dtype e einsum empty_like expand_dims eye
    float16 float32 float64 full full_like inf int32 int64 lengths linalg max mean min moveaxis nan ndim newaxis norm
    ones ones_like outer pi positions prod query_starts ravel reshape roll shape size squeeze std sum swapaxes tensordot
    transpose tril triu var view where zeros zeros_like
"""
ARRAY_NAMES = frozenset([*_NAMES.split(), *(name for name, value in vars(np).items() if isinstance(value, np.ufunc))])
"""Attributes of arrays, of batches, and of the modules numpy and cupy, that launch on a device or look at shapes."""

_BUILTINS = (len, slice, abs, get_array_module)
_OPCODES = """
    BINARY_ADD BINARY_FLOOR_DIVIDE BINARY_MATRIX_MULTIPLY BINARY_MODULO BINARY_MULTIPLY BINARY_OP BINARY_POWER
    BINARY_SLICE BINARY_SUBSCR BINARY_SUBTRACT BINARY_TRUE_DIVIDE BUILD_SLICE BUILD_TUPLE CALL CALL_FUNCTION
    CALL_FUNCTION_KW CALL_KW CALL_METHOD COMPARE_OP COPY COPY_FREE_VARS DUP_TOP_TWO INPLACE_ADD INPLACE_MULTIPLY
    INPLACE_SUBTRACT INPLACE_TRUE_DIVIDE KW_NAMES LOAD_ATTR LOAD_CONST LOAD_DEREF LOAD_FAST LOAD_FAST_BORROW
    LOAD_FAST_BORROW_LOAD_FAST_BORROW LOAD_FAST_LOAD_FAST LOAD_GLOBAL LOAD_METHOD LOAD_SMALL_INT NOP POP_TOP PRECALL
    RESUME RETURN_CONST RETURN_VALUE ROT_THREE ROT_TWO STORE_FAST STORE_FAST_LOAD_FAST STORE_FAST_STORE_FAST
    STORE_SLICE STORE_SUBSCR SWAP UNARY_INVERT UNARY_NEGATIVE
"""
"""Of all versions of Python from 3.10 on."""
_ALLOWED = frozenset(_OPCODES.split())
_UNUSED = frozenset(["CACHE", "EXTENDED_ARG", "PUSH_NULL"])
"""Opcodes that stand between two others and do nothing that matters here."""


class Reference(NamedTuple):
    """A name that code reads outside of itself, and the attributes that it then takes."""

    name: str
    attributes: tuple[str, ...]


def reached(function: Callable[..., Any]) -> list[Any] | None:
    """What a function computes with beside its arguments, as it is now; None: it may do more than launch on a device.

    While all of it is the same, a graph that was captured with the function does what the function would.
    """
    found: list[Any] = []
    return found if _acts_on_arrays(function, found) else None


def same_reach(one: list[Any] | None, other: list[Any] | None) -> bool:
    """Whether two functions' reach is of the same objects; that of one which may do more is never the same."""
    if one is None or other is None:
        return False
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _acts_on_arrays(value: Any, found: list[Any]) -> bool:
    """Whether computing with a value, or calling it, does no more than launch on a device; it is added to `found`."""
    if any(value is other for other in found):
        return True
    found.append(value)
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
        return all(_acts_on_arrays(part, found) for part in parts)
    if isinstance(value, FunctionType) and not _is_known(value):
        return _code_acts_on_arrays(value, found)
    return _is_plain(value)


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, an array on a device, or a function that is known to launch on arrays."""
    if value is None or isinstance(value, (Number, str, slice)):
        return True
    if isinstance(value, QuantizedArray) or hasattr(value, "__array_interface__") or get_array_module(value) is not np:
        return get_array_module(value) is not np
    return issubclass(value, np.generic) if isinstance(value, type) else _is_known(value)


def _is_known(function: Any) -> bool:
    """Whether it is an op of rocforge, or a function of NumPy's or CuPy's, or one of Python's, that is listed here."""
    if isinstance(function, FunctionType) and function.__module__.startswith("rocforge.ops"):
        return True
    name = str(getattr(function, "__name__", None)).removeprefix("cupy_")  # which CuPy's ufuncs have
    listed = name in ARRAY_NAMES and any(getattr(module, name, None) is function for module in _array_modules())
    return listed or any(function is known for known in _BUILTINS)


def _array_modules() -> Iterator[ModuleType]:
    names = ("numpy", "numpy.linalg", "cupy", "cupy.linalg")
    return (sys.modules[name] for name in names if name in sys.modules)


def _code_acts_on_arrays(function: FunctionType, found: list[Any]) -> bool:
    references = _references(function.__code__)
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    if references is None or not all(_acts_on_arrays(value, found) for value in defaults):
        return False
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for name, attributes in references:
        try:
            value = cells[name].cell_contents if name in cells else _global(function, name)
            while attributes and isinstance(value, ModuleType):
                value, attributes = getattr(value, attributes[0]), attributes[1:]
        except (AttributeError, LookupError, ValueError):  # an error of the function's, which calling it will show
            return False
        if not _acts_on_arrays(value, found) or not ARRAY_NAMES.issuperset(attributes):
            return False
    return True


def _global(function: FunctionType, name: str) -> Any:
    scope = function.__globals__
    return scope[name] if name in scope else vars(builtins)[name]


@functools.lru_cache(maxsize=256)
def _references(code: CodeType) -> tuple[Reference, ...] | None:
    """What code reads outside of itself; None where it does something that is not listed."""
    found: list[Reference] = []
    instructions = [i for i in dis.get_instructions(code) if i.opname not in _UNUSED]
    reading = False
    for index, instruction in enumerate(instructions):
        name, argument = instruction.opname, instruction.argval
        if name not in _ALLOWED or (_makes_tuple(instruction) and not _is_index(instructions, index)):
            return None
        if name == "LOAD_CONST" and not isinstance(argument, (Number, str, slice, tuple, type(None), type(...))):
            return None
        if name in ("LOAD_ATTR", "LOAD_METHOD") and reading:
            found[-1] = Reference(found[-1].name, (*found[-1].attributes, argument))
            continue
        if name in ("LOAD_ATTR", "LOAD_METHOD") and argument not in ARRAY_NAMES:
            return None
        reading = name in ("LOAD_GLOBAL", "LOAD_DEREF")
        if reading:
            found.append(Reference(argument, ()))
    return tuple(found)


def _makes_tuple(instruction: dis.Instruction) -> bool:
    """Whether it makes a tuple, other than the names of a call's arguments."""
    if instruction.opname == "BUILD_TUPLE":
        return True
    constant = instruction.opname == "LOAD_CONST" and isinstance(instruction.argval, tuple)
    return constant and not all(isinstance(part, str) for part in instruction.argval)


def _is_index(instructions: Sequence[dis.Instruction], index: int) -> bool:
    """Whether a tuple is but the index of the next instruction: one within an index would be copied to the device."""
    made = instructions[index].argval
    if isinstance(made, tuple) and any(isinstance(part, tuple) for part in made):
        return False
    rest = (i for i in instructions[index + 1 :] if i.opname not in ("COPY", "DUP_TOP_TWO"))
    used = next(rest, None)
    return used is not None and (
        used.opname in ("BINARY_SUBSCR", "STORE_SUBSCR") or used.argrepr in ("[]", "NB_SUBSCR")
    )
