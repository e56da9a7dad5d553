"""Activations on a device: launches of activation.hip. Shapes and meanings are those of rocforge.ops.activation."""

from __future__ import annotations

import numpy as np

from rocforge.device import tuning
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.operands import empty_operand
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.device.strided import a_thread_each, blocks, float32, heads_of, rows_of
from rocforge.ops.types import Array

ALPHA, LIMIT = 1.702, 7.0
"""Of gpt-oss's gated unit."""

_ELEMENTWISE = {
    name: Kernel("activation.hip", name, f"float32* float32* {more} uint64")
    for name, more in {
        "silu": "",
        "gelu": "",
        "softplus": "",
        "sigmoid": "",
        "relu_squared": "",
        "xielu": "float32 float32 float32 float32",
        "softcap": "float32",
        "scale": "float32",
        "add": "float32*",
        "sigmoid_gate": "float32*",
    }.items()
}
_GATED = {
    (name, dtype): Kernel(
        "activation.hip", name + suffix, f"float32*? float16*? {dtype}* {dtype}* uint32 uint64 uint64 {more}"
    )
    for name, more in {
        "swiglu": "",
        "geglu": "",
        "reglu": "",
        "swiglu_clipped": "float32",
        "swiglu_oai": "float32 float32",
    }.items()
    for dtype, suffix in {"float32": "", "float16": "_of_fp16"}.items()
}
_add_to_rows = Kernel("activation.hip", "add_to_rows", "float32* float32*? float32*? uint32 uint64 uint32 uint64")
_sigmoid_gate_rows = Kernel("activation.hip", "sigmoid_gate_rows", "float32* float32* float32* uint32 uint64")
_scale_rows = Kernel("activation.hip", "scale_rows", "float32* float32* float32* uint32 uint64 uint64")
_clip = Kernel("activation.hip", "clip", "float32* float32* float32 uint32 uint64 uint32 uint64 uint64")
_scale_columns = Kernel("activation.hip", "scale_columns", "float32* float32* float32* uint32 uint64")
_sparsify = Kernel("activation.hip", "sparsify", "float32* float32* float32 uint32 uint64")
_softmax = Kernel("activation.hip", "softmax", "float32* float32* uint32")


def elementwise(name: str, x: Array, *more: float | Array, out: Array = None) -> Array:
    """An activation, softcap, scale, add or sigmoid_gate of a CuPy array, into `out` where given.

    Args:
        name: of the kernel.
        x: of any dtype and shape.
        more: what else the kernel takes, numbers or float32 arrays of the shape of x.
        out: float32, the shape of x, which it may be; None: a new array.
    """
    x = float32(x)
    out = cupy_module().empty(x.shape, np.float32) if out is None else out
    if x.size:
        _ELEMENTWISE[name](*a_thread_each(x.size), (out, x, *more, x.size))
    return out


def gated_unit(name: str, gate: Array, up: Array, *constants: float, form: OperandForm = OperandForm.FLOAT32) -> Array:
    """A gated unit of gate and up, which may be columns of wider arrays.

    Args:
        name: of the unit: swiglu, geglu, reglu, swiglu_clipped or swiglu_oai.
        gate, up: CuPy arrays of one shape; both float16, or taken as float32.
        constants: of swiglu_clipped, the limit; of swiglu_oai, alpha and limit, or none: gpt-oss's.
        form: FLOAT32, or FP16, cut to ±65504.
    """
    if name == "swiglu_oai" and not constants:
        constants = ALPHA, LIMIT
    out = empty_operand(gate.shape, form)
    columns = gate.shape[-1] if gate.ndim else 1
    if gate.size:
        to = (None, out) if form is OperandForm.FP16 else (out, None)
        dtype = np.float16 if gate.dtype == up.dtype == np.float16 else np.float32
        flat = (a if a.ndim == 2 else a.reshape(-1, columns) for a in (gate, up))
        (g, g_stride), (u, u_stride) = (rows_of(a, dtype) for a in flat)
        threads = tuning.current().elementwise_threads
        grid = (gate.size // columns, blocks(columns, 16 // np.dtype(dtype).itemsize * threads))
        _GATED[name, dtype.__name__](grid, (threads,), (*to, g, u, columns, g_stride, u_stride, *constants))
    return out


def sigmoid_gate_rows(x: Array, gate: Array) -> Array:
    x = float32(x)
    out = cupy_module().empty(x.shape, np.float32)
    if x.size:
        _sigmoid_gate_rows(*a_thread_each(x.size), (out, x, float32(gate), x.shape[1], x.size))
    return out


def scale_rows(x: Array, factors: Array) -> Array:
    (data, stride), out = rows_of(x), cupy_module().empty(x.shape, np.float32)
    if x.size:
        _scale_rows(*a_thread_each(x.size), (out, data, float32(factors), x.size // len(x), stride, x.size))
    return out


def clip(x: Array, limit: float) -> Array:
    out = cupy_module().empty(x.shape, np.float32)
    if x.size:
        columns = run = x.size // len(x)
        if x.ndim == 3:
            (data, stride, run_stride), run = heads_of(x), x.shape[2]
        else:
            (data, stride), run_stride = rows_of(x), 0
        _clip(*a_thread_each(x.size), (out, data, limit, columns, stride, run, run_stride, x.size))
    return out


def scale_columns(x: Array, factors: Array) -> Array:
    x = float32(x)
    out = cupy_module().empty(x.shape, np.float32)
    if x.size:
        _scale_columns(*a_thread_each(x.size), (out, x, float32(factors), factors.size, x.size))
    return out


def sparsify(x: Array, deviations: float) -> Array:
    (x, stride), (rows, columns) = rows_of(x), x.shape
    out = cupy_module().empty((rows, columns), np.float32)
    _sparsify((rows,), (tuning.current().elementwise_threads,), (out, x, deviations, columns, stride))
    return out


def softmax(x: Array, axis: int) -> Array:
    cupy = cupy_module()
    x = float32(cupy.moveaxis(x, axis, -1))
    out = cupy.empty(x.shape, np.float32)
    if x.size:
        _softmax((x.size // x.shape[-1],), (tuning.current().elementwise_threads,), (out, x, x.shape[-1]))
    return cupy.moveaxis(out, -1, axis)


def add_to_rows(y: Array, bias: Array, residual: Array, parts: Array = None) -> None:
    """`y += bias + residual + parts[1:].sum(0)` of CuPy arrays; None adds nothing.

    Args:
        y: float32 (rows, columns); its rows may be parts of wider ones.
        bias: (columns,).
        residual: (rows, columns).
        parts: float32 (parts, rows, columns), the first of which y is.
    """
    if y.size and not (bias is None and residual is None and parts is None):
        (data, stride), (rows, columns) = rows_of(y), y.shape
        threads = tuning.current().elementwise_threads
        others = (1, 0) if parts is None else (len(parts), parts.strides[0] // parts.itemsize)
        args = (data, float32(bias), float32(residual), columns, stride, *others)
        _add_to_rows((rows, blocks(columns, threads)), (threads,), args)
