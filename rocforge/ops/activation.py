"""Activations, and the gated products that feed-forward layers are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops.arguments import check_out, float32_of, operands
from rocforge.ops.device import activation as device
from rocforge.ops.device.activation import ALPHA, LIMIT
from rocforge.ops.device.strided import float32
from rocforge.ops.types import Array, HeadGate


def _pair(name: str, gate: Array, up: Array) -> tuple[Any, Array, Array]:
    """The module that computes on them, gate and up, of one shape."""
    module, gate, up = operands(name, gate=gate, up=up)
    if gate.shape != up.shape:
        raise ValueError(f"{name}: gate and up have different shapes, {gate.shape} and {up.shape}")
    return module, gate, up


def sigmoid(x: Array) -> Array:
    """`1 / (1 + exp(-x))`, float32, the shape of x."""
    module, x = operands("sigmoid", x=x)
    if module is not np:
        return device.elementwise("sigmoid", x)
    return np.float32(0.5) * (np.tanh(x.astype(np.float32, copy=False) * np.float32(0.5)) + np.float32(1))


def silu(x: Array) -> Array:
    """`x * sigmoid(x)`, float32, the shape of x. Source: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415.

    >>> rf.silu(np.array([-1, 0, 1], np.float32))
    array([-0.2689414,  0.       ,  0.7310586], dtype=float32)
    """
    module, x = operands("silu", x=x)
    if module is not np:
        return device.elementwise("silu", x)
    x = x.astype(np.float32, copy=False)
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    """The Gaussian error linear unit in its tanh form, `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))`.

    float32, the shape of x. Source: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415.

    >>> rf.gelu(np.array([-1, 0, 1], np.float32))
    array([-0.158808,  0.      ,  0.841192], dtype=float32)
    """
    module, x = operands("gelu", x=x)
    if module is not np:
        return device.elementwise("gelu", x)
    x = x.astype(np.float32, copy=False)
    inner = np.float32(0.7978845608028654) * x * (np.float32(1) + np.float32(0.044715) * x * x)
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))


def swiglu(gate: Array, up: Array) -> Array:
    """`silu(gate) * up`, float32. Source: Shazeer, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202.

    >>> gate, up = np.ones((1, 3), np.float32), np.full((1, 3), 2, np.float32)
    >>> rf.swiglu(gate, up)
    array([[1.4621172, 1.4621172, 1.4621172]], dtype=float32)
    """
    module, gate, up = _pair("swiglu", gate, up)
    if module is not np:
        return device.gated_unit("swiglu", gate, up)
    return silu(gate) * up.astype(np.float32, copy=False)


def geglu(gate: Array, up: Array) -> Array:
    """`gelu(gate) * up`, float32. Source: Shazeer, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202.

    >>> gate, up = np.ones((1, 3), np.float32), np.full((1, 3), 2, np.float32)
    >>> rf.geglu(gate, up)
    array([[1.682384, 1.682384, 1.682384]], dtype=float32)
    """
    module, gate, up = _pair("geglu", gate, up)
    if module is not np:
        return device.gated_unit("geglu", gate, up)
    return gelu(gate) * up.astype(np.float32, copy=False)


def reglu(gate: Array, up: Array) -> Array:
    """`max(gate, 0) * up`, float32. Source: Shazeer, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202."""
    module, gate, up = _pair("reglu", gate, up)
    if module is not np:
        return device.gated_unit("reglu", gate, up)
    return np.maximum(gate.astype(np.float32, copy=False), np.float32(0)) * up.astype(np.float32, copy=False)


def swiglu_clipped(gate: Array, up: Array, limit: float) -> Array:
    """`min(silu(gate), limit) * clip(up)`, clip being to ±limit; float32. Source: Step 3.5 Flash."""
    module, gate, up = _pair("swiglu_clipped", gate, up)
    if module is not np:
        return device.gated_unit("swiglu_clipped", gate, up, limit)
    return np.minimum(silu(gate), np.float32(limit)) * clip(up, limit)


def swiglu_oai(gate: Array, up: Array, alpha: float = ALPHA, limit: float = LIMIT) -> Array:
    """gpt-oss's gated unit: `g * sigmoid(alpha * g) * (u + 1)`, g cut to at most limit and u to ±limit; float32.

    Source: the reference implementation of gpt-oss, https://github.com/openai/gpt-oss.

    >>> gate, up = np.ones((1, 3), np.float32), np.full((1, 3), 2, np.float32)
    >>> rf.swiglu_oai(gate, up)
    array([[2.5373874, 2.5373874, 2.5373874]], dtype=float32)
    """
    module, gate, up = _pair("swiglu_oai", gate, up)
    if module is not np:
        return device.gated_unit("swiglu_oai", gate, up, alpha, limit)
    gate = np.minimum(gate.astype(np.float32, copy=False), np.float32(limit))
    up = np.clip(up.astype(np.float32, copy=False), np.float32(-limit), np.float32(limit))
    return gate * sigmoid(np.float32(alpha) * gate) * (up + np.float32(1))


def relu_squared(x: Array) -> Array:
    """`max(x, 0)**2`, float32, the shape of x. Source: So et al., Primer, https://arxiv.org/abs/2109.08668.

    >>> rf.relu_squared(np.array([-1, 0, 3], np.float32))
    array([0., 0., 9.], dtype=float32)
    """
    module, x = operands("relu_squared", x=x)
    if module is not np:
        return device.elementwise("relu_squared", x)
    x = np.maximum(x.astype(np.float32, copy=False), np.float32(0))
    return x * x


def xielu(x: Array, alpha_n: float, alpha_p: float, beta: float, eps: float) -> Array:
    """`p x**2 + beta x` over zero, else `n (exp(min(x, eps)) - 1 - x) + beta x`; float32, the shape of x.

    For p = log(1 + exp(alpha_p)) and n = beta + log(1 + exp(alpha_n)); eps is a small negative number.
    Source: Huang, https://arxiv.org/abs/2411.13010.
    """
    module, x = operands("xielu", x=x)
    n, p = beta + math.log1p(math.exp(alpha_n)), math.log1p(math.exp(alpha_p))
    if module is not np:
        return device.elementwise("xielu", x, n, p, beta, eps)
    x = x.astype(np.float32, copy=False)
    below = np.float32(n) * (np.expm1(np.minimum(x, np.float32(eps))) - x)
    return np.where(x > 0, np.float32(p) * x * x, below) + np.float32(beta) * x


def clip(x: Array, limit: float) -> Array:
    """x cut to ±limit, float32; on a device its rows may be parts of wider ones."""
    module, x = operands("clip", x=x)
    if module is not np:
        return device.clip(x, limit)
    return np.clip(x.astype(np.float32, copy=False), np.float32(-limit), np.float32(limit))


def contiguous(x: Array) -> Array:
    """x (rows, columns) or (rows, heads, elements), whose rows and heads may be parts of wider ones, as an array of its
    own; float32."""
    if get_array_module(x) is np:
        return np.ascontiguousarray(x, np.float32)
    return x if x.flags.c_contiguous else device.clip(x, math.inf)


def softplus(x: Array) -> Array:
    """`log(1 + exp(x))`, float32, the shape of x."""
    module, x = operands("softplus", x=x)
    if module is not np:
        return device.elementwise("softplus", x)
    return np.logaddexp(x.astype(np.float32, copy=False), np.float32(0))


def sparsify(x: Array, deviations: float) -> Array:
    """`max(x - (mean + deviations * deviation), 0)`, float32: what of each row (rows, columns) stands out from it.

    The deviation is that of a sample, over columns - 1. Source: You et al., https://arxiv.org/abs/2506.06644.
    """
    module, x = operands("sparsify", x=x)
    if module is not np:
        return device.sparsify(x, deviations)
    x = x.astype(np.float32, copy=False)
    limit = x.mean(axis=-1, keepdims=True) + np.float32(deviations) * x.std(axis=-1, ddof=1, keepdims=True)
    return np.maximum(x - limit, np.float32(0))


def softmax(x: Array, axis: int = -1) -> Array:
    """`exp(x) / sum(exp(x))` over an axis, in float32, without overflow; the shape of x.

    >>> rf.softmax(np.array([[1, 2, 3]], np.float32))
    array([[0.09003057, 0.24472846, 0.66524094]], dtype=float32)
    """
    module, x = operands("softmax", x=x)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"softmax: axis is {axis}, and x of shape {x.shape} has {x.ndim} axes")
    if module is not np:
        return device.softmax(x, axis)
    x = x.astype(np.float32, copy=False)
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    e /= e.sum(axis=axis, keepdims=True)
    return e


def softcap(x: Array, cap: float) -> Array:
    """`cap * tanh(x / cap)`, float32: bounds logits smoothly. Source: Gemma 2, https://arxiv.org/abs/2408.00118.

    >>> rf.softcap(np.array([1, 1000], np.float32), 30.0)
    array([ 0.9996298, 30.       ], dtype=float32)
    """
    module, x = operands("softcap", x=x)
    if module is not np:
        return device.elementwise("softcap", x, cap)
    bound = float32_of("softcap", "cap", cap)
    return bound * np.tanh(x.astype(np.float32, copy=False) / bound)


def add(x: Array, y: Array, out: Array = None) -> Array:
    """`x + y` in float32, broadcast as NumPy does; into `out` where given (which may be x or y).

    >>> rf.add(np.array([1, 2], np.float32), np.array([3, 4], np.float32))
    array([4., 6.], dtype=float32)
    """
    if _plain_floats(x, y, out):
        return device.elementwise("add", x, y, out=out)
    check_out("add", out)
    _, x, y, out = operands("add", x=x, y=y, out=out)
    return np.add(x, y, out=out, dtype=np.float32, casting="unsafe")


def add_row(x: Array, row: Array) -> Array:
    """Add a row (columns,) to each of x, float32 (rows, columns), in place; gives x."""
    if get_array_module(x) is np:
        x += row
    else:
        device.add_to_rows(x, row, None)
    return x


def sigmoid_gate(x: Array, gate: Array) -> Array:
    """`x * sigmoid(gate)` in float32; both of one shape."""
    module, gate, x = _pair("sigmoid_gate", gate, x)
    if module is not np:
        return device.elementwise("sigmoid_gate", x, float32(gate))
    return x * sigmoid(gate.astype(np.float32, copy=False))


def sigmoid_gate_rows(x: Array, gate: Array) -> Array:
    """`x * sigmoid(gate)` in float32: x (rows, columns), and of gate a number a row, (rows,) or (rows, 1)."""
    module, x, gate = operands("sigmoid_gate_rows", x=x, gate=gate)
    if x.ndim != 2 or gate.shape not in ((len(x),), (len(x), 1)):
        raise ValueError(f"sigmoid_gate_rows: gate has the shape {gate.shape}; allowed is ({len(x)},), a number a row")
    if module is not np:
        return device.sigmoid_gate_rows(x, gate)
    return x * sigmoid(gate.astype(np.float32, copy=False)).reshape(-1, 1)


def gate_heads(y: Array, gate: HeadGate) -> Array:
    """What heads give, (tokens, heads, value_dim), times the unit of their gate; float32."""
    if get_array_module(y) is np:
        unit = sigmoid if gate.unit == "sigmoid" else softplus
        return y * unit(gate.values)
    numbers = contiguous(gate.values)
    if gate.unit == "sigmoid" and numbers.shape == y.shape:
        return sigmoid_gate(y, numbers)
    rows, numbers = y.reshape(-1, y.shape[-1] // numbers.shape[-1]), numbers.reshape(-1)
    gated = sigmoid_gate_rows(rows, numbers) if gate.unit == "sigmoid" else scale_rows(rows, softplus(numbers))
    return gated.reshape(y.shape)


def scale_rows(x: Array, factors: Array) -> Array:
    """`x * factors` in float32: x (rows, ...), and of factors a number a row, (rows,) or (rows, 1)."""
    module, x, factors = operands("scale_rows", x=x, factors=factors)
    if factors.shape not in ((len(x),), (len(x), 1)):
        raise ValueError(f"scale_rows: factors has the shape {factors.shape}; allowed is ({len(x)},), a number a row")
    if module is not np:
        return device.scale_rows(x, factors)
    return x.astype(np.float32, copy=False) * factors.reshape(-1, *[1] * (x.ndim - 1))


def scale(x: Array, factor: float, out: Array = None) -> Array:
    """`x * factor` in float32; into `out` where given (which may be x).

    >>> rf.scale(np.array([1, 2], np.float32), 0.5)
    array([0.5, 1. ], dtype=float32)
    """
    if _plain_floats(x, x, out):
        return device.elementwise("scale", x, factor, out=out)
    check_out("scale", out)
    _, x, out = operands("scale", x=x, out=out)
    return np.multiply(x, float32_of("scale", "factor", factor), out=out, dtype=np.float32, casting="unsafe")


def scale_columns(x: Array, factors: Array) -> Array:
    """`x * factors` in float32: x (..., columns); factors a number a column, (columns,), or one for all, (1,)."""
    module, x, factors = operands("scale_columns", x=x, factors=factors)
    if factors.shape not in (x.shape[-1:], (1,)):
        raise ValueError(f"scale_columns: factors of shape {factors.shape}; allowed are {x.shape[-1:]} and (1,)")
    if module is not np:
        return device.scale_columns(x, factors)
    return np.multiply(x, factors, dtype=np.float32, casting="unsafe")


def _plain_floats(x: Array, y: Array, out: Array) -> bool:
    """Whether these are contiguous float32 arrays of one shape on a device; CuPy's own ufuncs take the others."""
    arrays = [x, y] if out is None else [x, y, out]
    return all(
        get_array_module(a) is not np and a.dtype == np.float32 and a.shape == x.shape and a.flags.c_contiguous
        for a in arrays
    )
