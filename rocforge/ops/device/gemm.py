"""Products of many columns on a device: float16 tiles of the weights, multiplied by hipBLAS or cuBLAS into float32."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.arrays import cupy_module
from rocforge.device.blas import blas_handle
from rocforge.device.kernels import Kernel
from rocforge.ops.device.dequantize import dequantize_device
from rocforge.ops.device.operands import is_single
from rocforge.ops.device.strided import a_thread_each
from rocforge.quant import QuantizedArray

_to_fp16 = Kernel("quantize.hip", "to_fp16", "float32* float16* int64")
_ONE, _ZERO = np.array(1, np.float32), np.array(0, np.float32)
_ONE_AT, _ZERO_AT = _ONE.ctypes.data, _ZERO.ctypes.data


def gemm_fp16(x: Any, weight: Any) -> Any:
    """`x @ weight.T` with both rounded to float16 and sums in float32.

    Args:
        x: float32 or float16 CuPy array (n, columns).
        weight: QuantizedArray or CuPy array (rows, columns). Of an array, all but float16 is multiplied in float32.

    Returns:
        float32 CuPy array (n, rows).
    """
    cupy = cupy_module()
    if is_single(weight):
        return x @ weight.T.astype(np.float32, copy=False)
    rows, columns = weight.shape
    x, y = to_fp16(x), cupy.empty((len(x), rows), np.float32)
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


def gemms_fp16(x: Any, weights: Sequence[Any]) -> list[Any]:
    """`gemm_fp16` of one x with several weights; as one product, where their float16 values lie end to end."""
    if not any(map(is_single, weights)):
        x = to_fp16(x)
    fp16 = [getattr(weight, "fp16", None) for weight in weights]
    if len(weights) == 1 or not _end_to_end(fp16):
        return [gemm_fp16(x, weight) for weight in weights]
    cupy, ends = cupy_module(), list(itertools.accumulate(map(len, fp16)))
    whole = cupy.ndarray((ends[-1], fp16[0].shape[1]), np.float16, memptr=fp16[0].data)
    y = cupy.empty((len(x), ends[-1]), np.float32)
    _multiply(x, whole, y, 0)
    return [y[:, end - len(part) : end] for part, end in zip(fp16, ends, strict=True)]


def _end_to_end(arrays: Sequence[Any]) -> bool:
    if any(array is None or array.shape[1] != arrays[0].shape[1] for array in arrays):
        return False
    return all(a.data.ptr + a.nbytes == b.data.ptr for a, b in itertools.pairwise(arrays))


def to_fp16(x: Any) -> Any:
    """A CuPy array in float16, contiguous; values beyond ±65504 are cut to that."""
    cupy = cupy_module()
    x = cupy.ascontiguousarray(x)
    if x.dtype == np.float16:
        return x
    y = cupy.empty(x.shape, np.float16)
    _to_fp16(*a_thread_each(x.size), (x, y, x.size))
    return y


@functools.cache
def _compute_type() -> int:
    """Sums in float32: CuPy's name for that differs, since on HIP it takes a data type there."""
    cupy = cupy_module()
    return cupy.cuda.runtime.CUDA_R_32F if cupy.cuda.runtime.is_hip else cupy.cuda.cublas.CUBLAS_COMPUTE_32F


def _multiply(x: Any, weight: Any, y: Any, start: int) -> None:
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
