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


def module_of(op: str, **arrays: Array) -> ModuleType:
    """The module, numpy or cupy, that computes on all of the arrays, of which those that are None are left out.

    Raises:
        TypeError: one is no array, or some lie on the host and some on a device.
    """
    found: ModuleType | None = None
    for array in arrays.values():
        if array is not None:
            kind = type(array)
            module = _module_of(type(array.data) if kind is QuantizedArray else kind)
            if module is None or (module is not found and found is not None):
                raise TypeError(f"{op}: {_blame(arrays)}")
            found = module
    return np if found is None else found


_modules: dict[type, ModuleType | None] = {}


def _module_of(kind: type) -> ModuleType | None:
    """The module whose arrays are of a class; None where it is no array's. Kept, since each op asks for each array."""
    if kind not in _modules:
        cupy: Any = sys.modules.get("cupy")
        if issubclass(kind, (np.ndarray, np.generic)):
            _modules[kind] = np
        else:
            on_device = kind is PackedOperand or (hasattr(cupy, "ndarray") and issubclass(kind, cupy.ndarray))
            _modules[kind] = cupy if on_device else None
    return _modules[kind]


def _blame(arrays: dict[str, Array]) -> str:
    """Which of the arrays are none, or on different sides."""
    sides: dict[str, list[str]] = {"NumPy": [], "CuPy": []}
    for name, array in arrays.items():
        if array is not None:
            module = _module_of(type(array.data if isinstance(array, QuantizedArray) else array))
            if module is None:
                return f"{name} is of type {type(array).__name__}; allowed are arrays, as np.asarray makes them"
            sides["NumPy" if module is np else "CuPy"].append(name)
    told = [f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {side}'s" for side, names in sides.items()]
    return f"{', '.join(told)}; rf.to_device moves an array to the side of the others"


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


def check_row(op: str, x: Array, **arrays: Array) -> None:
    """Raises ValueError where one of the arrays that there are has not the shape of a row of x."""
    row = x.shape[-1:]
    for name, array in arrays.items():
        if array is not None and (array.shape != row or not row):
            raise ValueError(f"{op}: a {name} of shape {array.shape} does not fit x of shape {x.shape}")


def check_integers(op: str, name: str, array: Array) -> None:
    """Raises TypeError where an array is not of integers."""
    if array.dtype.kind not in "iu":
        raise TypeError(f"{op}: {name} are {array.dtype}; allowed are integers")


def check_matrix(op: str, name: str, array: Array) -> None:
    """Raises ValueError where an array, packed or not, is no matrix whose rows lie one after another."""
    if array.ndim != 2:
        raise ValueError(f"{op}: {name} has the shape {array.shape}; allowed is a matrix (rows, columns)")
    if type(array) is QuantizedArray and array.transposed:
        raise ValueError(f"{op}: {name} is the transpose of packed rows; allowed are the rows")


def check_sums(x: Array, weights: Sequence[Weight], biases: Sequence[Array], residual: Array = None) -> None:
    """Raises ValueError where x, a bias or the first one's residual does not fit a weight."""
    *leading, columns = x.shape or (0,)
    for weight, bias in zip(weights, biases, strict=True):
        shape = weight.shape
        if shape[1] != columns:
            raise ValueError(f"linear: x of shape {x.shape} does not fit a weight of shape {shape}")
        if bias is not None and bias.shape != shape[:1]:
            raise ValueError(f"linear: a bias of shape {bias.shape} does not fit a weight of shape {shape}")
    if residual is not None:
        check_shape("linear", "residual", residual, (*leading, weights[0].shape[0]))
