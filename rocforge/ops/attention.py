"""Attention: causal or not, grouped-query, with a sliding window, a cap on the scores, sinks and ALiBi.

Sources: grouped queries: Ainslie et al., https://arxiv.org/abs/2305.13245; sliding window: Jiang et al.,
https://arxiv.org/abs/2310.06825; score cap: Gemma 2, https://arxiv.org/abs/2408.00118; sinks (a learned score a head
that takes part in the softmax and adds nothing): Xiao et al., https://arxiv.org/abs/2309.17453, and gpt-oss; ALiBi
(scores are less the further the key is from the query): Press et al., https://arxiv.org/abs/2108.12409.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.formats.kv_cache import spread
from rocforge.ops.activation import gate_heads
from rocforge.ops.activation import softcap as cap_scores
from rocforge.ops.arguments import check_axes, check_shape, operands
from rocforge.ops.device import attention as attention_device
from rocforge.ops.norm import rms_norm
from rocforge.ops.rope import Rotation, rotate
from rocforge.ops.state import PackedRows, PagedLayer, Span, first_seen
from rocforge.ops.types import Array, HeadGate, HostArray, Weight

QUERY_TILE = 256
"""Queries whose scores are held at a time, which bounds memory on long prompts."""


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    chunked: bool = False,
    softcap: float | None = None,
    sinks: Array = None,
    slopes: Array = None,
) -> Array:
    """Softmax-weighted mean of the values, for one sequence.

    Args:
        q: floats, shape (queries, heads, head_dim); the queries are the last tokens of the sequence.
        k: floats, shape (tokens, kv_heads, head_dim); heads is a multiple of kv_heads. On a device keys and values are
            rounded to float16, as the cache holds them.
        v: floats, shape (tokens, kv_heads, value_dim); on a device value_dim is at most head_dim.
        scale: factor on the scores; None for `1 / sqrt(head_dim)`.
        causal: a query sees no later token.
        window: a query sees itself and the window - 1 tokens before it, and if not causal as many after it; at least
            1; None for all.
        chunked: a query sees, in place of a sliding window, its own run of `window` tokens up to itself.
        softcap: scores become `softcap * tanh(scores / softcap)`.
        sinks: shape (heads,), one more score for each head's softmax.
        slopes: shape (heads,): scores are less by a head's slope times the distance of query and key in tokens, as
            `alibi_slopes` has them; None: they are not.

    Returns:
        float32, shape (queries, heads, value_dim).

    Raises:
        ValueError: the shapes do not fit, or a window under 1.
        TypeError: arrays on both the host and a device.
        UnsupportedModelError: on a device, values longer than keys.

    >>> rng = np.random.default_rng(0)
    >>> q = rng.standard_normal((5, 8, 64), np.float32)
    >>> k, v = rng.standard_normal((2, 5, 2, 64), np.float32)
    >>> rf.attention(q, k, v).shape
    (5, 8, 64)
    """
    module, q, k, v, sinks, slopes = operands("attention", q=q, k=k, v=v, sinks=sinks, slopes=slopes)
    _check_fit(q, k, v)
    _check_options(q, window, sinks, slopes)
    (tokens, kv_heads, head_dim), (queries, heads, _) = k.shape, q.shape
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    if module is not np:
        return attention_device.attention(q, k, v, scale, causal, (window, chunked), softcap, sinks, slopes)
    k, v = k.astype(np.float32, copy=False), v.astype(np.float32, copy=False)
    # (kv_heads, group, queries, head_dim) against (kv_heads, 1, head_dim, tokens), by strides alone
    grouped = (q * np.float32(scale)).reshape(queries, kv_heads, heads // kv_heads, head_dim).transpose(1, 2, 0, 3)
    keys, values = k.transpose(1, 2, 0)[:, None], v.transpose(1, 0, 2)[:, None]
    out = np.empty((queries, kv_heads, heads // kv_heads, v.shape[2]), np.float32)
    for start in range(0, queries, QUERY_TILE):
        rows = slice(start, min(start + QUERY_TILE, queries))
        scores = _product(grouped[:, :, rows], keys)
        if softcap:
            scores = cap_scores(scores, softcap)
        if slopes is not None:
            bias_scores(scores, slopes, tokens - queries + start)
        mask_scores(scores, tokens - queries + start, causal, window, chunked)
        weights = softmax_with_sinks(scores, None if sinks is None else sinks.reshape(*scores.shape[:2], 1, 1))
        out[rows] = _product(weights, values).transpose(2, 0, 1, 3)
    return out.reshape(queries, heads, -1)


def _check_fit(q: Array, k: Array, v: Array) -> None:
    check_axes("attention", "q", q, "queries, heads, head_dim")
    check_axes("attention", "k", k, "tokens, kv_heads, head_dim")
    check_axes("attention", "v", v, "tokens, kv_heads, value_dim")
    check_shape("attention", "v", v, (*k.shape[:2], *v.shape[2:3]))
    (queries, heads, head_dim), (tokens, kv_heads, key_dim) = q.shape, k.shape
    if head_dim != key_dim or queries > tokens or kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"attention: q of shape {q.shape} does not fit k of shape {k.shape}; allowed are as many queries as tokens "
            "or fewer, heads a multiple of kv_heads, and one head_dim"
        )


def _check_options(q: Array, window: int | None, sinks: Array, slopes: Array) -> None:
    if window is not None and window < 1:
        raise ValueError(f"attention: window is {window}; allowed is at least 1, or None for all")
    check_of_heads(q, sinks, slopes)


def check_of_heads(q: Array, sinks: Array, slopes: Array) -> None:
    """Raise a ValueError where there is not one sink, and one slope, for each head of q (tokens, heads, key_dim)."""
    check_shape("attention", "sinks", sinks, q.shape[1:2])
    check_shape("attention", "slopes", slopes, q.shape[1:2])


def _product(a: HostArray, b: HostArray) -> HostArray:
    """a (kv_heads, group, queries, n) @ b (kv_heads, 1, n, m): the group and the queries share one matrix product."""
    kv_heads, group, queries, n = a.shape
    y = a.reshape(kv_heads, group * queries, n) @ b[:, 0]
    return y.reshape(kv_heads, group, queries, -1)


def alibi_slopes(heads: int, largest: float = 8.0) -> HostArray:
    """ALiBi's slopes of heads, float32 (heads,): 2 ** (-largest i / n) for i from 1 on, n being the last power of two
    that is no more than heads; those of further heads lie between these.

    >>> alibi_slopes(4)
    array([0.25      , 0.0625    , 0.015625  , 0.00390625], dtype=float32)
    """
    power = 1 << (heads.bit_length() - 1)
    found = [2.0 ** (-largest * (head + 1) / power) for head in range(power)]
    between = [2.0 ** (-largest / 2 * (2 * head + 1) / power) for head in range(heads - power)]
    return np.array(found + between, np.float32)


def bias_scores(scores: HostArray, slopes: HostArray, first: int) -> None:
    """Lower scores (..., queries, tokens), whose other axes are the heads', by the head's slope times the distance;
    `first` is the position of the first query."""
    queries, tokens = scores.shape[-2:]
    distance = np.abs(np.arange(first, first + queries)[:, None] - np.arange(tokens)).astype(np.float32)
    scores -= slopes.reshape(*scores.shape[:-2], 1, 1) * distance


def mask_scores(scores: HostArray, first: int, causal: bool, window: int | None, chunked: bool) -> None:
    """Put -inf where a query may not look; `first` is the position of the first query."""
    queries, tokens = scores.shape[-2:]
    if causal and window is None:
        scores, first = scores[..., first:], 0  # all queries see all that comes before the first of them
        tokens = scores.shape[-1]
    if causal and queries == 1 and (window is None or tokens <= window):
        return
    positions, keys = np.arange(first, first + queries)[:, None], np.arange(tokens)
    hidden = keys < first_seen(positions, window, chunked)
    if causal:
        hidden |= keys > positions
    elif window is not None:
        hidden |= keys - positions >= window
    np.copyto(scores, -np.inf, where=hidden)


def softmax_with_sinks(scores: HostArray, sinks: HostArray | None) -> Array:
    """The softmax over the last axis, in which sinks, of a shape that broadcasts, take part."""
    highest = scores.max(axis=-1, keepdims=True)
    if sinks is None:
        weights = np.exp(scores - highest)
        weights /= weights.sum(axis=-1, keepdims=True)
        return weights
    highest = np.maximum(highest, sinks)
    weights = np.exp(scores - highest)
    weights /= weights.sum(axis=-1, keepdims=True) + np.exp(sinks - highest)
    return weights


def paged_attention(
    q: Array,
    layer: PagedLayer,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array = None,
    slopes: Array = None,
    gate: HeadGate | None = None,
    consumer: Weight | None = None,
) -> Array:
    """`attention` for each sequence of a batch, with keys and values from the cache.

    Args:
        q: floats, shape (tokens, heads, key_dim), as `rotate_and_store` gives them.
        layer: its keys and values, the batch's stored already, its window, and which rows are whose.
        scale, softcap, sinks, slopes: as in `attention`.
        gate: what the heads' results are multiplied by.
        consumer: the weight that the result is to be multiplied with, if that is all it is for.

    Returns:
        float32, shape (tokens, heads, value_dim); with `consumer` (tokens, heads * value_dim), on a device in the form
        in which a product with that takes it, where the kernels can write it.

    Raises:
        ValueError: a gate does not fit.
        UnsupportedModelError: on a device, values longer than keys.
    """
    check_of_heads(q, sinks, slopes)
    _check_gate(q, layer, gate)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if get_array_module(q) is not np:
        return attention_device.paged_attention(q, layer, scale, softcap, sinks, slopes, gate, consumer)
    keys, values, spans = layer.keys, layer.values, layer.spans
    out = np.empty((*q.shape[:2], values.shape[2]), np.float32)
    options: dict[str, Any] = {"scale": scale, "softcap": softcap, "sinks": sinks, "slopes": slopes}
    options |= {"window": layer.window, "chunked": layer.chunked}
    single = [span for span in spans if span.rows.stop - span.rows.start == 1]
    if len(single) > 1:
        spans = [span for span in spans if span.rows.stop - span.rows.start > 1]
        rows = [span.rows.start for span in single]
        out[rows] = _attention_of_single_queries(q[rows], keys, values, single, **options)
    for span in spans:
        k, v = keys[span.slots], values[span.slots]
        out[span.rows] = attention(q[span.rows], k, v, causal=layer.causal, **options)
    out = out if gate is None else gate_heads(out, gate)
    return out if consumer is None else out.reshape(len(q), -1)


def _check_gate(q: Array, layer: PagedLayer, gate: HeadGate | None) -> None:
    if gate is None:
        return
    shape, heads = gate.values.shape, q.shape[:2]
    whole, single = (*heads, layer.values.shape[-1]), (*heads, 1)
    if shape not in (whole, single):
        raise ValueError(f"attention: gate has the shape {shape}; allowed are {whole} and {single}")


def _attention_of_single_queries(
    q: HostArray,
    keys: HostArray | PackedRows,
    values: HostArray | PackedRows,
    spans: Sequence[Span],
    scale: float,
    softcap: float | None,
    sinks: HostArray | None,
    slopes: HostArray | None,
    window: int | None,
    chunked: bool,
) -> HostArray:
    """`attention` of one query, the last token, for each of many sequences: q (sequences, heads, key_dim).

    Products are a sequence at a time, since each has its own keys; all else is for all at once.
    """
    count, heads, key_dim = q.shape
    kv_heads = keys.shape[1]
    lengths = np.array([span.tokens for span in spans])
    grouped = (q * np.float32(scale)).reshape(count, kv_heads, heads // kv_heads, key_dim)
    scores = np.zeros((*grouped.shape[:3], lengths.max()), np.float32)
    for row, (span, length) in enumerate(zip(spans, lengths, strict=True)):
        np.matmul(grouped[row], keys[span.slots].transpose(1, 2, 0), out=scores[row, ..., :length])
    if softcap:
        scores = cap_scores(scores, softcap)
    last, tokens = lengths[:, None] - 1, np.arange(scores.shape[-1])
    if slopes is not None:
        scores -= slopes.reshape(kv_heads, -1, 1) * np.abs(last - tokens).astype(np.float32)[:, None, None]
    hidden = (tokens > last) | (tokens < first_seen(last, window, chunked))
    np.copyto(scores, -np.inf, where=hidden[:, None, None])
    weights = softmax_with_sinks(scores, None if sinks is None else sinks.reshape(kv_heads, -1, 1))
    out = np.empty((*grouped.shape[:3], values.shape[2]), np.float32)
    for row, (span, length) in enumerate(zip(spans, lengths, strict=True)):
        np.matmul(weights[row, ..., :length], values[span.slots].transpose(1, 0, 2), out=out[row])
    return out.reshape(count, heads, -1)


def attend(
    q: Array,
    k: Array,
    v: Array,
    layer: PagedLayer,
    rotation: Rotation | None,
    *,
    q_norm: Array = None,
    k_norm: Array = None,
    eps: float = 1e-6,
    v_eps: float | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array = None,
    slopes: Array = None,
    gate: HeadGate | None = None,
    consumer: Weight | None = None,
) -> Array:
    """`rotate_and_store`, then `paged_attention`; on a device in one launch where each sequence has one query, with its
    own key and value.

    Args:
        q, k, v, layer, rotation, q_norm, k_norm, eps, v_eps: as in `rotate_and_store`.
        scale, softcap, sinks, slopes, gate, consumer: as in `paged_attention`.

    Returns:
        As `paged_attention`.
    """
    if get_array_module(q) is np:
        q = rotate_and_store(q, k, v, layer, rotation, q_norm, k_norm, eps, v_eps)
        options: dict[str, Any] = {"scale": scale, "softcap": softcap, "sinks": sinks, "slopes": slopes}
        return paged_attention(q, layer, gate=gate, consumer=consumer, **options)
    check_of_heads(q, sinks, slopes)
    _check_gate(q, layer, gate)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    fresh = _fresh(q, k, v, layer, rotation, q_norm, k_norm, eps, v_eps)
    return attention_device.attend(q, fresh, layer, scale, softcap, sinks, slopes, gate, consumer)


def rotate_and_store(
    q: Array,
    k: Array,
    v: Array,
    layer: PagedLayer,
    rotation: Rotation | None,
    q_norm: Array = None,
    k_norm: Array = None,
    eps: float = 1e-6,
    v_eps: float | None = None,
) -> Array:
    """Normalize queries and keys a head at a time, rotate them, and put keys and values into the cache.

    On a device it is one launch.

    Args:
        q: floats, shape (tokens, heads, key_dim); rows, and heads in these, may be parts of wider ones.
        k: floats, shape (tokens, kv_heads, key_dim); None, where the cache has the tokens' keys and values already.
        v: floats, shape (tokens, kv_heads, value_dim); None where k is.
        layer: its slots say where to store.
        rotation: of the tokens' positions; None: queries and keys are not rotated.
        q_norm, k_norm: weights (key_dim,) of RMS norms; None for none.
        eps: of these norms.
        v_eps: of an RMS norm of the values, which has no weight; None: they are stored as they are.

    Returns:
        The queries, float32, the shape of q: as they are multiplied with the cache's keys.

    Raises:
        ValueError: more elements are rotated than a head has.
        UnsupportedModelError: on a device, values longer than keys.
    """
    if get_array_module(q) is not np:
        fresh = _fresh(q, k, v, layer, rotation, q_norm, k_norm, eps, v_eps)
        return attention_device.rotate_and_store(q, fresh, layer)
    if k is not None:
        v = v if v_eps is None else rms_norm(v, None, v_eps)
        store_kv(_turned(k, layer, rotation, k_norm, eps), v, layer)
    return _turned(q, layer, rotation, q_norm, eps).astype(np.float32, copy=False)


def _turned(
    x: HostArray, layer: PagedLayer, rotation: Rotation | None, norm: HostArray | None, eps: float
) -> HostArray:
    """Queries or keys as they are multiplied with each other."""
    if norm is not None:
        x = rms_norm(x, norm, eps)
    if rotation is not None:
        x = rotate(x, rotation.cos, rotation.sin, rotation.neox)
    return spread(x) if isinstance(layer.keys, PackedRows) and layer.keys.type.spread else x


def _fresh(
    q: Array,
    k: Array,
    v: Array,
    layer: PagedLayer,
    rotation: Rotation | None,
    q_norm: Array,
    k_norm: Array,
    eps: float,
    v_eps: float | None,
) -> attention_device.Fresh:
    if rotation is not None and 2 * rotation.cos.shape[1] > q.shape[2]:
        raise ValueError(f"rope: {2 * rotation.cos.shape[1]} elements are rotated, and a head has {q.shape[2]}")
    cos, sin, neox = rotation or (None, None, False)
    return attention_device.Fresh(k, v, layer.slots, cos, sin, q_norm, k_norm, eps, v_eps, neox)


def store_kv(k: Array, v: Array, layer: PagedLayer) -> None:
    """Put keys (tokens, heads, key_dim) and values (.., value_dim) of a batch's tokens into the cache, on the CPU."""
    layer.keys[layer.slots], layer.values[layer.slots] = k, v
