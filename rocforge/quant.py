"""QuantizedArray: a matrix kept in GGUF's packed blocks, that slices, multiplies, compares and prints like an array."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.lib.mixins import NDArrayOperatorsMixin

from rocforge import html
from rocforge.formats import blocks
from rocforge.formats.blocks import as_qtype, row_nbytes
from rocforge.row_index import row_index

_Operator = TypeVar("_Operator", bound=Callable[..., Any])
_operators: dict[str, Callable[..., Any]] = {}


def operator(function: _Operator) -> _Operator:
    """A decorator: what QuantizedArray does by ops, which stand above it, under the function's name.

    rocforge.ops has them: matmul (`@`), dequantize_on_device and to_device in `quantized`, values_at in `indexing`,
    array_ufunc and array_function in `protocols`.
    """
    _operators[function.__name__] = function
    return function


class _ArrayUfunc:
    """`__array_ufunc__` of the class, of which NumPy asks it, and of none of its instances, of which CuPy asks it.

    CuPy calls no `__array_ufunc__` but its own: where an operand has one, it would unpack all of it. Without, it hands
    `array @ quantized` to `__rmatmul__`, by `__array_priority__`.
    """

    def __get__(self, array: QuantizedArray | None, kind: type) -> Callable[..., Any]:
        if array is not None:
            raise AttributeError("__array_ufunc__")
        return _operators["array_ufunc"]


def _method(function: Any) -> Callable[..., Any]:
    """A NumPy function as a method, as arrays have it."""

    @functools.wraps(function)
    def method(self: QuantizedArray, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return method


class QuantizedArray(NDArrayOperatorsMixin):
    """An array whose last axis is packed in a GGUF block format.

    It multiplies with `@`, on either side, against ordinary arrays of its device, and gives float32. Indexing gives a
    QuantizedArray where rows stay whole, and values (float32, a NumPy or a CuPy array) where it takes a part of the
    last axis. For all else, arithmetic, comparison, NumPy's functions, it counts as its float32 values, and ordinary
    arrays come out. `x @ w.T`, `w @ x`, reductions and elementwise functions unpack a tile of rows at a time. It is
    never written to: `dequantize`, change the values, and `rf.quantize` them again.

    Args:
        data: uint8 array (NumPy or CuPy) of shape (*shape[:-1], bytes per row).
        shape: the logical shape; the last axis is a whole number of blocks.
        qtype: the block format, as in `as_qtype`.

    Attributes:
        data, shape, qtype: as given (shape of the transpose, for a transpose).
        dtype: of the values that it gives, float32.
        planar: the rows of data are planes of fields, as `to_device` makes them for a GPU's kernels, instead of
            GGUF's blocks; see rocforge.formats.planar.
        keep_float32: keep the float32 values that the first product on the CPU makes, or the first slice of several
            matrices; set by `rf.load` where memory is ample, since unpacking costs many times the product itself.
        fp16: float16 values of the rows, kept on a device beside the blocks for products of many rows, or None; set
            by `rf.load` where memory is ample.

    Example:
        >>> import numpy as np, rocforge as rf
        >>> w = rf.quantize(np.linspace(-1, 1, 4 * 64).reshape(4, 64), "Q8_0")
        >>> w
        QuantizedArray(shape=(4, 64), qtype=Q8_0, 8.5 bits per element)
        >>> w[1:3].shape, w[..., :2].dtype, (np.ones(64) @ w.T).shape
        ((2, 64), dtype('float32'), (4,))
        >>> bool(abs(w).max() <= 1), int((w > 0).sum())
        (True, 128)

    Source: the block formats of ggml (https://github.com/ggml-org/ggml), as the `gguf` package reads them.
    """

    dtype = np.dtype(np.float32)
    __array_ufunc__ = _ArrayUfunc()
    __array_priority__ = 1000
    __hash__ = None  # type: ignore[assignment]

    sum, mean, std, var = (_method(function) for function in (np.sum, np.mean, np.std, np.var))
    min, max, argmin, argmax = (_method(function) for function in (np.min, np.max, np.argmin, np.argmax))
    abs, norm, dot = (_method(function) for function in (np.abs, np.linalg.norm, np.dot))

    def __init__(self, data: Any, shape: tuple[int, ...], qtype: str | int | GGMLQuantizationType):
        self.data, self.shape, self.qtype = data, tuple(shape), as_qtype(qtype)
        self.planar = self.keep_float32 = False
        self.fp16: Any = None
        self._float32: np.ndarray | None = None
        self._joined: tuple[list[QuantizedArray], np.ndarray] | None = None
        self._transposed = False
        expected = (*self.shape[:-1], row_nbytes(self.shape[-1], self.qtype))
        if data.dtype != np.uint8 or data.shape != expected:
            raise ValueError(
                f"data of {self.qtype.name} for shape {self.shape} must be uint8 of shape {expected}, "
                f"not {data.dtype} of shape {data.shape}"
            )

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def device(self) -> str:
        """Where the blocks are: "cpu" or "gpu:N"."""
        return "cpu" if isinstance(self.data, np.ndarray) else f"gpu:{self.data.device.id}"

    @property
    def nbytes(self) -> int:
        """Bytes of the packed blocks."""
        return int(self.data.nbytes)

    @property
    def transposed(self) -> bool:
        """Whether this is the transpose of the rows that data holds."""
        return self._transposed

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the rows that data holds: that of the array, or of what it is the transpose of."""
        return self.shape[::-1] if self._transposed else self.shape

    @property
    def T(self) -> QuantizedArray:
        """The transpose of a matrix, without a copy; a single row is its own."""
        if self.ndim < 2:
            return self
        if self.ndim > 2:
            raise ValueError(f"only a matrix has a .T here, and the shape is {self.shape}; take a slice first")
        view = self._view(self.data, self.shape[::-1])
        view._float32, view._transposed = self._float32, not self._transposed
        return view

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        device = "" if self.device == "cpu" else f", {self.device}"
        bits = 8 * self.nbytes / max(self.size, 1)
        return f"QuantizedArray(shape={self.shape}, qtype={self.qtype.name}, {bits:.4g} bits per element{device})"

    def _repr_html_(self) -> str:
        rows = self.data.reshape(-1, self.data.shape[-1])[: html.CORNER]
        corner = self.with_data(rows, self.planar).dequantize()[: html.CORNER, : html.CORNER]
        return html.details(html.code(repr(self)), html.corner(corner, self.shape), open=True)

    def __getitem__(self, index: Any) -> Any:
        """By NumPy's rules: a QuantizedArray where rows stay whole, float32 values of a part of the last axis."""
        if self._transposed or (rows := row_index(index, self.ndim)) is None:
            return _operators["values_at"](self, index)
        data = self.data[rows]
        view = self._view(data, (*data.shape[:-1], self.shape[-1]))
        if self._float32 is not None or (self.keep_float32 and self.ndim > 2):
            view._float32 = self.float32()[rows]
        if self.fp16 is not None and isinstance(index, slice) and index.step in (None, 1):
            view.fp16 = self.fp16[index]
        return view

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(f"packed weights are not written to; {self._rewritten}")

    @property
    def _rewritten(self) -> str:
        return f'change its values, v = w.dequantize(), and pack them again, rf.quantize(v, "{self.qtype.name}")'

    def __iter__(self) -> Iterator[Any]:
        """The rows, or what else the first axis counts; values of a single row, and of a transpose."""
        whole = self._transposed or self.ndim == 1
        return iter(self.dequantize()) if whole else (self[i] for i in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(f"an array of shape {self.shape} is neither true nor false; ask a.any() or a.all() of one")
        return bool(self.dequantize().any())

    if not TYPE_CHECKING:  # which would then know no wrong attribute

        def __getattr__(self, name: str) -> Any:
            kind = type(self).__name__
            if not name.startswith("_") and name != "data" and hasattr(type(self.data), name):
                raise AttributeError(f"{kind} has no {name!r}; its values have it: w.dequantize().{name}")
            raise AttributeError(f"{kind!r} object has no attribute {name!r}")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """NumPy's view of it: the values, unpacked.

        Raises:
            TypeError: it is on a device, from where nothing is copied unasked; `rf.asnumpy` does.
            ValueError: a view without a copy was asked for.
        """
        if self.device != "cpu":
            raise TypeError(f"a QuantizedArray on {self.device} is no NumPy array by itself; rf.asnumpy copies it")
        if copy is False:
            raise ValueError("a QuantizedArray is unpacked to become a NumPy array, so it takes a copy")
        values: np.ndarray = self.dequantize(np.float32 if dtype is None else dtype)
        return values

    def __cupy_get_ndarray__(self) -> Any:
        """CuPy's view of it, for its own functions: the values, unpacked. Raises TypeError of one on the host."""
        if self.device == "cpu":
            raise TypeError('a QuantizedArray on the host is no CuPy array; rf.to_device(w, "gpu") copies it')
        return self.dequantize()

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _operators["array_function"](function, args, kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without values that are kept beside the blocks, perhaps with those of other arrays: they can be had again."""
        return {**vars(self), "_float32": None, "_joined": None}

    def copy(self) -> QuantizedArray:
        """A copy, packed as this one is, in memory of its own.

        >>> w = rf.quantize(np.ones((2, 32), np.float32), "Q8_0")
        >>> bool((w.copy() == w).all())
        True
        """
        copied = self.with_data(self.data.copy(), self.planar)
        copied.keep_float32 = self.keep_float32
        return copied

    def astype(self, dtype: Any) -> Any:
        """The values, unpacked, as `dequantize` gives them; `rf.quantize` packs them in another format.

        >>> rf.quantize(np.ones((2, 32), np.float32), "Q8_0").astype(np.float16).dtype
        dtype('float16')
        """
        try:
            return self.dequantize(np.dtype(dtype))
        except TypeError:
            raise TypeError(
                f'astype: {dtype!r} is no dtype; rf.quantize(w.dequantize(), "Q8_0") packs values'
            ) from None

    def reshape(self, *shape: Any) -> QuantizedArray:
        """The same rows in leading axes of other lengths, one of which may be -1.

        Raises:
            ValueError: rows would not stay whole, or their number changes.

        >>> rf.quantize(np.ones((4, 32), np.float32), "Q8_0").reshape(2, 2, 32)
        QuantizedArray(shape=(2, 2, 32), qtype=Q8_0, 8.5 bits per element)
        """
        shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if shape.count(-1) == 1 and 0 not in shape:
            shape = tuple(self.size // -math.prod(shape) if n == -1 else n for n in shape)
        if self._transposed or shape[-1:] != self.shape[-1:] or math.prod(shape) != self.size:
            of = f"the transpose of {self.stored_shape}" if self._transposed else f"{self.shape}"
            raise ValueError(
                f"{of} does not reshape to {shape}: packed rows of {self.stored_shape[-1]} stay whole; "
                "w.dequantize().reshape(...) gives the values in any shape"
            )
        return self.with_data(self.data.reshape(*shape[:-1], self.data.shape[-1]), self.planar)

    def _view(self, data: Any, shape: tuple[int, ...]) -> QuantizedArray:
        view = object.__new__(QuantizedArray)
        view.data, view.shape, view.qtype, view.planar = data, shape, self.qtype, self.planar
        view.keep_float32 = view._transposed = False
        view._float32 = view._joined = view.fp16 = None
        return view

    def dequantize(self, dtype: Any = np.float32) -> Any:
        """The values, as a new array of this shape, on the same device.

        Args:
            dtype: float32 (exact, bit-equal to the gguf package), float16 or float64.

        >>> rf.quantize(np.ones((2, 32), np.float32), "Q8_0").dequantize(np.float16).dtype
        dtype('float16')
        """
        values = self.float32()
        values = values.T if self._transposed else values
        kept = self._float32 is not None or (self.device == "cpu" and np.may_share_memory(values, self.data))
        return values.astype(dtype, copy=kept)

    def float32(self) -> Any:
        """float32 values of the stored (untransposed) rows; possibly the kept ones, so not to be written to.

        >>> rf.quantize(np.zeros((1, 32), np.float32), "Q8_0").float32().shape
        (1, 32)
        """
        if self._float32 is not None:
            return self._float32
        if self.device != "cpu":
            return _operators["dequantize_on_device"](self)
        values = blocks.dequantize(self.data, self.qtype, self.stored_shape[-1])
        if self.keep_float32:
            self._float32 = values = columns_contiguous(values)
        return values

    def __matmul__(self, other: Any) -> Any:
        """`w @ x`: w (rows, cols), x (cols,) or (..., cols, n); gives float32 (rows,) or (..., rows, n)."""
        return NotImplemented if other is None else _operators["matmul"](self, other)

    def __rmatmul__(self, other: Any) -> Any:
        """`x @ w.T`: x (..., cols), w (rows, cols); gives float32 (..., rows). Also `x @ w`, which unpacks all of w."""
        return NotImplemented if other is None else _operators["matmul"](other, self)

    def to_device(self, device: str) -> QuantizedArray:
        """This array on another device; see `rf.to_device`. On a GPU its rows are planar, where the format has that.

        >>> rf.quantize(np.zeros((1, 32), np.float32), "Q8_0").to_device("cpu").device
        'cpu'
        """
        moved: QuantizedArray = _operators["to_device"](self, device)
        return moved

    def with_data(self, data: Any, planar: bool = False) -> QuantizedArray:
        """An array of this kind in other memory: `data` holds its rows, in planes or in GGUF's blocks; of as many.

        >>> w = rf.quantize(np.zeros((2, 32), np.float32), "Q8_0")
        >>> w.with_data(w.data.copy()).shape
        (2, 32)
        """
        shape = (*data.shape[:-1], self.stored_shape[-1])
        moved = self._view(data, shape[::-1] if self._transposed else shape)
        moved._transposed, moved.planar = self._transposed, planar
        return moved


def joined_float32(weights: Sequence[Any]) -> np.ndarray | None:
    """float32 values of matrices with equal columns, one below the other; None unless all are to keep theirs.

    They are joined once: what each keeps becomes a part of the whole.
    """
    first, others = weights[0], weights[1:]
    joined = getattr(first, "_joined", None)
    if joined is not None and _same(joined[0], others):
        return joined[1]
    if not all(isinstance(weight, QuantizedArray) and weight.keep_float32 for weight in weights):
        return None
    whole = columns_contiguous(np.concatenate([weight.float32() for weight in weights]))
    ends = itertools.accumulate(len(weight) for weight in weights)
    for weight, end in zip(weights, ends, strict=True):
        weight._float32 = whole[end - len(weight) : end]
    first._joined = list(others), whole
    return whole


def _same(arrays: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether these are the very same objects: `==` compares elements."""
    return len(arrays) == len(others) and all(map(is_, arrays, others))


def columns_contiguous(values: np.ndarray) -> np.ndarray:
    """The same matrices with their columns contiguous, the order in which BLAS multiplies one row fastest."""
    return np.ascontiguousarray(values.swapaxes(-1, -2)).swapaxes(-1, -2) if values.ndim > 1 else values
