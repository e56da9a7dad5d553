"""Routing tokens to experts on a device: launches of moe.hip. Shapes and meanings are those of rocforge.ops.moe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rocforge.device import tuning
from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.planar import CELL, cells_of
from rocforge.ops.device.operands import PackedOperand, empty_operand
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.device.strided import a_thread_each, blocks, float32
from rocforge.ops.types import Array, Groups, Weight
from rocforge.quant import QuantizedArray

MAX_USED = 32
"""The most experts a token goes to on a device: the lanes of a wave, the groups of a block of experts.hip."""
MOST_EXPERTS, MOST_GROUPS = 1024, 64
"""Experts, and groups of them, that a block chooses of."""
ROUTER_THREADS, ROUTER_TOKENS = 128, 2
"""Of a block of the router; and the tokens that it has."""
MOST_PAIRS = (1 << 31) - 1

_route = Kernel("moe.hip", "route")
_ROUTER = {False: Kernel("moe.hip", "router"), True: Kernel("moe.hip", "router", RF_BESIDE=1)}
_group = Kernel("moe.hip", "group_by_expert", "int32* int32* int32* int32* int32* int32 int32 int32 int32")
_scatter = Kernel("moe.hip", "scatter_tokens", "float32* int32* uint8* uint32 uint32 uint32 uint32")
_scale = Kernel("moe.hip", "scale_by_expert", "float32* float32* int32* float32* uint32 uint64")
_combine = Kernel(
    "moe.hip", "combine_experts", "float32* float32*? float16*? int32*? float32*? float32*? uint32 uint32"
)


class Routing(NamedTuple):
    """How tokens are routed, as kernels take it: the fields are those of `Routing` in routing.h."""

    experts: int
    used: int
    softmax_before: int
    normalize: int
    scale: float
    sigmoid: int = 0
    groups: int = 1
    groups_used: int = 1
    bias: Array = None
    expert_scales: Array = None
    always: int = 0
    gates: int = 0

    @classmethod
    def of(
        cls,
        experts: int,
        used: int,
        softmax_before: bool,
        normalize: bool,
        scale: float,
        sigmoid: bool = False,
        groups: tuple[int, int] = (1, 1),
        bias: Array = None,
        expert_scales: Array = None,
    ) -> Routing:
        """Raises:
        ValueError: there are more experts than a block counts, or more groups.
        """
        if groups[0] > MOST_GROUPS:
            raise ValueError(f"{groups[0]} groups of experts; on a device there are at most {MOST_GROUPS}")
        flags = int(softmax_before), int(normalize)
        arrays = float32(bias), float32(expert_scales)
        return cls(counted(experts), used, *flags, scale, int(sigmoid), *groups, *arrays)

    def has_arrays_of(self, given: Sequence[Any]) -> bool:
        """Whether its arrays are as they were given, so that nothing was launched for them."""
        return all(array is None or any(array is each for each in given) for array in (self.bias, self.expert_scales))


def route(logits: Array, routing: Routing) -> tuple[Array, Array]:
    """What `rocforge.ops.moe.route` gives: ids as int32."""
    cupy, (tokens, _) = cupy_module(), logits.shape
    ids, weights = (cupy.empty((tokens, routing.used), dtype) for dtype in (np.int32, np.float32))
    if tokens:
        args = {"ids": ids, "weights": weights, "logits": float32(logits), "routing": routing}
        _route((tokens,), (tuning.current().elementwise_threads,), args)
    return ids, weights


def counted(experts: int) -> int:
    """A number of experts, of which a block can count each one's pairs."""
    if experts > MOST_EXPERTS:
        raise ValueError(f"{experts} experts; on a device there are at most {MOST_EXPERTS}")
    return experts


def router(
    x: Array, weight: Array, eps: float, matrix: Array, bias: Array, form: OperandForm, beside: bool = False
) -> tuple[PackedOperand, Array]:
    """The rms_norm of tokens as products with experts take it, and the router's logits of it, of one launch.

    Args:
        x: float32 (tokens, dim), dim a multiple of 4.
        weight: float32 (dim,), the norm's.
        matrix: float32 (experts, dim).
        bias: float32 (experts,), or None.
        form: a packed one.
        beside: the launch may run beside the one before it, of which it takes nothing.

    Returns:
        The operand; float32 (tokens, experts).
    """
    operand = empty_operand(x.shape, form)
    to = {"quantized": operand.data, "width": operand.width, "cells": cells_of(x.shape[1])}
    return operand, _logits(x, weight, matrix, bias, {"eps": eps, **to}, beside)


def routes_few(matrix: Weight, tokens: int) -> bool:
    """Whether logits of so many tokens are of a launch of `router` or `router_logits`."""
    plain = not isinstance(matrix, QuantizedArray) and matrix.dtype == np.float32 and matrix.shape[1] % 4 == 0
    return plain and 0 < tokens <= tuning.current().router_tokens


def router_logits(x: Array, matrix: Array, bias: Array, beside: bool = False) -> Array:
    """`x @ matrix.T + bias` of tokens that are normalized, all as `router` has them."""
    nothing = {"eps": 0.0, "quantized": None, "width": 0, "cells": 0}
    return _logits(x, None, matrix, bias, nothing, beside)


def _logits(x: Array, norm: Array, matrix: Array, bias: Array, args: dict[str, Any], beside: bool) -> Array:
    (tokens, dim), count = x.shape, len(matrix)
    logits, waves = cupy_module().empty((tokens, count), np.float32), ROUTER_THREADS // card_of(x.device.id).wave
    given, taken = (x, bias, norm), (float32(x), float32(bias), float32(norm))
    args |= {"x": taken[0], "tokens": tokens, "n": dim, "w": matrix, "bias": taken[1], "weight": taken[2]}
    args |= {"experts": count, "logits": logits}
    beside = beside and all(a is b for a, b in zip(given, taken, strict=True))  # else a copy is what comes before
    _ROUTER[beside and tuning.current().beside](
        (blocks(count, waves), blocks(tokens, ROUTER_TOKENS)), (ROUTER_THREADS,), args
    )
    return logits


def scale_by_expert(y: Array, ids: Array, scales: Array) -> Array:
    """What `rocforge.ops.moe.scale_by_expert` gives."""
    out, ids = cupy_module().empty(y.shape, np.float32), cupy_module().ascontiguousarray(ids, dtype=np.int32)
    if y.size:
        _scale(*a_thread_each(y.size), (out, float32(y), ids, float32(scales), y.shape[1], y.size))
    return out


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


def sorted_pairs(ids: Array, count: int, height: int, unit: int = 1) -> tuple[Groups, PairTiles]:
    """`group_by_expert`, and each expert's pairs in tiles of up to `height`, of one launch.

    Args:
        ids: (tokens, used).
        count: experts.
        height: of a tile, a multiple of `unit`.
        unit: each expert begins at a multiple of this.

    Raises:
        ValueError: there are more experts than a block counts.
    """
    empty, ids, count = cupy_module().empty, cupy_module().ascontiguousarray(ids, dtype=np.int32), counted(count)
    places = ids.size + (unit - 1) * min(count, ids.size)
    groups = Groups(empty(places, np.int32), empty(ids.size, np.int32), empty(count + 1, np.int32))
    most = min(ids.size, ids.size // height + count)
    tiles = PairTiles(empty((1 + most, 4), np.int32), most)
    args = (*groups, tiles.listed, ids, ids.size, count, height, unit)
    _group((count,), (tuning.current().elementwise_threads,), args)
    return groups, tiles


def scatter_tokens(x: Array, rank: Array, width: int) -> PackedOperand:
    """Tokens in the places of their pairs, swizzled.

    Args:
        x: float32 (tokens, dim), dim a multiple of 4.
        rank: int32 (pairs,), where each pair is.
        width: places.
    """
    (tokens, dim), threads = x.shape, tuning.current().elementwise_threads
    out, cells = empty_operand((width, dim), OperandForm.SWIZZLED), cells_of(dim)
    grid = (tokens, blocks(cells * CELL, 4 * threads))
    _scatter(grid, (threads,), (x, rank, out.data, len(rank) // tokens, dim, out.width, cells))
    return out


def floats_of(y: Array) -> tuple[Array, Array]:
    """An array as kernels take it that read float32 or float16: in the first or the second place."""
    return (None, y) if y.dtype == np.float16 else (y, None)


def combine(y: Array, rank: Array, weights: Array, residual: Array) -> Array:
    """The weighted sum over each token's experts.

    Args:
        y: float32 or float16 (token-expert pairs, dim).
        rank: int32 (pairs,), where in y each pair is; None: in their order.
        weights: float32 (tokens, used).
        residual: float32 (tokens, dim), added; or None.

    Returns:
        float32 (tokens, dim).
    """
    (tokens, used), dim, threads = weights.shape, y.shape[1], tuning.current().elementwise_threads
    out = cupy_module().empty((tokens, dim), np.float32)
    if out.size:
        _combine((tokens, blocks(dim, threads)), (threads,), (out, *floats_of(y), rank, weights, residual, used, dim))
    return out
