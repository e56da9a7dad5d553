"""Activations, and the gated products that feed-forward layers are made of."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from rocforge.device.arrays import cupy_module, get_array_module
from rocforge.device.kernels import Kernel
from rocforge.ops.arguments import module_of
from rocforge.ops.device.strided import blocks, float32, rows_of

THREADS = 256
"""As in activation.hip."""

ALPHA, LIMIT = 1.702, 7.0
"""Of gpt-oss's gated unit."""

_KERNELS = {
    name: Kernel("activation.hip", name, f"float32* float32* {more} uint64")
    for name, more in {
        "silu": "",
        "gelu": "",
        "softcap": "float32",
        "scale": "float32",
        "add": "float32*",
        "sigmoid_gate": "float32*",
    }.items()
}
_GATED = {
    name: Kernel("activation.hip", name, f"float32*? float16*? float32* float32* uint32 uint64 uint64 {more}")
    for name, more in {"swiglu": "", "geglu": "", "swiglu_oai": "float32 float32"}.items()
}
_add_to_rows = Kernel("activation.hip", "add_to_rows", "float32* float32*? float32*? uint32 uint64")
_softmax = Kernel("activation.hip", "softmax", "float32* float32* uint32")


def _elementwise_device(name: str, x: Any, *more: Any, out: Any = None) -> Any:
    x = float32(x)
    out = cupy_module().empty(x.shape, np.float32) if out is None else out
    if x.size:
        _KERNELS[name]((blocks(x.size, THREADS),), (THREADS,), (out, x, *more, x.size))
    return out


def gated_fp16(name: str, gate: Any, up: Any) -> Any:
    """swiglu, geglu or, as it is by itself, swiglu_oai of CuPy arrays in float16, cut to ±65504."""
    return _gated_device(name, gate, up, *([ALPHA, LIMIT] if name == "swiglu_oai" else []), dtype=np.float16)


def _gated_device(name: str, gate: Any, up: Any, *more: Any, dtype: Any = np.float32) -> Any:
    """Rows of gate and up may be columns of wider arrays."""
    out = cupy_module().empty(gate.shape, dtype)
    to = (out, None) if dtype == np.float32 else (None, out)
    columns = gate.shape[-1] if gate.ndim else 1
    if gate.size:
        (g, g_stride), (u, u_stride) = (rows_of(a if a.ndim == 2 else a.reshape(-1, columns)) for a in (gate, up))
        grid = (gate.size // columns, blocks(columns, 4 * THREADS))
        _GATED[name](grid, (THREADS,), (*to, g, u, columns, g_stride, u_stride, *more))
    return out


def _module_of_pair(name: str, gate: Any, up: Any) -> ModuleType:
    module = module_of(name, gate=gate, up=up)
    if gate.shape != up.shape:
        raise ValueError(f"{name}: gate and up have different shapes, {gate.shape} and {up.shape}")
    return module


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * (np.tanh(x * np.float32(0.5)) + np.float32(1))


def silu(x: Any) -> Any:
    """`x * sigmoid(x)`, float32, the shape of x. Source: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415."""
    if module_of("silu", x=x) is not np:
        return _elementwise_device("silu", x)
    x = x.astype(np.float32, copy=False)
    return x * _sigmoid(x)


def gelu(x: Any) -> Any:
    """The Gaussian error linear unit in its tanh form, `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))`.

    float32, the shape of x. Source: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415.
    """
    if module_of("gelu", x=x) is not np:
        return _elementwise_device("gelu", x)
    x = x.astype(np.float32, copy=False)
    inner = np.float32(0.7978845608028654) * x * (np.float32(1) + np.float32(0.044715) * x * x)
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))


def swiglu(gate: Any, up: Any) -> Any:
    """`silu(gate) * up`, float32. Source: Shazeer, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202."""
    if _module_of_pair("swiglu", gate, up) is not np:
        return _gated_device("swiglu", gate, up)
    return silu(gate) * up


def geglu(gate: Any, up: Any) -> Any:
    """`gelu(gate) * up`, float32. Source: Shazeer, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202."""
    if _module_of_pair("geglu", gate, up) is not np:
        return _gated_device("geglu", gate, up)
    return gelu(gate) * up


def swiglu_oai(gate: Any, up: Any, alpha: float = ALPHA, limit: float = LIMIT) -> Any:
    """gpt-oss's gated unit: `g * sigmoid(alpha * g) * (u + 1)`, g cut to at most limit and u to ±limit; float32.

    Source: the reference implementation of gpt-oss, https://github.com/openai/gpt-oss.
    """
    if _module_of_pair("swiglu_oai", gate, up) is not np:
        return _gated_device("swiglu_oai", gate, up, alpha, limit)
    gate = np.minimum(gate.astype(np.float32, copy=False), np.float32(limit))
    up = np.clip(up.astype(np.float32, copy=False), np.float32(-limit), np.float32(limit))
    return gate * _sigmoid(np.float32(alpha) * gate) * (up + np.float32(1))


def softmax(x: Any, axis: int = -1) -> Any:
    """`exp(x) / sum(exp(x))` over an axis, in float32, without overflow; the shape of x."""
    if module_of("softmax", x=x) is not np:
        return _softmax_device(x, axis)
    x = x.astype(np.float32, copy=False)
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    e /= e.sum(axis=axis, keepdims=True)
    return e


def _softmax_device(x: Any, axis: int) -> Any:
    cupy = cupy_module()
    x = float32(cupy.moveaxis(x, axis, -1))
    out = cupy.empty(x.shape, np.float32)
    if x.size:
        _softmax((x.size // x.shape[-1],), (THREADS,), (out, x, x.shape[-1]))
    return cupy.moveaxis(out, -1, axis)


def softcap(x: Any, cap: float) -> Any:
    """`cap * tanh(x / cap)`, float32: bounds logits smoothly. Source: Gemma 2, https://arxiv.org/abs/2408.00118."""
    if module_of("softcap", x=x) is not np:
        return _elementwise_device("softcap", x, cap)
    cap = np.float32(cap)
    return cap * np.tanh(x.astype(np.float32, copy=False) / cap)


def add(x: Any, y: Any, out: Any = None) -> Any:
    """`x + y` in float32, broadcast as NumPy does; into `out` where given (which may be x or y)."""
    if _plain_floats(x, y, out):
        return _elementwise_device("add", x, y, out=out)
    module_of("add", **{name: a for name, a in (("x", x), ("y", y), ("out", out)) if hasattr(a, "shape")})
    return np.add(x, y, out=out, dtype=np.float32, casting="unsafe")


def sigmoid_gate(x: Any, gate: Any) -> Any:
    """`x * sigmoid(gate)` in float32; both of one shape."""
    if _module_of_pair("sigmoid_gate", gate, x) is not np:
        return _elementwise_device("sigmoid_gate", x, float32(gate))
    return x * _sigmoid(gate.astype(np.float32, copy=False))


def add_to_rows(y: Any, bias: Any, residual: Any) -> None:
    """`y += bias + residual` of CuPy arrays; None adds nothing.

    Args:
        y: float32 (rows, columns); its rows may be parts of wider ones.
        bias: (columns,).
        residual: (rows, columns).
    """
    if y.size and not (bias is None and residual is None):
        (data, stride), (rows, columns) = rows_of(y), y.shape
        grid = (rows, blocks(columns, THREADS))
        _add_to_rows(grid, (THREADS,), (data, float32(bias), float32(residual), columns, stride))


def scale(x: Any, factor: float, out: Any = None) -> Any:
    """`x * factor` in float32; into `out` where given (which may be x)."""
    if _plain_floats(x, x, out):
        return _elementwise_device("scale", x, factor, out=out)
    module_of("scale", x=x, out=out)
    return np.multiply(x, np.float32(factor), out=out, dtype=np.float32, casting="unsafe")


def _plain_floats(x: Any, y: Any, out: Any) -> bool:
    """Whether these are contiguous float32 arrays of one shape on a device; CuPy's own ufuncs take the others."""
    arrays = [x, y] if out is None else [x, y, out]
    return all(
        get_array_module(a) is not np and a.dtype == np.float32 and a.shape == x.shape and a.flags.c_contiguous
        for a in arrays
    )
