"""Parameter: the place of an array in a module, and what becomes of an array that is put there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device.arrays import copied, get_array_module, on_device, to_device
from rocforge.formats.blocks import block_elements, block_nbytes
from rocforge.ops.device.dequantize import dequantize_device
from rocforge.quant import QuantizedArray, columns_contiguous


class Parameter:
    """The place of an array that has not been loaded.

    Args:
        shape: the array's.
        optional: whether a model can do without it.
        matrix: whether ops multiply with it or gather its rows, in any format; all else is float32 in a model, whatever
            a file has it in. None: where it has more than one axis.

    Attributes:
        whole: the shape of the array in a file, of which this may be the place of a part.
    """

    def __init__(self, *shape: int, optional: bool = False, matrix: bool | None = None):
        self.shape, self.optional = shape, optional
        self.matrix = len(shape) > 1 if matrix is None else matrix
        self.whole: tuple[int, ...] = shape
        self._cut: tuple[int, Sequence[slice]] | None = None

    def cut(self, axis: int, spans: Sequence[slice]) -> Parameter:
        """The place of a part of this one's array: these spans of an axis. Those of packed columns end at blocks."""
        size = sum(span.stop - span.start for span in spans)
        axis %= len(self.shape)
        part = Parameter(*self.shape[:axis], size, *self.shape[axis + 1 :], optional=self.optional, matrix=self.matrix)
        part.whole, part._cut = self.whole, (axis, spans)
        return part

    def zeros(self) -> Parameter:
        """The place of zeros, whatever is in a file."""
        place = Parameter(*self.shape, optional=self.optional, matrix=self.matrix)
        place.whole, place._cut = self.whole, (0, ())
        return place

    def part_of(self, array: Any) -> Any:
        """What belongs here of a whole array: a view of it, where that is one span."""
        if self._cut is None:
            return array
        axis, spans = self._cut
        if not spans:
            return np.zeros(self.shape, np.float32)
        packed = isinstance(array, QuantizedArray)
        data, spans = (array.data, _in_bytes(array, spans)) if packed and axis == array.ndim - 1 else (array, spans)
        data = data.data if isinstance(data, QuantizedArray) else data
        before = (slice(None),) * axis
        parts = [data[(*before, span)] for span in spans]
        part = parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
        return QuantizedArray(part, self.shape, array.qtype) if packed else part

    def cast(self, array: Any) -> Any:
        """An array, packed or not, as ops take it from here: of the values that it has."""
        if isinstance(array, QuantizedArray):
            return array if self.matrix else array.dequantize()
        kept = self.matrix and array.dtype in (np.float16, np.float32)
        return array if kept else array.astype(np.float32, copy=False)

    def assigned(self, value: Any, current: Any, device: str, path: str) -> Any:
        """What takes the place of `current` when a value is assigned: a copy, where and in the form that the other is.

        Args:
            value: an array of numbers, NumPy's, CuPy's or packed, or lists of numbers; None where it is optional.
            current: what is there now.
            device: where it belongs; of a place that has not been loaded, it is where the value is.
            path: of this place, for messages.

        Raises:
            TypeError: it is no array of numbers. ValueError: it is misshapen.
        """
        if value is None and self.optional:
            return None
        array = self.cast(self._checked(value, path))
        if isinstance(current, Parameter):
            device = device_name(array)
        if device == "cpu":
            return cpu_form(to_device(array, device), _keeps_float32(current))
        if isinstance(array, np.ndarray):
            array = np.ascontiguousarray(array)
        placed = _own(to_device(array, device))
        if getattr(current, "fp16", None) is not None and isinstance(placed, QuantizedArray) and placed.fp16 is None:
            with on_device(device):
                placed.fp16 = dequantize_device(placed, "float16")
        return placed

    def _checked(self, value: Any, path: str) -> Any:
        allowed = f"allowed is an array of numbers of shape {self.shape}{', or None' if self.optional else ''}"
        if value is None:
            raise TypeError(f"{path}: None; {allowed}")
        if isinstance(value, QuantizedArray):
            if value.transposed:
                raise TypeError(f"{path}: this is the transpose of packed rows, which cannot be put there; {allowed}")
        elif get_array_module(value) is np:
            try:
                value = np.asarray(value)
            except ValueError as error:  # lists of unequal lengths
                raise ValueError(f"{path}: {error}; {allowed}") from None
        if not isinstance(value, QuantizedArray) and value.dtype.kind not in "biuf":
            raise TypeError(f"{path}: of dtype {value.dtype}; {allowed}")
        if value.shape != self.shape:
            raise ValueError(f"{path}: of shape {value.shape}; {allowed}")
        return value

    def __repr__(self) -> str:
        return f"Parameter{self.shape}"


def _in_bytes(array: QuantizedArray, spans: Sequence[slice]) -> list[slice]:
    """Columns as bytes of packed rows."""
    elements, nbytes = block_elements(array.qtype), block_nbytes(array.qtype)
    if any(span.start % elements or span.stop % elements for span in spans):
        raise ValueError(f"{array.qtype.name} columns {spans} are cut within blocks of {elements}")
    return [slice(span.start // elements * nbytes, span.stop // elements * nbytes) for span in spans]


def cpu_form(weight: Any, keep: bool) -> Any:
    """A weight in the form of the NumPy code: packed, keeping its unpacked values or not, or float32.

    Float arrays are copies that can be written to, but for matrices of a file that need not be kept unpacked.
    """
    if isinstance(weight, QuantizedArray):
        weight = weight.with_data(weight.data)
    elif weight.dtype == np.float16:
        weight = QuantizedArray(np.ascontiguousarray(weight).view(np.uint8), weight.shape, "F16")
    else:
        kept = columns_contiguous(weight) if keep or weight.ndim < 2 else weight
        shared = kept.ndim < 2 or (keep and np.may_share_memory(kept, weight))
        return np.array(kept, order="K") if shared else kept
    weight.keep_float32 = keep
    return weight


def _keeps_float32(weight: Any) -> bool:
    """Whether a weight on the CPU is there in the form that memory is spent on for speed."""
    if isinstance(weight, QuantizedArray):
        return weight.keep_float32
    if isinstance(weight, Parameter):
        return True
    return weight is None or weight.ndim < 2 or weight.swapaxes(-1, -2).flags.c_contiguous


def _own(array: Any) -> Any:
    """An object of its own: of packed blocks, which nobody writes to, without copying them."""
    if not isinstance(array, QuantizedArray):
        return copied(array)
    copy = array.with_data(array.data, array.planar)
    copy.fp16 = array.fp16
    return copy


def device_name(array: Any) -> str:
    """Where an array is, packed or not: "cpu" or "gpu:N"."""
    device = getattr(array, "device", "cpu")
    return f"gpu:{device.id}" if hasattr(device, "id") else str(device)
