"""Alternating updates: several residual streams, of which layers compute one and predict the others.

Streams are float32, shape (streams, tokens, dim). Source: Baykal et al., https://arxiv.org/abs/2301.13310.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops.device import altup as device
from rocforge.ops.types import Array


def predict(streams: Array, coefs: Array) -> Array:
    """Each stream plus a mixture of all: `streams[j] + sum(coefs[:, j, i] * streams[i])`.

    Args:
        streams: float32 (streams, tokens, dim).
        coefs: float32 (tokens, streams * streams).

    Returns:
        float32, the shape of streams.
    """
    if get_array_module(streams) is not np:
        return device.predict(streams, coefs)
    count = len(streams)
    mixed = coefs.reshape(-1, count, count) @ streams.transpose(1, 0, 2)
    return streams + mixed.transpose(1, 0, 2)


def correct(predictions: Array, activated: Array, coefs: Array, active: int) -> Array:
    """Each stream moved by what the computed one differs from its prediction, times `1 + coefs`.

    Args:
        predictions: float32 (streams, tokens, dim).
        activated: float32 (tokens, dim), what was computed of the stream `active`.
        coefs: float32 (tokens, streams).
        active: its index.

    Returns:
        float32, the shape of predictions.
    """
    if get_array_module(predictions) is not np:
        return device.correct(predictions, activated, coefs, active)
    factors = np.float32(1) + coefs.T[..., None]
    return predictions + factors * (activated - predictions[active])


def add_to_others(streams: Array, y: Array) -> Array:
    """Streams (streams, tokens, dim), with y (tokens, dim) added to all but the first."""
    if get_array_module(streams) is not np:
        return device.add_to_others(streams, y)
    return np.concatenate([streams[:1], streams[1:] + y])


def expand(x: Array, others: Sequence[Array]) -> Array:
    """Streams of x (tokens, dim), the first, and of others of that shape, whose rows get the length of those of x."""
    if get_array_module(x) is not np:
        return device.expand(x, others)
    return np.stack([x, *(with_length_of(y, x) for y in others)])


def with_length_of(x: Array, like: Array) -> Array:
    """Rows of x (tokens, dim), each as long as that of `like`: `x * |like| / |x|`."""
    if get_array_module(x) is not np:
        return device.with_length_of(x, like)
    own, wanted = (np.einsum("td,td->t", a, a)[:, None] for a in (x, like))
    return x * np.sqrt(wanted / own)
