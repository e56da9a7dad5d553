"""QuantizedArray: a matrix kept in GGUF's packed blocks, that slices, multiplies and prints like an array."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from gguf.constants import GGMLQuantizationType

from rocforge.formats import blocks
from rocforge.formats.blocks import as_qtype, row_nbytes

_Operator = TypeVar("_Operator", bound=Callable[..., Any])
_operators: dict[str, Callable[..., Any]] = {}


def operator(function: _Operator) -> _Operator:
    """A decorator: what QuantizedArray does by ops, which stand above it, under the function's name.

    `rocforge.ops.quantized` has them all: matmul (`@`), dequantize_on_device and to_device.
    """
    _operators[function.__name__] = function
    return function


class QuantizedArray:
    """An array whose last axis is packed in a GGUF block format.

    It multiplies with `@`, on either side, against ordinary arrays of its device, and gives float32; it slices and
    gathers along its leading axes, and `dequantize` gives ordinary values. Values are never changed in place.

    Args:
        data: uint8 array (NumPy or CuPy) of shape (*shape[:-1], bytes per row).
        shape: the logical shape; the last axis is a whole number of blocks.
        qtype: the block format, as in `as_qtype`.

    Attributes:
        data, shape, qtype: as given (shape of the transpose, for a transpose).
        planar: the rows of data are planes of fields, as `to_device` makes them for a GPU's kernels, instead of
            GGUF's blocks; see rocforge.formats.planar.
        keep_float32: keep the float32 values that the first product on the CPU makes, or the first slice of several
            matrices; set by `rf.load` where memory is ample, since unpacking costs many times the product itself.
        fp16: float16 values of the rows, kept on a device beside the blocks for products of many rows, or None; set
            by `rf.load` where memory is ample.

    Source: the block formats of ggml (https://github.com/ggml-org/ggml), as the `gguf` package reads them.
    """

    # NumPy and CuPy hand `array @ quantized` to __rmatmul__ instead of looping over elements.
    __array_ufunc__ = None
    __array_priority__ = 1000
    __hash__ = None  # type: ignore[assignment]

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
        return len(self.shape)

    @property
    def size(self) -> int:
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
        """The transpose of a matrix, without a copy."""
        if self.ndim != 2:
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

    def __getitem__(self, index: Any) -> QuantizedArray:
        """Rows by integer, slice, mask or integer array: NumPy's rules over the leading axes, the last one whole."""
        if self._transposed:
            raise IndexError("a transposed QuantizedArray does not slice; slice the rows before .T")
        index = index if isinstance(index, tuple) else (index,)
        if len(index) >= self.ndim or any(i is Ellipsis or i is None for i in index):
            raise IndexError(f"only the leading {self.ndim - 1} axes of a QuantizedArray of shape {self.shape} slice")
        data = self.data[index]
        view = self._view(data, (*data.shape[:-1], self.shape[-1]))
        if self._float32 is not None or (self.keep_float32 and self.ndim > 2):
            view._float32 = self.float32()[index]
        return view

    def __iter__(self) -> Iterator[Any]:
        """The rows, or what else the first axis counts; the values, as an array's, of a single row."""
        return iter(self.dequantize()) if self.ndim == 1 else (self[i] for i in range(len(self)))

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
        """
        values = self.float32()
        values = values.T if self._transposed else values
        return values.astype(dtype, copy=self._float32 is not None)

    def float32(self) -> Any:
        """float32 values of the stored (untransposed) rows; possibly the kept ones, so not to be written to."""
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
        return _operators["matmul"](self, other)

    def __rmatmul__(self, other: Any) -> Any:
        """`x @ w.T`: x (..., cols), w (rows, cols); gives float32 (..., rows). Also `x @ w`, which unpacks all of w."""
        return _operators["matmul"](other, self)

    def to_device(self, device: str) -> QuantizedArray:
        """This array on another device; see `rf.to_device`. On a GPU its rows are planar, where the format has that."""
        moved: QuantizedArray = _operators["to_device"](self, device)
        return moved

    def with_data(self, data: Any, planar: bool = False) -> QuantizedArray:
        """An array of this kind in other memory: `data` holds its rows, in planes or in GGUF's blocks; of as many."""
        shape = (*data.shape[:-1], self.stored_shape[-1])
        moved = self._view(data, shape[::-1] if self._transposed else shape)
        moved._transposed, moved.planar = self._transposed, planar
        return moved


def joined_float32(weights: Sequence[Any]) -> np.ndarray | None:
    """float32 values of matrices with equal columns, one below the other; None unless all are to keep theirs.

    They are joined once: what each keeps becomes a part of the whole.
    """
    if not all(isinstance(weight, QuantizedArray) and weight.keep_float32 for weight in weights):
        return None
    first: QuantizedArray = weights[0]
    others = list(weights[1:])
    if first._joined is None or first._joined[0] != others:
        whole = columns_contiguous(np.concatenate([weight.float32() for weight in weights]))
        ends = itertools.accumulate(len(weight) for weight in weights)
        for weight, end in zip(weights, ends, strict=True):
            weight._float32 = whole[end - len(weight) : end]
        first._joined = others, whole
    return first._joined[1]


def columns_contiguous(values: np.ndarray) -> np.ndarray:
    """The same matrices with their columns contiguous, the order in which BLAS multiplies one row fastest."""
    return np.ascontiguousarray(values.swapaxes(-1, -2)).swapaxes(-1, -2) if values.ndim > 1 else values
