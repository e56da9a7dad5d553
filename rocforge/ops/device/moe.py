"""Routing tokens to experts on a device: launches of moe.hip. Shapes and meanings are those of rocforge.ops.moe."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rocforge.device import tuning
from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.strided import a_thread_each, blocks, float32
from rocforge.ops.types import Array, Groups

MAX_USED = 32
"""The most experts a token goes to on a device: the lanes of a wave, the groups of a block of experts.hip."""
MOST_EXPERTS = 1024
"""Experts that a block of moe.hip counts the pairs of."""
MOST_PAIRS = (1 << 31) - 1

_route = Kernel("moe.hip", "route", "int32* float32* float32* uint32 int32 uint32 int32 int32 float32")
_group = Kernel("moe.hip", "group_by_expert", "int32* int32* int32* int32* int32* int32 int32 int32")
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
    return sorted_pairs(ids, count, MOST_PAIRS)[0]


class PairTiles(NamedTuple):
    """Sorted pairs, cut in tiles of one expert's, as kernels find them.

    Attributes:
        listed: int32 (1 + most, 4), of which [0, 0] is the number of tiles, and each row after that is an expert, where
            its tile begins in the order, and how many pairs that has.
        most: how many there may be.
    """

    listed: Array
    most: int


def sorted_pairs(ids: Array, count: int, height: int) -> tuple[Groups, PairTiles]:
    """`group_by_expert`, and each expert's pairs in tiles of up to `height`, of one launch.

    Raises:
        ValueError: there are more experts than a block counts.
    """
    if count > MOST_EXPERTS:
        raise ValueError(f"group_by_expert: {count} experts; on a device there are at most {MOST_EXPERTS}")
    cupy = cupy_module()
    ids = cupy.ascontiguousarray(ids, dtype=np.int32)
    groups = Groups(cupy.empty(ids.size, np.int32), cupy.empty(ids.size, np.int32), cupy.empty(count + 1, np.int32))
    most = min(ids.size, ids.size // height + count)
    tiles = PairTiles(cupy.empty((1 + most, 4), np.int32), most)
    args = (*groups, tiles.listed, ids, ids.size, count, height)
    _group((count,), (tuning.current().elementwise_threads,), args)
    return groups, tiles


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
