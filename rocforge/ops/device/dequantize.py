"""Packed weights on a device: into planar rows and back, and their values as floats.

A row that the kernels read fast is cut into planes, one for each field of a block, so that consecutive lanes load
consecutive 16-byte words; docs/kernels.md shows the layout. It holds the same bits as GGUF's blocks, in another order.
The formats that are rare stay in GGUF's blocks.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from rocforge.device import tuning
from rocforge.device.arrays import cupy_module
from rocforge.device.kernels import Kernel
from rocforge.ops.device.strided import a_thread_each, blocks
from rocforge.quant import QuantizedArray, row_nbytes

CELL = 128
"""Elements of a row that lie at one index of all planes."""

PLANAR: dict[str, tuple[int, int, int]] = {
    "Q4_0": (4, 8, 0),
    "Q4_1": (4, 16, 0),
    "Q5_0": (5, 8, 0),
    "Q5_1": (5, 16, 0),
    "Q8_0": (8, 8, 0),
    "Q2_K": (2, 8, 4),
    "Q3_K": (3, 8, 0),
    "Q4_K": (4, 8, 0),
    "Q5_K": (5, 8, 0),
    "Q6_K": (6, 8, 2),
    "IQ4_NL": (4, 8, 0),
    "IQ4_XS": (4, 4, 0),
    "MXFP4": (4, 4, 0),
}
"""The formats kept in planes on a device: planes of 16 bytes a cell, bytes of scales a cell, and those of two cells."""

_FLOATS = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}


def cells_of(columns: int) -> int:
    """Cells of a row of that many elements, the last one perhaps in part."""
    return blocks(columns, CELL)


def planar_row_nbytes(columns: int, qtype: GGMLQuantizationType) -> int:
    """Bytes of a planar row; a format's own bytes where the row is whole cells and its planes are whole 16 bytes."""
    planes, tail, pair = PLANAR[qtype.name]
    cells = cells_of(columns)
    return 16 * planes * cells + _round16(tail * cells) + _round16(pair * cells // 2)


def _round16(n: int) -> int:
    return blocks(n, 16) * 16


def pack(blocks: Any, columns: int, qtype: GGMLQuantizationType, out: Any = None) -> Any:
    """GGUF's blocks (..., row_nbytes), a CuPy array, as planar rows (..., planar_row_nbytes).

    They are written to `out`, zeros of that shape, or to a new array.
    """
    cupy = cupy_module()
    shape = (*blocks.shape[:-1], planar_row_nbytes(columns, qtype))
    planar = cupy.zeros(shape, np.uint8) if out is None else out
    rows = planar.size // planar.shape[-1]
    kernel = _repack_kernel("pack", qtype.name)
    kernel(*a_thread_each(rows * cells_of(columns)), (cupy.ascontiguousarray(blocks), planar, rows, columns))
    return planar


def unpack(planar: Any, columns: int, qtype: GGMLQuantizationType) -> Any:
    """Planar rows, a CuPy array, as GGUF's blocks again, a new one."""
    cupy = cupy_module()
    blocks = cupy.zeros((*planar.shape[:-1], row_nbytes(columns, qtype)), np.uint8)
    rows, elements = blocks.size // blocks.shape[-1], GGML_QUANT_SIZES[qtype][0]
    kernel = _repack_kernel("unpack", qtype.name)
    kernel(*a_thread_each(rows * (columns // elements)), (cupy.ascontiguousarray(planar), blocks, rows, columns))
    return blocks


def dequantize_device(weight: QuantizedArray, dtype: str = "float32", ids: Any = None, out: Any = None) -> Any:
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
        grid = _device_grid(weight.qtype.name, data.data.device_id)
        threads = tuning.current().elementwise_threads
        kernel((rows, blocks(columns, threads)), (threads,), (data, ids, grid, out, columns))
    return out


def rows_by_id(x: Any, ids: Any) -> Any:
    """`x[ids]` along the first axis.

    Args:
        x: C-contiguous CuPy array (rows, ...), a row of which is whole words of four bytes.
        ids: int32 CuPy array (n,).
    """
    words = x.reshape(len(x), -1).view(np.float32)  # whose kernel leaves their bits as they are
    out = cupy_module().empty((len(ids), words.shape[1]), np.float32)
    args = (words.view(np.uint8), ids, None, out, words.shape[1])
    threads = tuning.current().elementwise_threads
    _block_kernel("float32", "F32")((len(ids), blocks(words.shape[1], threads)), (threads,), args)
    return out.view(x.dtype).reshape(len(ids), *x.shape[1:])


@functools.cache
def _repack_kernel(name: str, qtype: str) -> Kernel:
    return Kernel("repack.hip", name, "uint8* uint8* int32 int32", RF_QTYPE=qtype)


@functools.cache
def _planar_kernel(dtype: str, qtype: str) -> Kernel:
    signature = f"uint8* int32*? {_FLOATS[dtype]}* int32 int32"
    return Kernel("dequantize.hip", f"dequantize_{dtype}", signature, RF_QTYPE=qtype)


@functools.cache
def _block_kernel(dtype: str, qtype: str) -> Kernel:
    signature = f"uint8* int32*? float32*? {_FLOATS[dtype]}* int32"
    return Kernel("blocks.hip", f"dequantize_{dtype}", signature, RF_QTYPE=qtype)


@functools.cache
def _device_grid(qtype: str, device: int) -> Any:
    """The lattice points of an IQ format, as the gguf package has them, on a device; None where there are none."""
    import gguf.quants

    traits = getattr(gguf.quants, qtype, None)
    if getattr(traits, "grid_hex", None) is None:
        return None
    traits.init_grid()
    cupy = cupy_module()
    with cupy.cuda.Device(device):
        grid = cupy.asarray(traits.grid.astype(np.float32))
        cupy.cuda.get_current_stream().synchronize()  # it is kept, and may be used on another stream
    return grid
