"""What ops ask of their arguments, alike on the host and on a device: kernels read by the shapes that they are told."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.types import Array, Weight
from rocforge.quant import QuantizedArray


def module_of(op: str, **arrays: Array) -> ModuleType:
    """The module, numpy or cupy, that computes on all of the arrays; those that are None are left out.

    Raises:
        TypeError: one is no array, or some lie on the host and some on a device.
    """
    found = None
    for array in arrays.values():
        if array is not None:
            kind = type(array)
            module = _module_of(type(array.data) if kind is QuantizedArray else kind)
            if module is None or (module is not found and found is not None):
                raise TypeError(f"{op}: {_blame(arrays)}")
            found = module
    return found


@functools.cache
def _module_of(kind: type) -> ModuleType | None:
    if issubclass(kind, (np.ndarray, np.generic)):
        return np
    cupy = sys.modules.get("cupy")
    on_device = kind is PackedOperand or (hasattr(cupy, "ndarray") and issubclass(kind, cupy.ndarray))
    return cupy if on_device else None


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
