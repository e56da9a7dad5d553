"""What a QuantizedArray does by ops: `@`, and its values and copies on a device."""

from __future__ import annotations

import numpy as np

from rocforge.device import arrays
from rocforge.device.arrays import on_device, resolve_device
from rocforge.formats.planar import PLANAR
from rocforge.ops.arguments import operands
from rocforge.ops.device.dequantize import dequantize_device, pack, unpack
from rocforge.ops.linear import linear
from rocforge.ops.types import Array
from rocforge.quant import QuantizedArray, operator


@operator
def matmul(left: Array | QuantizedArray, right: Array | QuantizedArray) -> Array:
    """`left @ right`, of which one at least is a QuantizedArray, in float32.

    Raises:
        ValueError: the shapes do not fit, or a QuantizedArray has more than two axes.
        TypeError: arrays on both the host and a device.
    """
    left, right = (x.dequantize() if isinstance(x, QuantizedArray) and x.ndim == 1 else x for x in (left, right))
    if not isinstance(left, QuantizedArray):
        _, left, right = operands("@", "right", left=left, right=right)
        return _times(left, right) if isinstance(right, QuantizedArray) else left @ right
    if isinstance(right, QuantizedArray):
        right = right.dequantize()
    _, left, right = operands("@", "left", left=left, right=right)
    _check(left, left.shape, right.shape, left.shape[-1], right.shape[-2:][:1])
    if right.ndim == 1:
        return right @ left.T
    return (right.swapaxes(-1, -2) @ left.T).swapaxes(-1, -2)


def _times(x: Array, weight: QuantizedArray) -> Array:
    _check(weight, x.shape, weight.shape, weight.shape[0], x.shape[-1:])
    if weight.transposed:
        return linear(x, weight.T)
    return x.astype(np.float32, copy=False) @ weight.dequantize()


def _check(
    weight: QuantizedArray, left: tuple[int, ...], right: tuple[int, ...], inner: int, other: tuple[int, ...]
) -> None:
    if weight.ndim != 2:
        raise ValueError(
            f"@ needs a QuantizedArray of two axes at most, and its shape is {weight.shape}; take a slice first"
        )
    if other != (inner,):
        raise ValueError(f"shapes {left} and {right} do not fit for @")


@operator
def dequantize_on_device(weight: QuantizedArray) -> Array:
    """float32 values of the stored rows of an array on a device."""
    with on_device(weight.device):
        return dequantize_device(weight)


@operator
def to_device(weight: QuantizedArray, device: str) -> QuantizedArray:
    """A copy on another device, as `rf.to_device` gives it: planar on a GPU, where the format has that."""
    device, data = resolve_device(device), weight.data
    qtype, columns = weight.qtype, weight.stored_shape[-1]
    planar = device != "cpu" and qtype.name in PLANAR
    if device == weight.device and weight.planar == planar:
        return weight
    if weight.planar and not planar:
        with on_device(weight.device):
            data = unpack(data, qtype, columns)
    data = arrays.to_device(data, device)
    if planar and not weight.planar:
        with on_device(device):
            data = pack(data, qtype, columns)
    return weight.with_data(data, planar)
