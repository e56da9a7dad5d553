"""What RWKV's layers compute beside products: the token shift, and heads that read, forget and write a state.

Sources: RWKV-6, Peng et al., https://arxiv.org/abs/2404.05892; RWKV-7, https://arxiv.org/abs/2503.14456; gated linear
attention, Yang et al., https://arxiv.org/abs/2312.06635.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops import activation
from rocforge.ops.activation import sigmoid
from rocforge.ops.device import rwkv as device
from rocforge.ops.norm import layer_norm
from rocforge.ops.recurrent import sequences
from rocforge.ops.state import RecurrentLayer
from rocforge.ops.types import Array, HeadNorm, HostArray

SLOWEST = -0.606531
"""The logarithm of what RWKV-7 keeps of a state at least: -exp(-1/2)."""


def token_shift(x: Array, mix: Array, state: RecurrentLayer, offsets: Array = None, *, keep: bool = True) -> Array:
    """Mixtures of each token with the one before it: `x + (previous - x) * (mix + offsets)`.

    Args:
        x: float32, shape (tokens, dim).
        mix: float32, shape (mixes, dim).
        state: its first array, (slots, 1, dim), has the token before each sequence's.
        offsets: float32, shape (mixes, tokens, dim), or None.
        keep: whether the state gets each sequence's last token.

    Returns:
        float32, shape (mixes, tokens, dim).
    """
    if get_array_module(x) is not np:
        return device.token_shift(x, mix, state, offsets, keep)
    previous, before = np.empty_like(x), state.read(0)
    for rows, kept in zip(sequences(state), before, strict=True):
        previous[rows] = np.concatenate([kept, x[rows][:-1]])
        kept[:] = x[rows][-1:]
    if keep:
        state.write(0, before)
    share = mix[:, None] if offsets is None else mix[:, None] + offsets
    return x + (previous - x) * share


class Wkv7Weights(NamedTuple):
    """The weights of RWKV-7's heads, float32, shape (heads * dim,) each.

    Attributes:
        decay, rate: are added to the logits of these.
        removed: of a key, how it is looked up to be replaced.
        kept: of a key, how much the rate scales.
        bonus: what a token's own key counts for, beside the state.
    """

    decay: Array
    rate: Array
    removed: Array
    kept: Array
    bonus: Array


class FirstValues(NamedTuple):
    """The values of the first layer, of which later ones take a share.

    Attributes:
        values: float32, shape (tokens, heads * dim).
        share: logits, likewise.
        bias: float32, shape (heads * dim,), is added to those.
    """

    values: Array
    share: Array
    bias: Array


def wkv7(
    r: Array,
    k: Array,
    v: Array,
    decay: Array,
    rate: Array,
    weights: Wkv7Weights,
    state: RecurrentLayer,
    *,
    first: FirstValues | None = None,
    norm: HeadNorm | None = None,
    gate: Array = None,
) -> Array:
    """What the heads of RWKV-7 read from their states S.

    With `w = exp(-exp(-1/2) sigmoid(decay))` and `a = sigmoid(rate)`, the key u = k * removed of length 1, what is left
    of the key, `k (1 + kept (a - 1))`, and the value v, shared with the first layer's, a token makes
    `S = S diag(w) - (S u) (a u).T + v k.T; y = norm(S r) + (r . bonus k) v`, times the gate.

    Args:
        r, k, v: float32, shape (tokens, heads * dim): receptances, keys, values.
        decay, rate: logits, likewise, before their weights are added.
        weights: of the layer.
        state: its last array, (slots, heads, dim, dim), is S transposed, and is updated.
        first: where v takes a share of these; or None.
        norm: of what is read; or None.
        gate: float32, the shape of r, is multiplied with the result; or None.

    Returns:
        float32, shape (tokens, heads * dim).

    Raises:
        ValueError: on a device, heads of a size that its kernel does not take.
    """
    if get_array_module(r) is not np:
        shared = {} if first is None else {"first": first.values, "share": first.share, "share_bias": first.bias}
        named = {"r": r, "k": k, "v": v, "decay": decay, "rate": rate, **shared}
        more = {"decay_bias": weights.decay, "rate_bias": weights.rate, "removed": weights.removed}
        return device.wkv(7, state, 1.0, norm, gate=gate, kept=weights.kept, bonus=weights.bonus, **named, **more)
    heads = state.arrays[-1].shape[-3]
    w = np.exp(np.float32(SLOWEST) * sigmoid(decay + weights.decay))
    a, u = sigmoid(rate + weights.rate), _heads(k * weights.removed, heads)
    u = u / np.maximum(np.sqrt((u * u).sum(-1, keepdims=True)), np.float32(1e-12))
    k = k + k * weights.kept * (a - 1)
    if first is not None:
        v = v + (first.values - v) * sigmoid(first.share + first.bias)
    r, w, k, v, a = (_heads(part, heads) for part in (r, w, k, v, a))
    y, before = np.empty_like(r), state.read(-1)
    for rows, s in zip(sequences(state), before, strict=True):
        for i in range(rows.start, rows.stop):
            read = np.matmul(u[i][:, None], s)
            s *= w[i][..., None]
            s += k[i][..., None] * v[i][:, None] - (a[i] * u[i])[..., None] * read
            y[i] = np.matmul(r[i][:, None], s)[:, 0]
    state.write(-1, before)
    bonus = (r * k * weights.bonus.reshape(heads, -1)).sum(-1, keepdims=True)
    y = _normalized(y, norm) + (bonus * v).reshape(len(y), -1)
    return y if gate is None else y * gate


def wkv6(
    r: Array,
    k: Array,
    v: Array,
    decay: Array,
    decay_bias: Array,
    state: RecurrentLayer,
    *,
    bonus: Array,
    norm: HeadNorm,
    gate: Array,
) -> Array:
    """What the heads of RWKV-6 read from their states S, once for a token before it is written there.

    With `w = exp(-exp(decay + decay_bias))`, `y = S r + (r . bonus k) v; S = S diag(w) + v k.T`; and the norm of y
    times the silu of the gate.

    Args:
        r, k, v: float32, shape (tokens, heads * dim): receptances, keys, values.
        decay: logits, likewise.
        decay_bias, bonus: float32, shape (heads * dim,).
        state: its last array, (slots, heads, dim, dim), is S transposed, and is updated.
        norm: of what is read.
        gate: the shape of r.

    Returns:
        float32, shape (tokens, heads * dim).

    Raises:
        ValueError: on a device, heads of a size that its kernel does not take.
    """
    if get_array_module(r) is not np:
        named = {"r": r, "k": k, "v": v, "decay": decay, "decay_bias": decay_bias, "bonus": bonus, "gate": gate}
        return device.wkv(6, state, 1.0, norm, **named)
    heads = state.arrays[-1].shape[-3]
    r, w, k, v = (_heads(x, heads) for x in (r, _decay6(decay, decay_bias), k, v))
    y = (r * k * bonus.reshape(heads, -1)).sum(-1, keepdims=True) * v
    before = state.read(-1)
    for rows, s in zip(sequences(state), before, strict=True):
        for i in range(rows.start, rows.stop):
            y[i] += np.matmul(r[i][:, None], s)[:, 0]
            s *= w[i][..., None]
            s += k[i][..., None] * v[i][:, None]
    state.write(-1, before)
    return _normalized(y, norm) * activation.silu(gate)


def gated_linear_attention(
    q: Array, k: Array, v: Array, decay: Array, decay_bias: Array, state: RecurrentLayer, *, scale: float, gate: Array
) -> Array:
    """What each head reads from its state S, after a token's value has been added to it under the token's key.

    With `w = exp(-exp(decay + decay_bias))`, `S = S diag(w) + v (k (1 - w)).T; y = scale S q`, times the sigmoid of the
    gate.

    Args:
        q: float32, shape (tokens, heads * dim).
        k, v: float32, shape (tokens, kv_heads * dim): heads one after another share a key and a value.
        decay, decay_bias, state, gate: as in `wkv6`.
        scale: factor on what is read.

    Returns:
        float32, shape (tokens, heads * dim).

    Raises:
        ValueError: on a device, heads of a size that its kernel does not take.
    """
    if get_array_module(q) is not np:
        named = {"r": q, "k": k, "v": v, "decay": decay, "decay_bias": decay_bias, "gate": gate}
        return device.wkv(6, state, scale, None, **named)
    heads, _, dim = state.arrays[-1].shape[-3:]
    shared = heads * dim // k.shape[1]
    k, v = (np.repeat(x.reshape(len(x), -1, dim), shared, axis=1) for x in (k, v))
    q, w = _heads(q, heads), _heads(_decay6(decay, decay_bias), heads)
    k, y, before = k * (1 - w), np.empty_like(q), state.read(-1)
    for rows, s in zip(sequences(state), before, strict=True):
        for i in range(rows.start, rows.stop):
            s *= w[i][..., None]
            s += k[i][..., None] * v[i][:, None]
            y[i] = np.matmul(q[i][:, None], s)[:, 0]
    state.write(-1, before)
    return np.float32(scale) * y.reshape(len(y), -1) * sigmoid(gate)


def _heads(x: HostArray, heads: int) -> HostArray:
    return x.reshape(len(x), heads, -1)


def _decay6(decay: HostArray, bias: HostArray) -> HostArray:
    kept: HostArray = np.exp(-np.exp(decay + bias))
    return kept


def _normalized(y: HostArray, norm: HeadNorm | None) -> HostArray:
    """Of y (tokens, heads, dim), shape (tokens, heads * dim)."""
    if norm is None:
        return y.reshape(len(y), -1)
    return layer_norm(y, None, None, norm.eps).reshape(len(y), -1) * norm.weight + norm.bias
