"""Products of many tokens on a device: float16 tiles of the weights, multiplied by hipBLAS or cuBLAS into float32."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from rocforge.device import tuning
from rocforge.device.blas import gemm
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.dequantize import dequantize_device
from rocforge.ops.device.strided import float32
from rocforge.ops.types import Array, Weight
from rocforge.quant import QuantizedArray


def gemms_fp16(x: Array, weights: Sequence[Weight], dtype: type[np.floating] = np.float32) -> list[Array]:
    """`x @ weight.T` for each weight, rounded to float16, with sums in float32; as one product, where the float16
    values that weights keep lie end to end.

    Args:
        x: float16 CuPy array (tokens, columns), contiguous.
        weights: QuantizedArrays or float16 CuPy arrays (rows, columns).
        dtype: of the results: float32, or float16, whose sums beyond ±65504 are infinite.

    Returns:
        CuPy arrays (tokens, rows), one for each.
    """
    fp16: list[Array] = [getattr(weight, "fp16", None) for weight in weights]
    if len(weights) == 1 or not _end_to_end(fp16):
        return [gemm_fp16(x, weight, dtype) for weight in weights]
    cupy, ends = cupy_module(), list(itertools.accumulate(map(len, fp16)))
    whole = cupy.ndarray((ends[-1], fp16[0].shape[1]), np.float16, memptr=fp16[0].data)
    y = cupy.empty((len(x), ends[-1]), dtype)
    gemm(x, whole, y)
    return [y[:, end - len(part) : end] for part, end in zip(fp16, ends, strict=True)]


def gemm_fp16(x: Array, weight: Weight, dtype: type[np.floating] = np.float32, to: Array = None) -> Array:
    """`gemms_fp16` of one weight: of a QuantizedArray without float16 values a tile of rows at a time is unpacked.

    With `to`, float32 (tokens, rows), contiguous, it is added to that, which is returned.
    """
    cupy = cupy_module()
    rows, columns = weight.shape
    add = to is not None
    y = to if add else cupy.empty((len(x), rows), dtype)
    whole = weight.fp16 if isinstance(weight, QuantizedArray) else cupy.ascontiguousarray(weight)
    if whole is not None:
        gemm(x, whole, y, add=add)
        return y
    step = tuning.current().dequantize_rows
    tile = cupy.empty((min(step, rows), columns), np.float16)
    for start in range(0, rows, step):
        part = weight[start : start + step]
        gemm(x, dequantize_device(part, "float16", out=tile[: len(part)]), y, start, add)
    return y


def gemms_float32(x: Array, weights: Sequence[Array]) -> list[Array]:
    """`x @ weight.T` in float32, of arrays of numbers."""
    cupy, x = cupy_module(), float32(x)
    ys = [cupy.empty((len(x), len(weight)), np.float32) for weight in weights]
    for weight, y in zip(weights, ys, strict=True):
        gemm(x, float32(weight), y)
    return ys


def _end_to_end(arrays: Sequence[Array]) -> bool:
    if any(array is None or array.shape[1] != arrays[0].shape[1] for array in arrays):
        return False
    return all(a.data.ptr + a.nbytes == b.data.ptr for a, b in itertools.pairwise(arrays))
