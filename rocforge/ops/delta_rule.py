"""Gated delta rule and causal convolution: layers that keep a state of fixed size instead of keys and values.

Source: Yang et al., Gated Delta Networks, https://arxiv.org/abs/2412.06464.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops.activation import silu
from rocforge.ops.device import delta_rule as device
from rocforge.ops.norm import rms_norm
from rocforge.ops.state import RecurrentLayer
from rocforge.ops.types import Array, HostArray

CHUNK = 32
"""Tokens that the chunked form takes at a time."""
FEW = 4
"""Tokens of a sequence up to which the CPU takes one after another."""


def causal_conv(x: Array, weight: Array, state: RecurrentLayer) -> Array:
    """`silu` of a convolution along each sequence: of a channel's values at a token and at those before it.

    Args:
        x: float32, shape (tokens, channels); on a device its rows may be parts of wider ones.
        weight: float32, shape (channels, width): the last is of the token itself.
        state: its first array, (slots, width - 1, channels), has the values of the tokens before, and is updated.

    Returns:
        float32, shape (tokens, channels).
    """
    if get_array_module(x) is not np:
        return device.causal_conv(x, weight, state)
    y, before = np.empty_like(x, np.float32), state.read(0)
    width = weight.shape[1]
    for rows, kept in zip(sequences(state), before, strict=True):
        padded = np.concatenate([kept, x[rows]])
        y[rows] = sum(padded[i : i + rows.stop - rows.start] * weight[:, i] for i in range(width))
        kept[:] = padded[len(padded) - width + 1 :]
    state.write(0, before)
    return silu(y)


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
    `S = g S; S += b (v - S k) k.T; y = S q / sqrt(key_dim)`, `g = exp(decay * log(1 + exp(alpha + bias)))`.

    Args:
        qkv: float32, shape (tokens, 2 * key_heads * key_dim + value_heads * value_dim): queries, keys, values.
        beta, alpha: float32, shape (tokens, value_heads).
        decay, bias: float32, shape (value_heads,); decay below zero; bias may be None.
        state: its second array, (slots, value_heads, key_dim, value_dim), is S transposed, and is updated.
        heads: of keys, and of values, a multiple of those.
        eps: added to the sum of squares that a key's and a query's length is the root of.
        repeated: value heads one after another share a key head; False: those that are key_heads apart do.

    Returns:
        float32, shape (tokens, value_heads, value_dim).
    """
    if get_array_module(qkv) is not np:
        return device.gated_delta_rule(qkv, beta, alpha, decay, bias, state, heads, eps, repeated)
    (key_heads, value_heads), (key_dim, value_dim) = heads, state.arrays[1].shape[-2:]
    queries, keys, values = np.split(qkv, [key_heads * key_dim, 2 * key_heads * key_dim], axis=1)
    q, k = (_unit(x.reshape(len(x), key_heads, key_dim), eps) for x in (queries, keys))
    shared = np.arange(value_heads) // (value_heads // key_heads) if repeated else np.arange(value_heads) % key_heads
    q, k, v = q[:, shared] / np.float32(np.sqrt(key_dim)), k[:, shared], values.reshape(len(qkv), value_heads, -1)
    b = np.float32(1) / (np.float32(1) + np.exp(-beta))
    log_g = decay * np.logaddexp(alpha if bias is None else alpha + bias, np.float32(0))
    y, before = np.empty((len(qkv), value_heads, value_dim), np.float32), state.read(1)
    for rows, s in zip(sequences(state), before, strict=True):
        parts = q[rows], k[rows], v[rows], b[rows], log_g[rows]
        y[rows] = _one_by_one(*parts, s) if rows.stop - rows.start <= FEW else _chunked(*parts, s)
    state.write(1, before)
    return y


def norm_then_gate(x: Array, gate: Array, weight: Array, eps: float) -> Array:
    """The RMS norm of each head of x, times weight, times the silu of the gate.

    Args:
        x: float32, shape (tokens, heads, dim).
        gate: float32, shape (tokens, heads * dim); on a device its rows may be parts of wider ones.
        weight: float32, shape (dim,).
        eps: of the norm.

    Returns:
        float32, shape (tokens, heads * dim).
    """
    if get_array_module(x) is not np:
        return device.norm_then_gate(x, gate, weight, eps)
    return rms_norm(x, weight, eps).reshape(len(x), -1) * silu(gate)


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
    """The rule as it is written; s (heads, key_dim, value_dim) is updated."""
    y = np.empty_like(v)
    for i in range(len(q)):
        s *= np.exp(log_g[i])[:, None, None]
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
        qc, kc, vc, bc, total = (x[rows].swapaxes(0, 1) for x in (q, k, v, b, log_g))
        total = np.cumsum(total, axis=1)
        share = np.exp(np.tril(total[:, :, None] - total[:, None]))
        system = np.tril(bc[:, :, None] * share * np.matmul(kc, kc.swapaxes(1, 2)), -1)
        right = bc[..., None] * (vc - np.exp(total)[..., None] * np.matmul(kc, s))
        written = np.linalg.solve(system + np.eye(system.shape[1], dtype=np.float32), right)
        within = np.tril(share * np.matmul(qc, kc.swapaxes(1, 2)))
        y[rows] = (np.exp(total)[..., None] * np.matmul(qc, s) + np.matmul(within, written)).swapaxes(0, 1)
        left = np.exp(total[:, -1:] - total)
        s *= np.exp(total[:, -1])[:, None, None]
        s += np.matmul((kc * left[..., None]).swapaxes(1, 2), written)
    return y
