"""Products of many tokens on a device: float16 tiles of the weights, multiplied by hipBLAS or cuBLAS into float32."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from rocforge.device import tuning
from rocforge.device.blas import blas_handle
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.dequantize import dequantize_device
from rocforge.ops.types import Array, Weight
from rocforge.quant import QuantizedArray

_ONE, _ZERO = np.array(1, np.float32), np.array(0, np.float32)
_ONE_AT, _ZERO_AT = _ONE.ctypes.data, _ZERO.ctypes.data


def gemms_fp16(x: Array, weights: Sequence[Weight]) -> list[Array]:
    """`x @ weight.T` for each weight, rounded to float16, with sums in float32; as one product, where the float16
    values that weights keep lie end to end.

    Args:
        x: float16 CuPy array (tokens, columns), contiguous.
        weights: QuantizedArrays or float16 CuPy arrays (rows, columns).

    Returns:
        float32 CuPy arrays (tokens, rows), one for each.
    """
    fp16: list[Array] = [getattr(weight, "fp16", None) for weight in weights]
    if len(weights) == 1 or not _end_to_end(fp16):
        return [gemm_fp16(x, weight) for weight in weights]
    cupy, ends = cupy_module(), list(itertools.accumulate(map(len, fp16)))
    whole = cupy.ndarray((ends[-1], fp16[0].shape[1]), np.float16, memptr=fp16[0].data)
    y = cupy.empty((len(x), ends[-1]), np.float32)
    _multiply(x, whole, y, 0)
    return [y[:, end - len(part) : end] for part, end in zip(fp16, ends, strict=True)]


def gemm_fp16(x: Array, weight: Weight) -> Array:
    """`gemms_fp16` of one weight: of a QuantizedArray without float16 values a tile of rows at a time is unpacked."""
    cupy = cupy_module()
    rows, columns = weight.shape
    y = cupy.empty((len(x), rows), np.float32)
    whole = weight.fp16 if isinstance(weight, QuantizedArray) else cupy.ascontiguousarray(weight)
    if whole is not None:
        _multiply(x, whole, y, 0)
        return y
    step = tuning.current().dequantize_rows
    tile = cupy.empty((min(step, rows), columns), np.float16)
    for start in range(0, rows, step):
        part = weight[start : start + step]
        _multiply(x, dequantize_device(part, "float16", out=tile[: len(part)]), y, start)
    return y


def gemms_float32(x: Array, weights: Sequence[Array]) -> list[Array]:
    """`x @ weight.T` in float32, of arrays of numbers."""
    return [x @ weight.T.astype(np.float32, copy=False) for weight in weights]


def _end_to_end(arrays: Sequence[Array]) -> bool:
    if any(array is None or array.shape[1] != arrays[0].shape[1] for array in arrays):
        return False
    return all(a.data.ptr + a.nbytes == b.data.ptr for a, b in itertools.pairwise(arrays))


@functools.cache
def _compute_type() -> int:
    """Sums in float32: CuPy's name for that differs, since on HIP it takes a data type there."""
    cupy = cupy_module()
    return int(cupy.cuda.runtime.CUDA_R_32F if cupy.cuda.runtime.is_hip else cupy.cuda.cublas.CUBLAS_COMPUTE_32F)


def _multiply(x: Array, weight: Array, y: Array, start: int) -> None:
    """y[:, start : start + len(weight)] = x @ weight.T, on the current stream; float16 in, float32 out."""
    cupy = cupy_module()
    blas, half, single = cupy.cuda.cublas, cupy.cuda.runtime.CUDA_R_16F, cupy.cuda.runtime.CUDA_R_32F
    (n, columns), rows = x.shape, len(weight)
    # BLAS counts columns first: y's transpose is weight @ x's transpose
    blas.gemmEx(
        blas_handle(),
        *(blas.CUBLAS_OP_T, blas.CUBLAS_OP_N, rows, n, columns, _ONE_AT),
        *(weight.data.ptr, half, columns, x.data.ptr, half, columns, _ZERO_AT),
        *(y.data.ptr + start * y.itemsize, single, y.shape[1], _compute_type(), blas.CUBLAS_GEMM_DEFAULT),
    )
