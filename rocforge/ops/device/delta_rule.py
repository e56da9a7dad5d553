"""The gated delta rule on a device: launches of delta_rule.hip. All is as rocforge.ops.delta_rule has it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.strided import blocks, float32, rows_of
from rocforge.ops.state import RecurrentLayer
from rocforge.ops.types import Array

CONV_THREADS, COLUMNS, LANES, NORM_THREADS = 64, 32, 4, 256
"""As delta_rule.hip has them."""
MAX_WIDTH = 4
"""Of a convolution."""


@functools.cache
def _kernel(name: str, key_dim: int = 64) -> Kernel:
    signature = {
        "norm_then_gate": "float32* float32* float32* float32* uint64 uint32 uint32 uint32 float32",
        "split_gate": "float32* float32* float32* uint64 uint32 uint32 uint32",
    }
    return Kernel("delta_rule.hip", name, signature.get(name), RF_KEY_DIM=key_dim)


def _sequences(state: RecurrentLayer, stride: int) -> tuple[Any, ...]:
    return state.slots, state.positions, state.query_starts, stride


def causal_conv(x: Array, weight: Array, state: RecurrentLayer) -> Array:
    channels, width = weight.shape
    if width > MAX_WIDTH:
        raise ValueError(f"causal_conv: weight has a width of {width}; allowed on a device is up to {MAX_WIDTH}")
    y = cupy_module().empty(x.shape, np.float32)
    (data, stride), (kept, slot_stride) = rows_of(x), rows_of(state.arrays[0])
    grid = blocks(channels, CONV_THREADS), len(state.slots)
    args = {"y": y, "x": data, "x_stride": stride, "weight": float32(weight), "state": kept, "channels": channels}
    args |= {"width": width, "sequences": _sequences(state, slot_stride)}
    _kernel("causal_conv")(grid, (CONV_THREADS,), args)
    return y


def gated_delta_rule(
    qkv: Array,
    beta: Array,
    alpha: Array,
    decay: Array,
    bias: Array,
    state: RecurrentLayer,
    heads: tuple[int, int],
    eps: float,
    repeated: bool,
) -> Array:
    (key_heads, value_heads), (key_dim, value_dim) = heads, state.arrays[1].shape[-2:]
    y = cupy_module().empty((len(qkv), value_heads, value_dim), np.float32)
    (b, b_stride), (a, a_stride), (kept, slot_stride) = rows_of(beta), rows_of(alpha), rows_of(state.arrays[1])
    args = {"y": y, "qkv": float32(qkv), "beta": b, "beta_stride": b_stride, "alpha": a, "alpha_stride": a_stride}
    args |= {"decay": float32(decay), "bias": float32(bias), "state": kept, "sequences": _sequences(state, slot_stride)}
    args |= {"key_heads": key_heads, "value_heads": value_heads, "value_dim": value_dim, "repeated": int(repeated)}
    grid = value_heads * blocks(value_dim, COLUMNS), len(state.slots)
    _kernel("gated_delta_rule", key_dim)(grid, (LANES * COLUMNS,), {**args, "eps": eps})
    return y


def norm_then_gate(x: Array, gate: Array, weight: Array, eps: float) -> Array:
    tokens, heads, dim = x.shape
    y, (g, stride) = cupy_module().empty((tokens, heads * dim), np.float32), rows_of(gate)
    waves = NORM_THREADS // card_of(x.device.id).wave
    args = (y, float32(x), g, float32(weight), stride, tokens * heads, heads, dim, eps)
    _kernel("norm_then_gate")((blocks(tokens * heads, waves),), (NORM_THREADS,), args)
    return y


def split_gate(x: Array, heads: int) -> tuple[Array, Array]:
    (data, stride), (tokens, width) = rows_of(x), x.shape
    q, gate = (cupy_module().empty((tokens, width // 2), np.float32) for _ in range(2))
    grid = blocks(q.size, NORM_THREADS)
    _kernel("split_gate")((grid,), (NORM_THREADS,), (q, gate, data, stride, heads, width // 2 // heads, tokens))
    return q, gate
