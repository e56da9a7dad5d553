"""Routing tokens to experts on a device: launches of moe.hip. Shapes and meanings are those of rocforge.ops.moe."""

from __future__ import annotations

import numpy as np

from rocforge.device import tuning
from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.strided import a_thread_each, blocks, float32
from rocforge.ops.types import Array, Groups

MAX_USED = 32
"""The most experts a token goes to on a device: the lanes of a wave, the groups of a block of experts.hip."""

_route = Kernel("moe.hip", "route", "int32* float32* float32* uint32 int32 uint32 int32 int32 float32")
_group = Kernel("moe.hip", "group_by_expert", "int32* int32* int32* int32* int32 int32")
_combine = Kernel("moe.hip", "combine_experts", "float32* float32* int32*? float32*? float32*? uint32 uint32")


def route(logits: Array, used: int, softmax_before: bool, normalize: bool, scale: float) -> tuple[Array, Array]:
    """What `rocforge.ops.moe.route` gives: ids as int32."""
    cupy, logits = cupy_module(), float32(logits)
    tokens, count = logits.shape
    ids, weights = cupy.empty((tokens, used), np.int32), cupy.empty((tokens, used), np.float32)
    if tokens:
        args = (ids, weights, logits, tokens, count, used, int(softmax_before), int(normalize), scale)
        _route(*a_thread_each(tokens * card_of(logits.device.id).wave), args)
    return ids, weights


def group_by_expert(ids: Array, count: int) -> Groups:
    """What `rocforge.ops.moe.group_by_expert` gives."""
    cupy = cupy_module()
    ids = cupy.ascontiguousarray(ids, dtype=np.int32)
    groups = Groups(cupy.empty(ids.size, np.int32), cupy.empty(ids.size, np.int32), cupy.empty(count + 1, np.int32))
    _group((count,), (tuning.current().elementwise_threads,), (*groups, ids, ids.size, count))
    return groups


def combine(y: Array, rank: Array, weights: Array, residual: Array) -> Array:
    """The weighted sum over each token's experts.

    Args:
        y: float32 (token-expert pairs, dim).
        rank: int32 (pairs,), where in y each pair is; None: in their order.
        weights: float32 (tokens, used).
        residual: float32 (tokens, dim), added; or None.

    Returns:
        float32 (tokens, dim).
    """
    (tokens, used), dim, threads = weights.shape, y.shape[1], tuning.current().elementwise_threads
    out = cupy_module().empty((tokens, dim), np.float32)
    if out.size:
        _combine((tokens, blocks(dim, threads)), (threads,), (out, y, rank, weights, residual, used, dim))
    return out
