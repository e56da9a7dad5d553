"""Mixture of experts: which experts a token goes to, and products with each token's expert.

Source: Shazeer et al., Outrageously Large Neural Networks, https://arxiv.org/abs/1701.06538.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rocforge.arrays import cupy_module, get_array_module
from rocforge.kernels import Kernel, wave_size
from rocforge.ops.activation import softmax
from rocforge.ops.strided import blocks, float32

THREADS = 256
"""As in moe.hip."""

_route = Kernel("moe.hip", "route", "int32* float32* float32* uint32 int32 uint32 int32 int32")
_group = Kernel("moe.hip", "group_by_expert", "int32* int32* int32* int32* int32 int32")
_gather = Kernel("moe.hip", "gather_rows", "float32* float32* int32* uint32 uint32")
_combine = Kernel("moe.hip", "combine_experts", "float32* float32* int32* float32* uint32 uint32")


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
    if get_array_module(logits) is not np:
        return _route_device(logits, used, softmax_before, normalize)
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :used]
    if not softmax_before:
        return ids, softmax(np.take_along_axis(logits, ids, axis=-1))
    weights = np.take_along_axis(softmax(logits), ids, axis=-1)
    if normalize:
        # the floor is the smallest normal float16, as the published implementations have it
        weights /= np.maximum(weights.sum(axis=-1, keepdims=True), np.float32(2.0**-14))
    return ids, weights


def _route_device(logits: Any, used: int, softmax_before: bool, normalize: bool) -> tuple[Any, Any]:
    cupy, logits = cupy_module(), float32(logits)
    tokens, count = logits.shape
    ids, weights = cupy.empty((tokens, used), np.int32), cupy.empty((tokens, used), np.float32)
    if tokens:
        grid = (blocks(tokens * wave_size(logits.device.id), THREADS),)
        args = (ids, weights, logits, tokens, count, used, int(softmax_before), int(normalize))
        _route(grid, (THREADS,), args)
    return ids, weights


class Groups(NamedTuple):
    """Places (token, choice), numbered `token * used + choice`, sorted by the expert that was chosen; int32 arrays.

    Attributes:
        order: the places, those of expert 0 first, each expert's in their own order.
        rank: the inverse: where in `order` each place is.
        offsets: shape (experts + 1,), where in `order` each expert begins, and the end.
    """

    order: Any
    rank: Any
    offsets: Any


def group_by_expert(ids: Any, count: int) -> Groups:
    """Sort the places of `ids` (tokens, used), from `route`, by expert, of which there are `count`."""
    if get_array_module(ids) is not np:
        cupy = cupy_module()
        ids = cupy.ascontiguousarray(ids, dtype=np.int32)
        groups = Groups(cupy.empty(ids.size, np.int32), cupy.empty(ids.size, np.int32), cupy.empty(count + 1, np.int32))
        _group((count,), (THREADS,), (*groups, ids, ids.size, count))
        return groups
    order = np.argsort(ids.reshape(-1), kind="stable").astype(np.int32)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    counts = np.bincount(ids.reshape(-1), minlength=count)
    return Groups(order, rank, np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))


def experts(x: Any, ids: Any, weights: Any, expert: Callable[[int, Any], Any]) -> Any:
    """The weighted sum of what each token's experts give.

    Args:
        x: floats, shape (tokens, dim).
        ids, weights: shape (tokens, used), from `route`.
        expert: (index, rows of x) -> float32 of the rows' shape.

    Returns:
        float32, shape (tokens, dim).
    """
    if get_array_module(x) is not np:
        return _experts_device(x, ids, weights, expert)
    out = np.zeros(x.shape, np.float32)
    for index in np.unique(ids):
        rows, slots = np.nonzero(ids == index)
        out[rows] += weights[rows, slots][:, None] * expert(int(index), x[rows])
    return out


def _experts_device(x: Any, ids: Any, weights: Any, expert: Callable[[int, Any], Any]) -> Any:
    """Each expert on its rows, side by side. The host waits for the ids, so this cannot be captured in a graph."""
    cupy, x = cupy_module(), float32(x)
    (tokens, dim), used = x.shape, ids.shape[1]
    out, y = cupy.empty(x.shape, np.float32), cupy.empty((tokens * used, dim), np.float32)
    chosen = ids.get()
    groups = group_by_expert(ids, int(chosen.max()) + 1)
    rows = cupy.empty((tokens * used, dim), np.float32)
    _gather((tokens * used, blocks(dim, THREADS)), (THREADS,), (rows, x, groups.order, used, dim))
    start = 0
    for index, count in enumerate(np.bincount(chosen.reshape(-1))):
        if count:
            y[start : start + count] = expert(index, rows[start : start + count])
        start += count
    _combine((tokens, blocks(dim, THREADS)), (THREADS,), (out, y, groups.rank, float32(weights), used, dim))
    return out
