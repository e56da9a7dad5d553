"""Packed weights on a device: into planar rows and back, and their values as floats."""

from __future__ import annotations

import functools

import numpy as np
from gguf.constants import GGMLQuantizationType

from rocforge.device import tuning
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.blocks import block_elements, row_nbytes
from rocforge.formats.planar import cells_of, planar_row_nbytes
from rocforge.ops.device.strided import a_thread_each, blocks
from rocforge.ops.types import Array
from rocforge.quant import QuantizedArray

_FLOATS = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}


def pack(data: Array, qtype: GGMLQuantizationType, columns: int, out: Array = None) -> Array:
    """GGUF's blocks (..., row_nbytes), a CuPy array, as planar rows (..., planar_row_nbytes).

    They are written to `out`, zeros of that shape, or to a new array.
    """
    cupy = cupy_module()
    shape = (*data.shape[:-1], planar_row_nbytes(columns, qtype))
    planar = cupy.zeros(shape, np.uint8) if out is None else out
    rows = planar.size // planar.shape[-1]
    kernel = _repack_kernel("pack", qtype.name)
    kernel(*a_thread_each(rows * cells_of(columns)), (cupy.ascontiguousarray(data), planar, rows, columns))
    return planar


def unpack(planar: Array, qtype: GGMLQuantizationType, columns: int) -> Array:
    """Planar rows, a CuPy array, as GGUF's blocks again, a new one."""
    cupy = cupy_module()
    data = cupy.zeros((*planar.shape[:-1], row_nbytes(columns, qtype)), np.uint8)
    rows = data.size // data.shape[-1]
    kernel = _repack_kernel("unpack", qtype.name)
    args = (cupy.ascontiguousarray(planar), data, rows, columns)
    kernel(*a_thread_each(rows * (columns // block_elements(qtype))), args)
    return data


def dequantize_device(weight: QuantizedArray, dtype: str = "float32", ids: Array = None, out: Array = None) -> Array:
    """Values of packed weights on a device.

    Args:
        weight: on a device, of any number of axes; its stored rows are unpacked, whether it is a transpose or not.
        dtype: "float32" (bit-equal to the gguf package), "float16" or "bfloat16" (rounded from that; bits as uint16).
        ids: int32 CuPy array: only these rows of a matrix. They are not checked, which would wait for the device.
        out: a C-contiguous array to write to; None: a new one.

    Returns:
        CuPy array (..., columns), or (*ids.shape, columns).
    """
    cupy = cupy_module()
    *leading, columns = weight.stored_shape
    data = cupy.ascontiguousarray(weight.data)
    leading = leading if ids is None else ids.shape
    out = cupy.empty((*leading, columns), _FLOATS[dtype]) if out is None else out
    rows = out.size // columns
    if not rows:
        return out
    if weight.planar:
        kernel = _planar_kernel(dtype, weight.qtype.name)
        kernel(*a_thread_each(rows * columns // 8), (data, ids, out, rows, columns))
    else:
        kernel = _block_kernel(dtype, weight.qtype.name)
        threads = tuning.current().elementwise_threads
        kernel((rows, blocks(columns, threads)), (threads,), (data, ids, out, columns))
    return out


def rows_by_id(x: Array, ids: Array, out: Array = None) -> Array:
    """`x[ids]` along the first axis.

    Args:
        x: C-contiguous CuPy array (rows, ...), a row of which is whole words of four bytes.
        ids: int32 CuPy array (n,).
        out: a C-contiguous array to write to; None: a new one.
    """
    words = x.reshape(len(x), -1).view(np.float32)  # whose kernel leaves their bits as they are
    out = cupy_module().empty((len(ids), *x.shape[1:]), x.dtype) if out is None else out
    args = (words.view(np.uint8), ids, out.reshape(len(ids), -1).view(np.float32), words.shape[1])
    threads = tuning.current().elementwise_threads
    _block_kernel("float32", "F32")((len(ids), blocks(words.shape[1], threads)), (threads,), args)
    return out


@functools.cache
def _repack_kernel(name: str, qtype: str) -> Kernel:
    return Kernel("repack.hip", name, "uint8* uint8* int32 int32", RF_QTYPE=qtype)


@functools.cache
def _planar_kernel(dtype: str, qtype: str) -> Kernel:
    signature = f"uint8* int32*? {_FLOATS[dtype]}* int32 int32"
    return Kernel("dequantize.hip", f"dequantize_{dtype}", signature, RF_QTYPE=qtype)


@functools.cache
def _block_kernel(dtype: str, qtype: str) -> Kernel:
    signature = f"uint8* int32*? {_FLOATS[dtype]}* int32"
    return Kernel("blocks.hip", f"dequantize_{dtype}", signature, RF_QTYPE=qtype)
