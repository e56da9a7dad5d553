"""What ops ask of their arguments, alike on the host and on a device: kernels read by the shapes that they are told."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.types import Array, Floats, Weight
from rocforge.quant import QuantizedArray

_modules: dict[type, ModuleType] = {}
"""By class of array, the module that computes on it. Kept, since each op asks for each array."""
_NO_NUMBERS = "cOSUMm"
"""Kinds of dtype that ops do not take: complex numbers, objects, strings and times."""


def operands(op: str, packable: str = "", /, **arrays: Any) -> tuple[Any, ...]:
    """The module, numpy or cupy, that computes on all of the arrays, and the arrays, in order.

    Numbers, lists and what else `numpy.asarray` takes become arrays on the side of the others.

    Args:
        op: its name, for errors.
        packable: the name of the argument that may be a QuantizedArray, where there is one.
        arrays: the first one has to be there; others may be None.

    Raises:
        TypeError: one is not of numbers, or packed where it cannot be; or some lie on the host and some on a device.
    """
    found: ModuleType | None = None
    for name, array in arrays.items():
        if array is None and found is not None:
            continue
        kind = type(array)
        module = _modules.get(type(array.data) if kind is QuantizedArray and name == packable else kind)
        if (
            module is None
            or (module is not found and found is not None)
            or (kind is not PackedOperand and array.dtype.kind in _NO_NUMBERS)
        ):
            return _converted(op, packable, arrays)
        found = module
    return (found, *arrays.values())


def _converted(op: str, packable: str, arrays: dict[str, Any]) -> tuple[Any, ...]:
    """What `operands` gives, where not all are arrays, or of a class that has not come before."""
    sides: dict[str, list[str]] = {"NumPy": [], "CuPy": []}
    found: ModuleType = np
    for name, array in arrays.items():
        if (module := _module_of(array)) is not None:
            found = module
            sides["NumPy" if module is np else "CuPy"].append(name)
    if all(sides.values()):
        told = [f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {side}'s" for side, names in sides.items()]
        raise TypeError(f"{op}: {', '.join(told)}; rf.to_device moves an array to the side of the others")
    first = next(iter(arrays))
    return (
        found,
        *(
            None if array is None and name != first else _as_array(op, name, array, found, name == packable)
            for name, array in arrays.items()
        ),
    )


def _module_of(array: Any) -> ModuleType | None:
    """The module whose array, packed or not, this is; None where it is no array's, or a scalar's."""
    kind = type(array.data if isinstance(array, QuantizedArray) else array)
    if kind not in _modules:
        cupy: Any = sys.modules.get("cupy")
        if issubclass(kind, np.ndarray):
            _modules[kind] = np
        elif kind is PackedOperand or (hasattr(cupy, "ndarray") and issubclass(kind, cupy.ndarray)):
            _modules[kind] = cupy
    return _modules.get(kind)


def _as_array(op: str, name: str, value: Any, module: ModuleType, packable: bool) -> Any:
    if isinstance(value, QuantizedArray):
        if not packable:
            raise TypeError(
                f"{op}: {name} is a QuantizedArray of shape {value.shape} in {value.qtype.name}; allowed are floats, "
                "which its .dequantize() gives"
            )
        return value
    if isinstance(value, PackedOperand):
        return value
    array = value
    if _module_of(value) is None:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{op}: {name} is no array of numbers: {error}") from None
        if array.dtype == np.float64:  # what floats of Python become; and what nothing does, though ids may be none
            array = array.astype(np.float32 if array.size else np.intp)
    if array.dtype.kind in _NO_NUMBERS:
        what = f"an array of {array.dtype}" if array is value else f"of type {type(value).__name__}"
        raise TypeError(f"{op}: {name} is {what}; allowed are real numbers, and lists and arrays of them")
    return array if array is value else module.asarray(array)


def host_floats(op: str, x: Array | PackedOperand) -> Floats:
    """A NumPy array as float32. Raises TypeError where x is packed for a device."""
    if isinstance(x, PackedOperand):
        raise TypeError(f"{op}: x is packed for a device, and the others are NumPy's")
    floats: Floats = x.astype(np.float32, copy=False)
    return floats


def check_shape(op: str, name: str, array: Array, shape: tuple[int, ...]) -> None:
    """Raises ValueError where an array is there and not of that shape."""
    if array is not None and array.shape != shape:
        raise ValueError(f"{op}: {name} has the shape {array.shape}; allowed is {shape}")


def float32_of(op: str, name: str, value: Any) -> np.float32:
    """A number as float32. Raises TypeError where it is none."""
    if not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{op}: {name} is {value!r}; allowed is a number")
    return np.float32(value)


def check_out(op: str, out: Any) -> None:
    """Raises TypeError where a result cannot be written there."""
    if out is not None and _module_of(out) is None:
        raise TypeError(f"{op}: out is of type {type(out).__name__}; allowed is an array of float32")


def check_axes(op: str, name: str, array: Array, axes: str) -> None:
    """Raises ValueError where an array has not as many axes as are named in `axes`, "rows, columns" say."""
    if array is None or array.ndim != axes.count(",") + 1:
        what = "None" if array is None else f"of shape {array.shape}"
        raise ValueError(f"{op}: {name} is {what}; allowed is an array ({axes})")


def check_row(op: str, x: Array, **arrays: Array) -> None:
    """Raises ValueError where x has no rows, or one of the arrays that there are not the shape of one."""
    row = x.shape[-1:]
    if not row:
        raise ValueError(f"{op}: x is a number; allowed are arrays of shape (..., n)")
    for name, array in arrays.items():
        if array is not None and array.shape != row:
            raise ValueError(
                f"{op}: a {name} of shape {array.shape} does not fit x of shape {x.shape}; allowed is {row}"
            )


def check_integers(op: str, name: str, array: Array) -> None:
    """Raises TypeError where an array is not of integers."""
    if array.dtype.kind not in "iu":
        raise TypeError(f"{op}: {name} are {array.dtype}; allowed are integers")


def check_matrix(op: str, name: str, array: Array) -> None:
    """Raises ValueError where an array, packed or not, is no matrix whose rows lie one after another."""
    if array is None or array.ndim != 2:
        check_axes(op, name, array, "rows, columns")
    if type(array) is QuantizedArray and array.transposed:
        raise ValueError(f"{op}: {name} is the transpose of packed rows; allowed are the rows")


def check_sums(x: Array, weights: Sequence[Weight], biases: Sequence[Array], residual: Array = None) -> None:
    """Raises ValueError where x, a bias or the first one's residual does not fit a weight."""
    *leading, columns = x.shape or (0,)
    for weight, bias in zip(weights, biases, strict=True):
        shape = weight.shape
        if shape[1] != columns:
            raise ValueError(
                f"linear: x of shape {x.shape} does not fit a weight of shape {shape}; allowed is (..., {shape[1]})"
            )
        if bias is not None and bias.shape != shape[:1]:
            fit = f"does not fit a weight of shape {shape}; allowed is {shape[:1]}"
            raise ValueError(f"linear: a bias of shape {bias.shape} {fit}")
    if residual is not None:
        check_shape("linear", "residual", residual, (*leading, weights[0].shape[0]))
