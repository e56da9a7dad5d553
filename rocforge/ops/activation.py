"""Activations, and the gated products that feed-forward layers are made of."""

from __future__ import annotations

from typing import Any

import numpy as np


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * (np.tanh(x * np.float32(0.5)) + np.float32(1))


def silu(x: Any) -> Any:
    """`x * sigmoid(x)`, float32, the shape of x. Source: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415."""
    x = x.astype(np.float32, copy=False)
    return x * _sigmoid(x)


def gelu(x: Any) -> Any:
    """The Gaussian error linear unit in its tanh form, `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))`.

    float32, the shape of x. Source: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415.
    """
    x = x.astype(np.float32, copy=False)
    inner = np.float32(0.7978845608028654) * x * (np.float32(1) + np.float32(0.044715) * x * x)
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))


def swiglu(gate: Any, up: Any) -> Any:
    """`silu(gate) * up`, float32. Source: Shazeer, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202."""
    return silu(gate) * up


def geglu(gate: Any, up: Any) -> Any:
    """`gelu(gate) * up`, float32. Source: Shazeer, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202."""
    return gelu(gate) * up


def swiglu_oai(gate: Any, up: Any, alpha: float = 1.702, limit: float = 7.0) -> Any:
    """gpt-oss's gated unit: `g * sigmoid(alpha * g) * (u + 1)`, g cut to at most limit and u to ±limit; float32.

    Source: the reference implementation of gpt-oss, https://github.com/openai/gpt-oss.
    """
    gate = np.minimum(gate.astype(np.float32, copy=False), np.float32(limit))
    up = np.clip(up.astype(np.float32, copy=False), np.float32(-limit), np.float32(limit))
    return gate * _sigmoid(np.float32(alpha) * gate) * (up + np.float32(1))


def softmax(x: Any, axis: int = -1) -> Any:
    """`exp(x) / sum(exp(x))` over an axis, in float32, without overflow; the shape of x."""
    x = x.astype(np.float32, copy=False)
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    e /= e.sum(axis=axis, keepdims=True)
    return e


def softcap(x: Any, cap: float) -> Any:
    """`cap * tanh(x / cap)`, float32: bounds logits smoothly. Source: Gemma 2, https://arxiv.org/abs/2408.00118."""
    cap = np.float32(cap)
    return cap * np.tanh(x.astype(np.float32, copy=False) / cap)


def add(x: Any, y: Any, out: Any = None) -> Any:
    """`x + y` in float32, broadcast as NumPy does; into `out` where given (which may be x or y)."""
    return np.add(x, y, out=out, dtype=np.float32, casting="unsafe")


def scale(x: Any, factor: float, out: Any = None) -> Any:
    """`x * factor` in float32; into `out` where given (which may be x)."""
    return np.multiply(x, np.float32(factor), out=out, dtype=np.float32, casting="unsafe")
