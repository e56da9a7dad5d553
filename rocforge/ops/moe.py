"""Mixture of experts: which experts a token goes to, and products with each token's expert.

Source: Shazeer et al., Outrageously Large Neural Networks, https://arxiv.org/abs/1701.06538.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rocforge.ops.activation import softmax


def route(logits: Any, used: int, softmax_before: bool = True, normalize: bool = True) -> tuple[Any, Any]:
    """The experts with the highest logits for each token, and their weights.

    Args:
        logits: floats, shape (tokens, experts).
        used: how many experts a token goes to.
        softmax_before: the softmax is over all experts; False: over the chosen ones alone (gpt-oss).
        normalize: a token's weights are made to sum to one.

    Returns:
        ids, integers of shape (tokens, used), the highest first; weights, float32 of that shape.
    """
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :used]
    if not softmax_before:
        return ids, softmax(np.take_along_axis(logits, ids, axis=-1))
    weights = np.take_along_axis(softmax(logits), ids, axis=-1)
    if normalize:
        # the floor is the smallest normal float16, as the published implementations have it
        weights /= np.maximum(weights.sum(axis=-1, keepdims=True), np.float32(2.0**-14))
    return ids, weights


def experts(x: Any, ids: Any, weights: Any, expert: Callable[[int, Any], Any]) -> Any:
    """The weighted sum of what each token's experts give.

    Args:
        x: floats, shape (tokens, dim).
        ids, weights: shape (tokens, used), from `route`.
        expert: (index, rows of x) -> float32 of the rows' shape.

    Returns:
        float32, shape (tokens, dim).
    """
    out = np.zeros(x.shape, np.float32)
    for index in np.unique(ids):
        rows, slots = np.nonzero(ids == index)
        out[rows] += weights[rows, slots][:, None] * expert(int(index), x[rows])
    return out
