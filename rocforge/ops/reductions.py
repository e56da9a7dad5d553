"""NumPy's reductions of packed weights, by tiles of rows: sums in float64, results in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops.row_tiles import row_tiles, values_of
from rocforge.ops.types import Array
from rocforge.quant import QuantizedArray

Axes = tuple[int, ...]
Partial = Callable[[Array, Any], Array]
"""(values of a tile, where in the result they go) -> what the tile gives, the reduced axes kept."""


def _reduced(rows: QuantizedArray, axes: Axes, start: float, combine: Any, partial: Partial) -> Array:
    """Rows reduced along axes, which are kept with length 1, in float64."""
    xp = get_array_module(rows.data)
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(rows.shape))
    result = xp.full(shape, start, np.float64)
    for tile in row_tiles(rows.shape):
        at = tuple(slice(None) if axis in axes else part for axis, part in enumerate(tile))
        result[at] = combine(result[at], partial(values_of(rows, tile), at))
    return result


def _sum(rows: QuantizedArray, axes: Axes, of: Partial = lambda values, at: values) -> Array:
    def partial(values: Array, at: Any) -> Array:
        return of(values, at).sum(axes, np.float64, keepdims=True)

    return _reduced(rows, axes, 0.0, np.add, partial)


def _mean(rows: QuantizedArray, axes: Axes, of: Partial = lambda values, at: values, less: float = 0) -> Array:
    return _sum(rows, axes, of) / (math.prod(rows.shape[axis] for axis in axes) - less)


def _var(rows: QuantizedArray, axes: Axes, ddof: float = 0) -> Array:
    mean = _mean(rows, axes)
    return _mean(rows, axes, lambda values, at: (values - mean[at]) ** 2, less=ddof)


def _std(rows: QuantizedArray, axes: Axes, ddof: float = 0) -> Array:
    return np.sqrt(_var(rows, axes, ddof))


def _min(rows: QuantizedArray, axes: Axes) -> Array:
    return _reduced(rows, axes, np.inf, np.minimum, lambda values, at: values.min(axes, keepdims=True))


def _max(rows: QuantizedArray, axes: Axes) -> Array:
    return _reduced(rows, axes, -np.inf, np.maximum, lambda values, at: values.max(axes, keepdims=True))


def _norm(rows: QuantizedArray, axes: Axes) -> Array:
    return np.sqrt(_sum(rows, axes, lambda values, at: np.square(values, dtype=np.float64)))


def _applied(reduction: Callable[..., Array], array: QuantizedArray, axis: Any, keepdims: bool, **options: Any) -> Any:
    """A reduction of rows, transposed or not, along NumPy's `axis`."""
    axes = _axes(array.ndim, axis)
    if array.transposed:
        result = reduction(array.T, tuple(1 - axis for axis in axes), **options).T
    else:
        result = reduction(array, axes, **options)
    return result if keepdims else result.squeeze(axes)


def _axes(ndim: int, axis: int | Sequence[int] | None) -> Axes:
    """Axes as NumPy takes them, not negative. Raises AxisError where there is no such axis."""
    given = range(ndim) if axis is None else axis if isinstance(axis, Sequence) else (axis,)
    for each in given:
        if not -ndim <= each < ndim:
            raise np.exceptions.AxisError(each, ndim)
    axes = tuple(range(ndim)[each] for each in given)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis is {axis}, which names an axis twice")
    return axes


def _as_function(reduction: Callable[..., Array]) -> Callable[..., Any]:
    """A reduction under NumPy's signature; it gives NotImplemented where it takes less than NumPy's does."""

    def function(array: Any, axis: Any = None, *rest: Any, keepdims: bool = False, **options: Any) -> Any:
        dtype = options.pop("dtype", None) or np.float32
        if rest or not isinstance(array, QuantizedArray) or not array.size or not options.keys() <= {"ddof"}:
            return NotImplemented
        return _applied(reduction, array, axis, keepdims, **options).astype(dtype)[()]

    return function


def norm(array: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """`numpy.linalg.norm`: the root of the sum of squares; NotImplemented of other orders."""
    count = len(_axes(array.ndim, axis))
    if (ord is None and (axis is None or count <= 2)) or (ord == 2 and count == 1) or (ord == "fro" and count == 2):
        return _applied(_norm, array, axis, keepdims).astype(np.float32)[()]
    return NotImplemented


def _position(name: str, extreme: Callable[..., Array]) -> Callable[..., Any]:
    """argmax or argmin, along the last axis or of all elements: the first of equals."""

    def function(array: Any, axis: Any = None, *rest: Any, **options: Any) -> Any:
        if rest or options or not array.size or array.transposed or axis not in (None, -1, array.ndim - 1):
            return NotImplemented
        if axis is None:
            of_rows = _applied(extreme, array, -1, False).reshape(-1)
            row = int(getattr(of_rows, name)())
            return row * array.shape[-1] + getattr(array.reshape(-1, array.shape[-1])[row].float32(), name)()
        xp = get_array_module(array.data)
        result = xp.empty(array.shape[:-1], np.intp)
        for tile in row_tiles(array.shape):
            result[tile] = getattr(values_of(array, tile), name)(axis=-1)
        return result[()]

    return function


REDUCTIONS: dict[Any, Callable[..., Any]] = {
    np.sum: _as_function(_sum),
    np.mean: _as_function(_mean),
    np.var: _as_function(_var),
    np.std: _as_function(_std),
    np.min: _as_function(_min),
    np.max: _as_function(_max),
    np.amin: _as_function(_min),
    np.amax: _as_function(_max),
    np.argmin: _position("argmin", _min),
    np.argmax: _position("argmax", _max),
    np.linalg.norm: norm,
}
"""By NumPy's function, what computes it; NotImplemented comes where all values are needed at once."""
