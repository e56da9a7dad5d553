"""What the launches of several op families share: device arrays as kernels take them."""

from __future__ import annotations

import math

import numpy as np

from rocforge.device import tuning
from rocforge.device.libraries import cupy_module
from rocforge.ops.types import Array

ALIGNMENT = 16
"""Bytes that kernels load at a time, so that arrays begin at a multiple of it."""


def float32(x: Array) -> Array:
    """A CuPy array as C-contiguous float32, aligned; copied only where it is not. None stays None."""
    return None if x is None else aligned(cupy_module().ascontiguousarray(x, dtype=np.float32))


def aligned(x: Array) -> Array:
    """A CuPy array whose address is a multiple of ALIGNMENT: a copy, where it is a part of another, such as x[1:]."""
    return x.copy() if x.data.ptr % ALIGNMENT else x


def rows_of(x: Array, dtype: type[np.floating] = np.float32) -> tuple[Array, int]:
    """The memory that a CuPy array (rows, ...) lies in, contiguous, and how many elements its rows are apart.

    The rows may be parts of wider ones, such as the queries in a product that holds queries, keys and values; an array
    whose rows are not contiguous, not of that dtype, or in reverse order, is copied.
    """
    if x.dtype != dtype or not (x.flags.c_contiguous or (x.strides[0] >= 0 and x[0].flags.c_contiguous)):
        x = aligned(cupy_module().ascontiguousarray(x, dtype=dtype))
    if x.flags.c_contiguous:
        return x, x.size // max(len(x), 1)
    stride = x.strides[0] // x.itemsize
    size = (len(x) - 1) * stride + math.prod(x.shape[1:])
    return cupy_module().ndarray((size,), x.dtype, memptr=x.data), stride


def heads_of(x: Array) -> tuple[Array, int, int]:
    """The memory of a CuPy array (rows, heads, elements), and how many elements its rows, and its heads, are apart.

    As `rows_of`, but heads may be parts of wider ones as well, such as queries beside gates.
    """
    heads, elements = x.shape[1:]
    if x.dtype != np.float32 or not x.size or min(x.strides) < 0 or (elements > 1 and x.strides[2] != x.itemsize):
        x = float32(x)
    if x.flags.c_contiguous:
        return x, heads * elements, elements
    row, head, _ = (stride // x.itemsize for stride in x.strides)
    size = (len(x) - 1) * row + (heads - 1) * head + elements
    return cupy_module().ndarray((size,), x.dtype, memptr=x.data), row, head


def copy_into(target: Array, source: Array) -> None:
    """`target[...] = source` of C-contiguous CuPy arrays of one dtype and shape, as a copy, which is no kernel."""
    target.data.copy_from_device_async(source.data, source.nbytes)


def a_thread_each(count: int) -> tuple[tuple[int], tuple[int]]:
    """Grid and block of an elementwise launch of that many threads."""
    threads = tuning.current().elementwise_threads
    return (blocks(count, threads),), (threads,)


def blocks(size: int, a_block: int) -> int:
    """How many blocks it takes, each doing `a_block`."""
    return -(-size // a_block)
