"""Rotary position embedding on a device: launches of rope.hip and angles.hip."""

from __future__ import annotations

import functools

import numpy as np

from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.strided import a_thread_each, rows_of
from rocforge.ops.state import BLOCK_SIZE
from rocforge.ops.types import Array

_angles = Kernel("angles.hip", "rope_angles", "float32* float32* int32* float64* uint32 uint32 float32")

_temperatures = Kernel("angles.hip", "temperatures", "float32* int32* uint32 float32 uint32 uint32")


def cos_sin(frequencies: Array, positions: Array, magnitude: float) -> tuple[Array, Array]:
    """float32 cosines and sines (*positions.shape, pairs) of `positions * frequencies`, times the magnitude.

    Angles are reduced in float64, since float32 is short of digits at positions in the thousands.

    Args:
        frequencies: float64 CuPy array (pairs,).
        positions: CuPy array of integers.
        magnitude: a factor.
    """
    cupy, pairs = cupy_module(), len(frequencies)
    cos, sin = (cupy.empty((*positions.shape, pairs), np.float32) for _ in range(2))
    positions = cupy.ascontiguousarray(positions, dtype=np.int32)
    if cos.size:
        args = (cos, sin, positions, frequencies, positions.size, pairs, magnitude)
        _angles(*a_thread_each(cos.size), args)
    return cos, sin


def temperatures(positions: Array, scale: float, length: int, offset: int) -> Array:
    """What `rocforge.ops.temperature.Temperature.factors` gives."""
    out = cupy_module().empty(positions.shape, np.float32)
    positions = cupy_module().ascontiguousarray(positions, dtype=np.int32)
    if out.size:
        _temperatures(*a_thread_each(out.size), (out, positions, out.size, scale, length, offset))
    return out


def rotate(x: Array, cos: Array, sin: Array, neox: bool) -> Array:
    """What `rocforge.ops.rope.rotate` gives."""
    tokens, heads, head_dim = x.shape
    y = cupy_module().empty(x.shape, np.float32)
    if y.size:
        flat, stride = rows_of(x)
        args = (y, flat, cos, sin, tokens, heads, stride, cos.shape[-1], int(neox))
        _rope_kernel(head_dim)(*a_thread_each(tokens * heads * card_of(x.device.id).wave), args)
    return y


@functools.cache
def _rope_kernel(head_dim: int) -> Kernel:
    signature = "float32* float32* float32* float32* uint32 uint32 uint64 uint32 int32"
    return Kernel("rope.hip", "rope", signature, RF_HEAD_DIM=head_dim, RF_BLOCK_SIZE=BLOCK_SIZE)
