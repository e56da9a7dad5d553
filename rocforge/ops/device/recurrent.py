"""State of a fixed size on a device: launches of recurrent.hip. All is as rocforge.ops.recurrent has it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.planar import CELL, cells_of
from rocforge.ops.device.operands import PackedOperand, empty_operand, output_arguments
from rocforge.ops.device.plan import OperandForm, form_for
from rocforge.ops.device.strided import ALIGNMENT, blocks, float32, rows_of
from rocforge.ops.state import RecurrentLayer
from rocforge.ops.types import Array, Weight

CONV_THREADS, COLUMNS, RULE_THREADS, NORM_THREADS = 64, 32, 128, 256
"""As recurrent.hip has them."""
FEW_TOKENS, CONV_TOKENS = 256, 16
"""A block of a convolution has one token where there are few, else several."""
CHUNK, CHUNKED_KEY_DIMS = 16, (64, 128)
"""As state_chunks.hip has them."""
FEW_OF_A_SEQUENCE = 8
"""Tokens up to which a rule takes those of a sequence one after another; in the chunks of state_chunks.hip more."""
MOST_TURNS = 32
"""Blocks that sequences are dealt out to, of which there may be many without a token."""
MAX_WIDTH = 4
"""Of a convolution."""
MAX_STATE_DIM = 32
"""Of a selective scan."""


STEP_THREADS, MOST_VALUES = 512, 128
"""As delta_step.hip has them."""
_SIGNATURES = {"split_gate": "float32* float32* float32* uint64 uint32 uint32 uint32"}


@functools.cache
def _kernel(name: str, key_dim: int = 64, **defines: Any) -> Kernel:
    return Kernel("recurrent.hip", name, _SIGNATURES.get(name), RF_KEY_DIM=key_dim, **defines)


def _sequences(state: RecurrentLayer, stride: int) -> tuple[Any, ...]:
    return state.slots, state.positions, state.query_starts, stride


def causal_conv(
    x: Array,
    weight: Array,
    state: RecurrentLayer,
    bias: Array,
    silu: bool,
    gates: tuple[Array, Array] | None,
    which: int,
    out: Array,
) -> Array:
    channels, width = weight.shape
    if width > MAX_WIDTH:
        raise ValueError(f"causal_conv: weight has a width of {width}; allowed on a device is up to {MAX_WIDTH}")
    y = cupy_module().empty(x.shape, np.float32) if out is None else out
    (to, y_stride), (data, stride), (kept, slot_stride) = map(rows_of, (y, x, state.arrays[which]))
    before, after = (None, None) if gates is None else (_with_stride(gate, stride) for gate in gates)
    height = 1 if len(x) <= FEW_TOKENS else CONV_TOKENS
    args = {
        "y": to,
        "y_stride": y_stride,
        "x": data,
        "x_stride": stride,
        "weight": float32(weight),
        "state": kept,
        "channels": channels,
    }
    args |= {"bias": float32(bias), "before": before, "after": after, "silu": int(silu)}
    args |= {"width": width, "sequences": _sequences(state, slot_stride), "count": len(state.slots), "height": height}
    _kernel("causal_conv")((blocks(channels, CONV_THREADS), blocks(len(x), height)), (CONV_THREADS,), args)
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
    (key_heads, value_heads), key_dim = heads, state.arrays[-1].shape[-2]
    channels: dict[str, Any] = {"RF_CHANNELS": 1} if alpha.shape[1] > value_heads else {}
    keys, (b, stride) = key_heads * key_dim, rows_of(beta)
    args = {"beta": b, "beta_stride": stride, "skip": None}
    args |= {"key_heads": key_heads, "repeated": int(repeated), "eps": eps}
    parts = qkv[:, :keys], qkv[:, keys : 2 * keys], qkv[:, 2 * keys :]
    return _rule(*parts, args, alpha, decay, bias, state, channels)


def state_space(
    x: Array, keys: Array, queries: Array, step: Array, decay: Array, bias: Array, skip: Array, state: RecurrentLayer
) -> Array:
    key_heads = keys.shape[1] // state.arrays[1].shape[-2]
    args = {"beta": None, "beta_stride": 0, "skip": float32(skip), "key_heads": key_heads}
    args |= {"repeated": 1, "eps": 0.0}
    return _rule(queries, keys, x, args, step, decay, bias, state, {"RF_STATE_SPACE": 1})


def selective_scan(
    x: Array, step: Array, keys: Array, queries: Array, decay: Array, skip: Array, state: RecurrentLayer
) -> Array:
    channels, state_dim = decay.shape
    if state_dim > MAX_STATE_DIM:
        raise ValueError(f"selective_scan: state_dim is {state_dim}; allowed on a device is up to {MAX_STATE_DIM}")
    y = cupy_module().empty(x.shape, np.float32)
    (k, key_stride), (q, query_stride) = rows_of(keys), rows_of(queries)
    kept, slot_stride = rows_of(state.arrays[1])
    args = {"y": y, "x": float32(x), "step": float32(step), "keys": k, "queries": q, "decay": float32(decay)}
    args |= {"skip": float32(skip), "state": kept, "sequences": _sequences(state, slot_stride)}
    args |= {"key_stride": key_stride, "query_stride": query_stride, "channels": channels}
    grid = blocks(channels, CONV_THREADS), len(state.slots)
    _kernel("selective_scan", state_dim)(grid, (CONV_THREADS,), args)
    return y


@functools.cache
def _chunk_kernel(name: str, key_dim: int, **defines: Any) -> Kernel:
    return Kernel("state_chunks.hip", name, RF_KEY_DIM=key_dim, **defines)


def _rule(
    queries: Array,
    keys: Array,
    values: Array,
    args: dict[str, Any],
    alpha: Array,
    decay: Array,
    bias: Array,
    state: RecurrentLayer,
    defines: dict[str, Any],
) -> Array:
    """What a rule gives: of sequences with few tokens by one kernel, of others by those for chunks, where these are for
    such keys; each leaves out the other's."""
    (heads, key_dim, dim), tokens = state.arrays[-1].shape[-3:], len(values)
    y = cupy_module().empty((tokens, heads, dim), np.float32)
    for name, part in {"q": queries, "k": keys, "v": values, "alpha": alpha}.items():
        args[name], args[f"{name}_stride"] = rows_of(part)
    kept, slot_stride = rows_of(state.arrays[-1])
    chunked = state.most > FEW_OF_A_SEQUENCE and key_dim in CHUNKED_KEY_DIMS and "RF_CHANNELS" not in defines
    chunked = chunked and all(_in_fours(args[name], args[f"{name}_stride"]) for name in "qk")
    runs, chunks = blocks(dim, COLUMNS), blocks(tokens, CHUNK)
    args |= {"y": y, "decay": float32(decay), "count": len(state.slots)}
    args |= {"bias": float32(bias), "state": kept, "sequences": _sequences(state, slot_stride)}
    turns = min(len(state.slots), MOST_TURNS) if key_dim <= 128 and "RF_CHANNELS" not in defines else len(state.slots)
    args |= {"value_heads": heads, "value_dim": dim, "chunks": None, "turns": turns}
    args |= {"few": FEW_OF_A_SEQUENCE if chunked else np.iinfo(np.int32).max}
    grid = heads * runs, turns
    _kernel("state_rule", key_dim, **defines)(grid, (RULE_THREADS,), args)
    if chunked:
        factors = 1 if "RF_STATE_SPACE" in defines else 2
        of_each = (factors + 1) * CHUNK * key_dim + CHUNK * CHUNK + CHUNK + runs * CHUNK * COLUMNS
        args["chunks"] = cupy_module().empty(chunks * heads * of_each, np.float32)
        threads = (2 * key_dim,)
        _chunk_kernel("chunk_parts", key_dim, **defines)((chunks, heads), threads, args)
        _chunk_kernel("chunk_scan", key_dim, **defines)(grid, threads, args)
    return y


def _in_fours(x: Array, stride: int) -> bool:
    """Whether four elements of each row can be loaded at a time."""
    return x.data.ptr % ALIGNMENT == 0 and stride % 4 == 0


def _with_stride(x: Array, stride: int) -> Array:
    """The memory of an array whose rows are that many elements apart."""
    data, own = rows_of(x)
    if own != stride:
        raise ValueError(f"causal_conv: rows of a gate are {own} elements apart, and those of x {stride}")
    return data


def takes_step(qkv: Array, alpha: Array, state: RecurrentLayer, heads: tuple[int, int], conv: Array) -> bool:
    """Whether `delta_step` is for a batch."""
    (key_heads, value_heads), (key_dim, value_dim) = heads, state.arrays[-1].shape[-2:]
    if state.most > 1 or not len(qkv) or state.counters is None:
        return False
    sizes = key_dim in CHUNKED_KEY_DIMS and value_dim % 4 == 0 and value_dim <= MOST_VALUES
    counted = len(state.slots) * key_heads <= state.counters.size
    return sizes and counted and alpha.shape[1] == value_heads and conv.shape[1] <= MAX_WIDTH


def delta_step(
    qkv: Array,
    gate: Array,
    beta: Array,
    alpha: Array,
    conv: Array,
    decay: Array,
    bias: Array,
    state: RecurrentLayer,
    heads: tuple[int, int],
    eps: float,
    norm: Array,
    norm_eps: float,
    repeated: bool,
    consumer: Weight | None,
) -> Array | PackedOperand:
    """`gated_delta_net` of sequences with one token each, in one launch."""
    (key_heads, value_heads), (key_dim, value_dim) = heads, state.arrays[-1].shape[-2:]
    out, args = _operand((len(qkv), value_heads, value_dim), consumer)
    for name, part in {"x": qkv, "beta": beta, "alpha": alpha, "gate": gate}.items():
        args[name], args[f"{name}_stride"] = rows_of(part)
    (args["conv_state"], args["conv_stride"]), (args["state"], stride) = map(rows_of, state.arrays)
    args |= {"conv": float32(conv), "conv_width": conv.shape[1], "decay": float32(decay), "bias": float32(bias)}
    args |= {"norm": float32(norm), "norm_eps": norm_eps, "eps": eps, "sequences": _sequences(state, stride)}
    args |= {"key_heads": key_heads, "value_heads": value_heads, "value_dim": value_dim, "repeated": int(repeated)}
    args["counters"] = state.counters
    _step_kernel(key_dim)((value_heads, len(state.slots)), (STEP_THREADS,), args)
    return out


@functools.cache
def _step_kernel(key_dim: int) -> Kernel:
    return Kernel("delta_step.hip", "delta_step", RF_KEY_DIM=key_dim)


def _operand(shape: tuple[int, int, int], consumer: Weight | None) -> tuple[Array | PackedOperand, dict[str, Any]]:
    """Room for what heads (tokens, heads, dim) give, as a product with the consumer takes it; and a kernel's arguments
    that say where it goes."""
    tokens, heads, dim = shape
    form = OperandForm.FLOAT32 if consumer is None else form_for([consumer], tokens)
    if form.packed and (dim % 32 or heads * dim % CELL):
        form = OperandForm.FLOAT32
    out = empty_operand((tokens, heads * dim), form)
    to = dict(zip(("y", "fp16", "quantized", "width"), output_arguments(out), strict=True))
    return out, {**to, "cells": cells_of(heads * dim)}


def gate_then_norm(x: Array, gate: Array, weight: Array, eps: float) -> Array:
    groups, dim = weight.shape
    return _gated("gate_then_norm", x.reshape(len(x), groups, dim), gate, weight, eps, None)


def norm_then_gate(x: Array, gate: Array, weight: Array, eps: float, consumer: Weight | None) -> Array | PackedOperand:
    return _gated("norm_then_gate", x, gate, weight, eps, consumer)


def _gated(
    name: str, x: Array, gate: Array, weight: Array, eps: float, consumer: Weight | None
) -> Array | PackedOperand:
    (tokens, heads, dim), waves = x.shape, NORM_THREADS // card_of(x.device.id).wave
    out, args = _operand(x.shape, consumer)
    args["gate"], args["gate_stride"] = rows_of(gate)
    args |= {"x": float32(x), "weight": float32(weight), "rows": tokens * heads, "heads": heads, "dim": dim, "eps": eps}
    _kernel(name)((blocks(tokens * heads, waves),), (NORM_THREADS,), args)
    return out


def split_gate(x: Array, heads: int) -> tuple[Array, Array]:
    (data, stride), (tokens, width) = rows_of(x), x.shape
    q, gate = (cupy_module().empty((tokens, width // 2), np.float32) for _ in range(2))
    grid = blocks(q.size, NORM_THREADS)
    _kernel("split_gate")((grid,), (NORM_THREADS,), (q, gate, data, stride, heads, width // 2 // heads, tokens))
    return q, gate
