"""Attention in two parts, with the pattern between them, for those who look at it or change it.

A pattern is float32, (heads, tokens, keys): what each token's query sees of the tokens of its own sequence, by their
positions, whatever else is in the batch. `keys` is the length of the longest sequence, or more; a row is zero where its
query sees nothing: if causal beyond its own position, outside its window, past its sequence's end. With sinks a row's
sum is less than one by the sink's share.
"""

from __future__ import annotations

import math

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops.activation import softcap as cap_scores
from rocforge.ops.attention import bias_scores, check_of_heads, mask_scores, softmax_with_sinks
from rocforge.ops.device import attention_pattern as device
from rocforge.ops.state import PagedLayer, Span, first_seen
from rocforge.ops.types import Array


def attention_pattern(
    q: Array,
    layer: PagedLayer,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array = None,
    slopes: Array = None,
) -> Array:
    """The softmax of each query's scores, with `paged_attention`'s arguments.

    Args:
        q: floats, shape (tokens, heads, key_dim), as `rotate_and_store` gives them.
        layer: its keys, the batch's stored already.
        scale, softcap, sinks, slopes: as in `attention`.

    Returns:
        float32, shape (heads, tokens, keys), `layer.longest` of them.
    """
    check_of_heads(q, sinks, slopes)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if get_array_module(q) is not np:
        return device.attention_pattern(q, layer, scale, softcap, sinks, slopes)
    tokens, heads, _ = q.shape
    pattern = np.zeros((heads, tokens, layer.longest), np.float32)
    group = heads // layer.keys.shape[1]
    for span, first, last in _spans(layer):
        queries = (q[span.rows] * np.float32(scale)).transpose(1, 0, 2)
        keys = layer.keys[span.slots].transpose(1, 2, 0).astype(np.float32, copy=False)
        scores = queries @ np.repeat(keys, group, axis=0)
        if softcap:
            scores = cap_scores(scores, softcap)
        if slopes is not None:
            bias_scores(scores, slopes, span.tokens - queries.shape[1])
        mask_scores(scores, span.tokens - queries.shape[1], layer.causal, layer.window, layer.chunked)
        sink = None if sinks is None else sinks.reshape(-1, 1, 1)
        pattern[:, span.rows, first:last] = softmax_with_sinks(scores, sink)
    return pattern


def attention_heads(pattern: Array, layer: PagedLayer) -> Array:
    """Sums of the values by a pattern, which may be any: also of tokens after the query's, where they are cached.

    What it has before a query's window, where no values are kept, and past the sequence's end is not read.

    Args:
        pattern: float32, as `attention_pattern` gives it.
        layer: its values.

    Returns:
        float32, shape (tokens, heads, value_dim).
    """
    if get_array_module(pattern) is not np:
        return device.attention_heads(pattern, layer)
    heads, tokens, _ = pattern.shape
    out = np.empty((tokens, heads, layer.values.shape[2]), np.float32)
    group = heads // layer.values.shape[1]
    for span, first, last in _spans(layer):
        weights = pattern[:, span.rows, first:last]
        if layer.window is not None:
            queries, keys = weights.shape[1:]
            seen = first_seen(np.arange(keys - queries, keys)[:, None], layer.window, layer.chunked)
            weights = np.where(np.arange(keys) < seen, np.float32(0), weights)
        values = layer.values[span.slots].transpose(1, 0, 2).astype(np.float32, copy=False)
        out[span.rows] = (weights @ np.repeat(values, group, axis=0)).transpose(1, 0, 2)
    return out


def _spans(layer: PagedLayer) -> list[tuple[Span, int, int]]:
    """Each sequence on the CPU, and from which to which position its span has slots of."""
    lengths = [int(length) for length in layer.lengths]
    return [(span, length - span.tokens, length) for span, length in zip(layer.spans, lengths, strict=True)]
