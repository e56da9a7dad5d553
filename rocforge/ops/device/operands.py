"""Operands of products on a device: x in the form that `rocforge.ops.device.plan` says."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rocforge.device import tuning
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.planar import CELL, cells_of
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.device.strided import a_thread_each, blocks, float32
from rocforge.ops.types import Array

INT8_CELL_NBYTES = 160
"""Bytes of a cell of int8: 128 values, four float32 scales, eight int16 sums."""
FRAGMENT_CELLS = 4
"""Cells that a token's fragments are filled up to a multiple of: the most of any target in quants.h."""
SWIZZLED_TOKENS = 256
"""Tokens that swizzled tiles are filled up to a multiple of: as many as a block of wide.hip reads at most."""


class PartialNorm(NamedTuple):
    """Division by the root mean square of values whose squares are summed here, float32, each 32 elements."""

    squares: Array
    eps: float


class PackedOperand:
    """An x (tokens, size) in int8, each 32 elements with a scale, or in float16 as the matrix unit takes it.

    They lie as `Activation`, `fragment_at` or `store_swizzled` in rawkernels/formats/quants.h have them.

    Args:
        data: uint8 CuPy array: (tokens, bytes of a row) of int8, or (bytes,) of the others.
        shape: (tokens, size).
        form: INT8, one of FRAGMENTS, or SWIZZLED.
        norm: what the one row of int8 still lacks of its norm; None: nothing.
    """

    ndim = 2

    def __init__(self, data: Array, shape: tuple[int, int], form: OperandForm, norm: PartialNorm | None = None):
        self.data, self.shape, self.form, self.norm = data, shape, form, norm

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def width(self) -> int:
        """The tokens that it is laid out for, in fragments perhaps several times; 0 of int8."""
        return _width(self.form, self.shape[0])


def _width(form: OperandForm, tokens: int) -> int:
    if form is OperandForm.SWIZZLED:
        return max(blocks(tokens, SWIZZLED_TOKENS), 1) * SWIZZLED_TOKENS
    return form.width


_quantize = Kernel("quantize.hip", "quantize_activations", "float32* uint8* int32 int32 int32")
_to_fp16 = Kernel("quantize.hip", "to_fp16", "float32* float16* int64")


def empty_operand(shape: tuple[int, ...], form: OperandForm) -> Array | PackedOperand:
    """Room for an operand, on the current device: a CuPy array, or of (tokens, size) a PackedOperand."""
    empty = cupy_module().empty
    if not form.packed:
        return empty(shape, np.float16 if form is OperandForm.FP16 else np.float32)
    tokens, size = shape
    cells = cells_of(size)
    if form is OperandForm.INT8:
        return PackedOperand(empty((tokens, INT8_CELL_NBYTES * cells), np.uint8), (tokens, size), form)
    width = _width(form, tokens)
    if form is OperandForm.SWIZZLED:
        nbytes = cells * 256 * width
    else:
        nbytes = blocks(cells, FRAGMENT_CELLS) * FRAGMENT_CELLS * 256 * width * blocks(tokens, width)
    return PackedOperand(empty(nbytes, np.uint8), (tokens, size), form)


def output_arguments(out: Array | PackedOperand) -> tuple[Array, Array, Array, int]:
    """What kernels that write any form are told of an operand: float32, float16 and packed memory, and the width."""
    if isinstance(out, PackedOperand):
        return None, None, out.data, out.width
    return (None, out, None, 0) if out.dtype == np.float16 else (out, None, None, 0)


def as_operand(x: Array | PackedOperand, form: OperandForm) -> Array | PackedOperand:
    """x (tokens, size) in a form: as it is where it has that, else converted from floats.

    Raises:
        TypeError: x is packed in another form.
    """
    if isinstance(x, PackedOperand):
        if x.form is not form:
            raise TypeError(f"x {x.shape} is packed as {x.form.name}; the product takes {form.name}")
        return x
    if form.packed:
        return quantized(x, form)
    return to_fp16(x) if form is OperandForm.FP16 else float32(x)


def quantized(x: Array, form: OperandForm = OperandForm.INT8) -> PackedOperand:
    """An array (tokens, size) of floats, packed."""
    x, y = float32(x), empty_operand(x.shape, form)
    (tokens, size), cells = x.shape, cells_of(x.shape[1])
    if tokens:
        threads = tuning.current().elementwise_threads
        _quantize((blocks(cells * CELL, 4 * threads), tokens), (threads,), (x, y.data, size, cells, y.width))
    return y


def to_fp16(x: Array) -> Array:
    """A CuPy array in float16, contiguous; values beyond ±65504 are cut to that."""
    cupy = cupy_module()
    if x.dtype == np.float16:
        return cupy.ascontiguousarray(x)
    x, y = float32(x), cupy.empty(x.shape, np.float16)
    if x.size:
        _to_fp16(*a_thread_each(x.size), (x, y, x.size))
    return y
