"""What layers compute that keep a state of fixed size instead of keys and values.

Sources: Gated Delta Networks, Yang et al., https://arxiv.org/abs/2412.06464; Mamba-2, Dao and Gu,
https://arxiv.org/abs/2405.21060; Mamba, Gu and Dao, https://arxiv.org/abs/2312.00752.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops import activation
from rocforge.ops.device import recurrent as device
from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.norm import rms_norm
from rocforge.ops.state import RecurrentLayer
from rocforge.ops.types import Array, HostArray, Weight

CHUNK = 32
"""Tokens that the chunked form takes at a time."""
FEW = 4
"""Tokens of a sequence up to which the CPU takes one after another."""


def causal_conv(
    x: Array,
    weight: Array,
    state: RecurrentLayer,
    bias: Array = None,
    *,
    silu: bool = True,
    gates: tuple[Array, Array] | None = None,
    which: int = 0,
    out: Array = None,
) -> Array:
    """A convolution along each sequence: of a channel's values at a token and at those before it.

    Args:
        x: float32, shape (tokens, channels); on a device its rows may be parts of wider ones.
        weight: float32, shape (channels, width): the last is of the token itself.
        state: its array `which`, (slots, width - 1, channels), has the values of the tokens before, and is updated.
        bias: float32, shape (channels,), or None.
        silu: whether the sum goes through silu.
        gates: what is multiplied with the values, and with the result, of the shape of x; or None.
        which: of the state's arrays.
        out: float32, of the shape of x, is written to; its rows may be parts of wider ones. None: a new array.

    Returns:
        float32, shape (tokens, channels).
    """
    if get_array_module(x) is not np:
        return device.causal_conv(x, weight, state, bias, silu, gates, which, out)
    x = x if gates is None else x * gates[0]
    y, before = np.empty_like(x, np.float32), state.read(which)
    width = weight.shape[1]
    for rows, kept in zip(sequences(state), before, strict=True):
        padded = np.concatenate([kept, x[rows]])
        y[rows] = sum(padded[i : i + rows.stop - rows.start] * weight[:, i] for i in range(width))
        kept[:] = padded[len(padded) - width + 1 :]
    state.write(which, before)
    y = y if bias is None else y + bias
    y = activation.silu(y) if silu else y
    y = y if gates is None else y * gates[1]
    if out is None:
        return y
    out[...] = y
    return out


def gated_delta_rule(
    qkv: Array,
    beta: Array,
    alpha: Array,
    decay: Array,
    bias: Array,
    state: RecurrentLayer,
    heads: tuple[int, int],
    eps: float,
    *,
    repeated: bool = False,
) -> Array:
    """What each head reads from its state S, after a token's value has been written to it under the token's key.

    With unit keys k and queries q, a token makes of S, for b = sigmoid(beta),
    `S = g S; S += b (v - S k) k.T; y = S q / sqrt(key_dim)`, `g = exp(decay * log(1 + exp(alpha + bias)))`. Where alpha
    has a number for each of the key's elements, each has a g of its own, which scales its column of S.

    Args:
        qkv: float32, shape (tokens, 2 * key_heads * key_dim + value_heads * value_dim): queries, keys, values.
        beta: float32, shape (tokens, value_heads).
        alpha: float32, shape (tokens, value_heads), or (tokens, value_heads * key_dim).
        decay: float32, shape (value_heads,), below zero.
        bias: float32, the shape of a row of alpha; or None.
        state: its last array, (slots, value_heads, key_dim, value_dim), is S transposed, and is updated.
        heads: of keys, and of values, a multiple of those.
        eps: added to the sum of squares that a key's and a query's length is the root of.
        repeated: value heads one after another share a key head; False: those that are key_heads apart do.

    Returns:
        float32, shape (tokens, value_heads, value_dim).
    """
    if get_array_module(qkv) is not np:
        return device.gated_delta_rule(qkv, beta, alpha, decay, bias, state, heads, eps, repeated)
    (key_heads, value_heads), (key_dim, value_dim) = heads, state.arrays[-1].shape[-2:]
    queries, keys, values = np.split(qkv, [key_heads * key_dim, 2 * key_heads * key_dim], axis=1)
    q, k = (_unit(x.reshape(len(x), key_heads, key_dim), eps) for x in (queries, keys))
    shared = np.arange(value_heads) // (value_heads // key_heads) if repeated else np.arange(value_heads) % key_heads
    q, k, v = q[:, shared] / np.float32(np.sqrt(key_dim)), k[:, shared], values.reshape(len(qkv), value_heads, -1)
    b = np.float32(1) / (np.float32(1) + np.exp(-beta))
    steps = np.logaddexp(alpha if bias is None else alpha + bias, np.float32(0))
    log_g = decay[:, None] * steps.reshape(len(steps), value_heads, -1)
    y, before = np.empty((len(qkv), value_heads, value_dim), np.float32), state.read(-1)
    for rows, s in zip(sequences(state), before, strict=True):
        parts = q[rows], k[rows], v[rows], b[rows], log_g[rows]
        alone = rows.stop - rows.start <= FEW or log_g.shape[2] > 1
        y[rows] = _one_by_one(*parts, s) if alone else _chunked(*parts, s)
    state.write(-1, before)
    return y


def state_space(
    x: Array, keys: Array, queries: Array, step: Array, decay: Array, bias: Array, skip: Array, state: RecurrentLayer
) -> Array:
    """Mamba-2's state space: what each head reads from its state S, after a token's value has been added to it.

    For t = log(1 + exp(step + bias)), a token with value v, key k and query q makes
    `S = exp(decay * t) S + t v k.T; y = S q + skip v`.

    Args:
        x: float32, shape (tokens, heads * dim): values; on a device its rows, like those of keys, queries and step,
            may be parts of wider ones.
        keys, queries: float32, shape (tokens, groups * state_dim): groups of heads, one after another, share them.
        step: float32, shape (tokens, heads).
        decay, bias, skip: float32, shape (heads,); decay below zero; bias may be None.
        state: its second array, (slots, heads, state_dim, dim), is S transposed, and is updated.

    Returns:
        float32, shape (tokens, heads, dim).
    """
    if get_array_module(x) is not np:
        return device.state_space(x, keys, queries, step, decay, bias, skip, state)
    heads, state_dim, dim = state.arrays[1].shape[-3:]
    groups = keys.shape[1] // state_dim
    v, shared = x.reshape(len(x), heads, dim), np.arange(heads) // (heads // groups)
    k, q = (part.reshape(len(x), groups, state_dim)[:, shared] for part in (keys, queries))
    t = np.logaddexp(step if bias is None else step + bias, np.float32(0))
    log_g, written = decay * t, v * t[..., None]
    y, before = skip[:, None] * v, state.read(1)
    for rows, s in zip(sequences(state), before, strict=True):
        y[rows] += _added(q[rows], k[rows], written[rows], log_g[rows], s)
    state.write(1, before)
    return y


def _added(q: HostArray, k: HostArray, written: HostArray, log_g: HostArray, s: HostArray) -> HostArray:
    """What is read while the tokens' values are added, a chunk at a time; s (heads, state_dim, dim) is updated."""
    y = np.empty_like(written)
    for start in range(0, len(q), CHUNK):
        rows = slice(start, start + CHUNK)
        qc, kc, wc, total = (x[rows].swapaxes(0, 1) for x in (q, k, written, log_g))
        total = np.cumsum(total, axis=1)
        share = np.exp(np.tril(total[:, :, None] - total[:, None]))
        y[rows] = _read(qc, kc, wc, total, share, s).swapaxes(0, 1)
    return y


def _read(
    q: HostArray, k: HostArray, written: HostArray, total: HostArray, share: HostArray, s: HostArray
) -> HostArray:
    """What the tokens of a chunk read (heads, tokens, dim), given what each writes; s becomes the state after it."""
    within = np.tril(share * np.matmul(q, k.swapaxes(1, 2)))
    y: HostArray = np.exp(total)[..., None] * np.matmul(q, s) + np.matmul(within, written)
    s *= np.exp(total[:, -1])[:, None, None]
    s += np.matmul((k * np.exp(total[:, -1:] - total)[..., None]).swapaxes(1, 2), written)
    return y


def selective_scan(
    x: Array, step: Array, keys: Array, queries: Array, decay: Array, skip: Array, state: RecurrentLayer
) -> Array:
    """Mamba's selective scan: what each channel reads from its state s, after a token's value has been added to it.

    For t = log(1 + exp(step)), a token with value x, key k and query q makes
    `s = exp(decay * t) s + t x k; y = s . q + skip x`.

    Args:
        x, step: float32, shape (tokens, channels).
        keys, queries: float32, shape (tokens, state_dim); on a device their rows may be parts of wider ones.
        decay: float32, shape (channels, state_dim), below zero.
        skip: float32, shape (channels,).
        state: its second array, (slots, state_dim, channels), is s transposed, and is updated.

    Returns:
        float32, shape (tokens, channels).

    Raises:
        ValueError: on a device, a state_dim of more than 32.
    """
    if get_array_module(x) is not np:
        return device.selective_scan(x, step, keys, queries, decay, skip, state)
    t, before, y = np.logaddexp(step, np.float32(0)), state.read(1), skip * x
    for rows, s in zip(sequences(state), before, strict=True):
        for start in range(rows.start, rows.stop, CHUNK):
            part = slice(start, min(start + CHUNK, rows.stop))
            kept = np.exp(t[part, None] * decay.T)
            written = keys[part, :, None] * (t[part] * x[part])[:, None]
            for i in range(len(kept)):
                s *= kept[i]
                s += written[i]
                y[start + i] += queries[start + i] @ s
    state.write(1, before)
    return y


def gate_then_norm(x: Array, gate: Array, weight: Array, eps: float) -> Array:
    """The RMS norm of x times the silu of the gate, a group of columns at a time, times weight.

    Args:
        x: float32, shape (tokens, ...), of groups * dim elements a token.
        gate: float32, shape (tokens, groups * dim); on a device its rows may be parts of wider ones.
        weight: float32, shape (groups, dim).
        eps: of the norm.

    Returns:
        float32, shape (tokens, groups * dim).
    """
    if get_array_module(x) is not np:
        return device.gate_then_norm(x, gate, weight, eps)
    y = x.reshape(len(x), -1) * activation.silu(gate)
    return (rms_norm(y.reshape(len(x), *weight.shape), None, eps) * weight).reshape(len(x), -1)


def norm_then_gate(
    x: Array, gate: Array, weight: Array, eps: float, consumer: Weight | None = None
) -> Array | PackedOperand:
    """The RMS norm of each head of x, times weight, times the silu of the gate.

    Args:
        x: float32, shape (tokens, heads, dim).
        gate: float32, shape (tokens, heads * dim); on a device its rows may be parts of wider ones.
        weight: float32, shape (dim,).
        eps: of the norm.
        consumer: as in `gated_delta_net`.

    Returns:
        float32, shape (tokens, heads * dim).
    """
    if get_array_module(x) is not np:
        return device.norm_then_gate(x, gate, weight, eps, consumer)
    return rms_norm(x, weight, eps).reshape(len(x), -1) * activation.silu(gate)


def gated_delta_net(
    qkv: Array,
    gate: Array,
    beta: Array,
    alpha: Array,
    conv: Array,
    decay: Array,
    bias: Array,
    norm: Array,
    state: RecurrentLayer,
    heads: tuple[int, int],
    eps: tuple[float, float],
    repeated: bool = False,
    consumer: Weight | None = None,
) -> Array | PackedOperand:
    """A Gated DeltaNet between its projections: `causal_conv`, `gated_delta_rule` and `norm_then_gate`.

    On a device they are one launch where each sequence has one token.

    Args:
        qkv, gate, beta, alpha: what the projections give.
        conv: weight of the convolution.
        decay, bias, heads, repeated: of the rule.
        norm: weight of the norm.
        state: of the convolution and of the rule; both are updated.
        eps: of the rule, and of the norm.
        consumer: the weight that the result is multiplied with, if that is all it is for; the result may come in the
            form in which the product takes it.

    Returns:
        float32, shape (tokens, value_heads * value_dim).
    """
    rule = decay, bias, state, heads, eps[0]
    if get_array_module(qkv) is not np and device.takes_step(qkv, alpha, state, heads, conv):
        return device.delta_step(qkv, gate, beta, alpha, conv, *rule, norm, eps[1], repeated, consumer)
    y = gated_delta_rule(causal_conv(qkv, conv, state), beta, alpha, *rule, repeated=repeated)
    return norm_then_gate(y, gate, norm, eps[1], consumer)


def split_gate(x: Array, heads: int) -> tuple[Array, Array]:
    """Queries and gates, (tokens, heads * dim) each, of x (tokens, heads * 2 * dim), which has both head by head."""
    if get_array_module(x) is not np:
        return device.split_gate(x, heads)
    q, gate = np.moveaxis(x.reshape(len(x), heads, 2, -1), 2, 0)
    return q.reshape(len(x), -1), gate.reshape(len(x), -1)


def sequences(state: RecurrentLayer) -> Iterator[slice]:
    """The rows of each sequence of a batch on the CPU."""
    return (
        slice(*pair) for pair in zip(state.query_starts[:-1].tolist(), state.query_starts[1:].tolist(), strict=True)
    )


def _unit(x: HostArray, eps: float) -> HostArray:
    return x / np.sqrt(np.einsum("thd,thd->th", x, x) + np.float32(eps))[..., None]


def _one_by_one(q: HostArray, k: HostArray, v: HostArray, b: HostArray, log_g: HostArray, s: HostArray) -> HostArray:
    """The rule as it is written: log_g (tokens, heads, 1 or key_dim); s (heads, key_dim, value_dim) is updated."""
    y = np.empty_like(v)
    for i in range(len(q)):
        s *= np.exp(log_g[i])[..., None]
        written = (v[i] - np.matmul(k[i][:, None], s)[:, 0]) * b[i][:, None]
        s += k[i][:, :, None] * written[:, None]
        y[i] = np.matmul(q[i][:, None], s)[:, 0]
    return y


def _chunked(q: HostArray, k: HostArray, v: HostArray, b: HostArray, log_g: HostArray, s: HostArray) -> HostArray:
    """The same by matrix products: what the tokens of a chunk write, given the state before it, is a triangular system.

    With G the sums of log_g within a chunk, and D[i, j] = exp(G[i] - G[j]), token i writes w[i] under k[i]:
    `w[i] = b[i] (v[i] - exp(G[i]) S k[i] - sum over j < i of D[i, j] (k[i] . k[j]) w[j])`.
    """
    y = np.empty_like(v)
    for start in range(0, len(q), CHUNK):
        rows = slice(start, start + CHUNK)
        qc, kc, vc, bc, total = (x[rows].swapaxes(0, 1) for x in (q, k, v, b, log_g[..., 0]))
        total = np.cumsum(total, axis=1)
        share = np.exp(np.tril(total[:, :, None] - total[:, None]))
        system = np.tril(bc[:, :, None] * share * np.matmul(kc, kc.swapaxes(1, 2)), -1)
        right = bc[..., None] * (vc - np.exp(total)[..., None] * np.matmul(kc, s))
        written = np.linalg.solve(system + np.eye(system.shape[1], dtype=np.float32), right)
        y[rows] = _read(qc, kc, written, total, share, s).swapaxes(0, 1)
    return y
