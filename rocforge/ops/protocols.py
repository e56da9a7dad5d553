"""What NumPy's functions do with QuantizedArrays, through NumPy's protocols: NEP 13 (ufuncs) and NEP 18 (functions).

Products stay packed, elementwise functions and reductions go by tiles of rows, and the others get the values.

Source: https://numpy.org/neps/nep-0013-ufunc-overrides.html, https://numpy.org/neps/nep-0018-array-function-protocol.html.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops.quantized import matmul
from rocforge.ops.reductions import REDUCTIONS
from rocforge.ops.row_tiles import elementwise
from rocforge.ops.types import Array
from rocforge.quant import QuantizedArray, operator


@operator
def array_ufunc(array: QuantizedArray, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
    """`ufunc(*inputs)`, or a method of it, with the values of QuantizedArrays.

    Raises:
        TypeError: a QuantizedArray is to be written to, or arrays are on the host and on a device.
    """
    if method == "at":
        _refuse_writing(inputs[:1])
    _refuse_writing(options.get("out", ()))
    if ufunc is np.matmul and method == "__call__" and options.keys() <= {"out"}:
        return _into(matmul(*inputs), *options.get("out", ()))
    _check_side(ufunc.__name__, (inputs, options))
    plain = method == "__call__" and ufunc.nout == 1 and ufunc.signature is None
    if plain and options.keys() <= {"dtype", "casting"}:
        return _elementwise(functools.partial(ufunc, **options), inputs)
    return getattr(ufunc, method)(*_values(inputs), **_values(options))


@operator
def array_function(function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]) -> Any:
    """`function(*args, **options)` with the values of QuantizedArrays, of which as little is unpacked as can be.

    Raises:
        TypeError: a QuantizedArray is to be written to, or arrays are on the host and on a device.
    """
    if function in _WRITING:
        _refuse_writing(args[:1])
    _refuse_writing([options.get("out")])
    _check_side(function.__name__, (args, options))
    if function in _FUNCTIONS and args:
        result = _FUNCTIONS[function](*args, **options)
        if result is not NotImplemented:
            return result
    replaced = _stand_in if function in _OF_SHAPES else QuantizedArray.dequantize
    return function(*_values(args, replaced), **_values(options, replaced))


_WRITING = {np.copyto, np.put, np.place, np.putmask, np.put_along_axis, np.fill_diagonal}
"""Functions that write to their first argument."""
_OF_SHAPES = {np.shape, np.ndim, np.size, np.empty_like, np.zeros_like, np.ones_like, np.full_like, np.result_type}
"""Functions that do not look at values."""


def _refuse_writing(arrays: Sequence[Any]) -> None:
    for array in arrays:
        if isinstance(array, QuantizedArray):
            array[...] = None  # which raises the error


def _into(result: Array, out: Array = None) -> Array:
    if out is None:
        return result
    out[...] = result
    return out


def _check_side(function: str, arguments: Any) -> None:
    """Raises TypeError where some arrays, also in lists and dicts, are on the host and some on a device."""
    modules = {get_array_module(x) for x in _leaves(arguments) if isinstance(x, QuantizedArray) or np.ndim(x)}
    if len(modules) > 1:
        raise TypeError(f"numpy.{function}: some arrays are NumPy's and some CuPy's; rf.to_device moves one")


def _leaves(arguments: Any) -> Iterator[Any]:
    if isinstance(arguments, (list, tuple, dict)):
        for each in arguments.values() if isinstance(arguments, dict) else arguments:
            yield from _leaves(each)
    else:
        yield arguments


def _values(arguments: Any, replaced: Callable[[QuantizedArray], Array] = QuantizedArray.dequantize) -> Any:
    """Arguments with other arrays in place of QuantizedArrays, also of those in lists and dicts."""
    if isinstance(arguments, QuantizedArray):
        return replaced(arguments)
    if isinstance(arguments, dict):
        return {name: _values(each, replaced) for name, each in arguments.items()}
    if type(arguments) in (list, tuple):
        return type(arguments)(_values(each, replaced) for each in arguments)
    return arguments


def _stand_in(array: QuantizedArray) -> Array:
    """An array of the same shape and dtype, and no memory."""
    xp = get_array_module(array.data)
    return xp.broadcast_to(xp.zeros((), array.dtype), array.shape)


def _elementwise(function: Callable[..., Array], operands: Sequence[Any]) -> Array:
    operands = [np.asarray(x) if isinstance(x, (list, tuple)) else x for x in operands]
    shapes = [getattr(x, "shape", ()) for x in operands]
    shape = np.broadcast_shapes(*shapes)
    packed = [x for x in operands if isinstance(x, QuantizedArray)]
    if any(x.transposed or x.shape != shape for x in packed):
        return function(*_values(operands))
    return elementwise(function, operands, shape)


def _of_elements(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of elements, all of whose array arguments are positional."""

    def by_tiles(*operands: Any, **options: Any) -> Any:
        if any(isinstance(option, QuantizedArray) or np.ndim(option) for option in options.values()):
            return NotImplemented
        return _elementwise(functools.partial(function, **options), operands)

    return by_tiles


def _allclose(a: Any, b: Any, *tolerances: Any, **options: Any) -> bool:
    return bool(np.isclose(a, b, *tolerances, **options).all())


def _array_equal(a: Any, b: Any, **options: Any) -> Any:
    return bool(np.shape(a) == np.shape(b) and (a == b).all()) if not options else NotImplemented


def _dot(a: Any, b: Any, *out: Any, **options: Any) -> Any:
    """`numpy.dot`, which is `@` where b has at most two axes."""
    return matmul(a, b) if not out and not options and np.ndim(a) and np.ndim(b) in (1, 2) else NotImplemented


def _inner(a: Any, b: Any) -> Any:
    if not np.ndim(a) or np.ndim(b) not in (1, 2):
        return NotImplemented
    return matmul(a, b.T if np.ndim(b) == 2 else b)


def _einsum(subscripts: Any, *operands: Any, **options: Any) -> Any:
    """`numpy.einsum` where it is `x @ w.T` of a packed matrix, such as "td,od->to", on either side of the comma."""
    terms, arrow, result = subscripts.replace(" ", "").partition("->") if isinstance(subscripts, str) else ("", "", "")
    pairs = list(zip(terms.split(","), operands, strict=False))
    if options or not arrow or "." in terms or len(pairs) != 2 or len(operands) != 2:
        return NotImplemented
    (of_x, x), (of_w, w) = pairs if isinstance(operands[1], QuantizedArray) else pairs[::-1]
    product = w.ndim == len(of_w) == 2 and np.ndim(x) == len(of_x) == len({*of_x}) and of_w[0] not in of_x
    return matmul(x, w.T) if product and of_x[-1:] == of_w[1] and result == of_x[:-1] + of_w[0] else NotImplemented


def _joined(function: Callable[..., Any], axes_added: int) -> Callable[..., Any]:
    """A function that puts arrays together: packed ones of one kind stay packed, if their rows stay whole."""

    def joined(arrays: Sequence[Any], axis: int = 0, **options: Any) -> Any:
        first, ndim = arrays[0], np.ndim(arrays[0]) + axes_added
        alike = all(isinstance(x, QuantizedArray) and _kind(x) == _kind(first) and not x.transposed for x in arrays)
        if options or not alike or axis not in range(-ndim, ndim) or axis in (-1, ndim - 1):
            return NotImplemented
        return first.with_data(function([x.data for x in arrays], axis=axis), first.planar)

    return joined


def _kind(array: QuantizedArray) -> tuple[Any, ...]:
    return array.qtype, array.planar, array.shape[-1]


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **REDUCTIONS,
    **{function: _of_elements(function) for function in (np.isclose, np.where, np.clip, np.round)},
    np.allclose: _allclose,
    np.array_equal: _array_equal,
    np.dot: _dot,
    np.inner: _inner,
    np.einsum: _einsum,
    np.concatenate: _joined(np.concatenate, 0),
    np.stack: _joined(np.stack, 1),
    np.transpose: lambda array, axes=None: array.T if axes is None and array.ndim == 2 else NotImplemented,
    np.reshape: lambda array, *shape, **options: array.reshape(*shape) if not options else NotImplemented,
    np.copy: lambda array, *order, **options: array.copy(),
}
"""By NumPy's function, what computes it; NotImplemented comes where it takes all the values."""
