"""Edits: what takes the place of a module's output, and which modules a pattern of paths means."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Collection
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from rocforge.device.arrays import copied, get_array_module, to_device
from rocforge.nn.reach import reached
from rocforge.ops.activation import scale
from rocforge.ops.embedding import embedding
from rocforge.quant import QuantizedArray

Change: TypeAlias = Any
"""A function of a module's output (and inputs), a number, which multiplies it, or an array, which replaces it."""


def matching(paths: Collection[str], pattern: str, caller: str) -> list[str]:
    """The paths that a pattern with shell wildcards means, in their order.

    Raises:
        ValueError: none; the message names paths near it.
    """
    found = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
    if not found:
        near = difflib.get_close_matches(pattern, paths, n=4, cutoff=0.4)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f"{caller}: no module's path matches {pattern!r}{hint}; named_modules() lists the paths")
    return found


class Edit:
    """One change of one module's output.

    Args:
        path: the module's, for messages.
        change: a function, a number or an array; see `Module.edit`.
        device: where the module's arrays are.

    Attributes:
        change: as given.

    Raises:
        TypeError: change is nothing of those.
    """

    def __init__(self, path: str, change: Change, device: str):
        self.path, self.change = path, change
        self._apply: Callable[..., Any]
        if callable(change):
            self._inputs = _inputs_of(change)
            if self._inputs is not None and self._inputs < 0:
                raise TypeError(f"edit of {path}: the function takes no argument; it is called with the output")
            self._apply = self._called
        elif isinstance(change, Real):
            self._apply = lambda output, *inputs: scale(output, float(change))
        elif (array := _as_array(change)) is not None:
            self._array = to_device(array, device)
            self._apply = self._replaced
        else:
            kinds = "a function of the output, a number, which multiplies it, and an array, which replaces it"
            raise TypeError(f"edit of {path}: {change!r} is of type {type(change).__name__}; allowed are {kinds}")

    def __call__(self, output: Any, *inputs: Any) -> Any:
        """What goes on in place of the output."""
        return self._apply(output, *inputs)

    def reached(self) -> list[Any] | None:
        """What a function computes with, as it is now; None: it must be called at every step. See rocforge.nn.reach.

        Numbers, arrays and modules are captured: a module is of the tree, which notices its changes.
        """
        return [] if self._apply != self._called or hasattr(self.change, "forward") else reached(self.change)

    def _called(self, output: Any, *inputs: Any) -> Any:
        if self._inputs is not None and self._inputs > len(inputs):
            counts = f"takes {self._inputs} inputs after the output, and the module has {len(inputs)}"
            raise TypeError(f"edit of {self.path}: the function {counts}")
        changed: Any = self.change(copied(output), *inputs[: self._inputs])
        if changed is None:
            raise TypeError(f"edit of {self.path}: the function gave None; it returns the array to go on with")
        if get_array_module(changed) is not get_array_module(output) or not hasattr(changed, "dtype"):
            kinds = type(changed).__module__, type(output).__module__
            raise TypeError(f"edit of {self.path}: the function gave a {kinds[0]} array for a {kinds[1]} array")
        if changed.shape != output.shape:
            shapes = f"the shape {changed.shape} for an output of {output.shape}"
            raise ValueError(f"edit of {self.path}: the function gave {shapes}")
        return changed.astype(output.dtype, copy=False)

    def _replaced(self, output: Any, *inputs: Any) -> Any:
        array, xp = self._array, get_array_module(output)
        if array.shape == output.shape[1:]:
            return embedding(xp.zeros(len(output), np.int32), array.reshape(1, -1)).reshape(output.shape)
        try:
            return xp.broadcast_to(array, output.shape).astype(output.dtype)
        except ValueError:
            shapes = f"an array of shape {array.shape} does not broadcast to the output's {output.shape}"
            raise ValueError(f"edit of {self.path}: {shapes}") from None


def _as_array(change: Any) -> Any:
    """A copy of an array of numbers, or of lists of them, in float32, where it is; None: it is none."""
    if isinstance(change, QuantizedArray):
        return change.dequantize()
    if not hasattr(change, "shape") and not isinstance(change, (list, tuple)):
        return None
    array = np.asarray(change) if get_array_module(change) is np else change
    if array.dtype.kind not in "biuf":
        return None
    return copied(array) if array.dtype == np.float32 else array.astype(np.float32)


def _inputs_of(function: Callable[..., Any]) -> int | None:
    """How many of a module's inputs a function takes after its output: those without a default; None: all."""
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except ValueError:  # a function of C's
        return 0
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters) - 1
