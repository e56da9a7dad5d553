"""Mixture of experts: which experts a token goes to, and products with each token's expert.

Source: Shazeer et al., Outrageously Large Neural Networks, https://arxiv.org/abs/1701.06538.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rocforge.device.arrays import cupy_module, get_array_module
from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.ops import activation
from rocforge.ops.activation import softmax
from rocforge.ops.device.strided import blocks, float32
from rocforge.ops.linear import linear

THREADS = 256
"""As in moe.hip."""
MAX_USED = 32
"""The most experts a token goes to on a device: the lanes of a wave, the groups of a block of experts.hip."""

_route = Kernel("moe.hip", "route", "int32* float32* float32* uint32 int32 uint32 int32 int32 float32")
_group = Kernel("moe.hip", "group_by_expert", "int32* int32* int32* int32* int32 int32")


def route(
    logits: Any, used: int, softmax_before: bool = True, normalize: bool = True, scale: float = 1.0
) -> tuple[Any, Any]:
    """The experts with the highest logits for each token, and their weights.

    Args:
        logits: floats, shape (tokens, experts).
        used: how many experts a token goes to.
        softmax_before: the softmax is over all experts; False: over the chosen ones alone (gpt-oss).
        normalize: a token's weights are made to sum to one.
        scale: factor on all weights.

    Returns:
        ids, integers of shape (tokens, used), the highest first; weights, float32 of that shape.

    Raises:
        ValueError: `used` is not 1 to the number of experts, or on a device more than MAX_USED.
    """
    on_host = get_array_module(logits) is np
    most = logits.shape[-1] if on_host else min(logits.shape[-1], MAX_USED)
    if not 1 <= used <= most:
        raise ValueError(f"route: a token cannot go to {used} of {logits.shape[-1]} experts; it can to 1 to {most}")
    if not on_host:
        return _route_device(logits, used, softmax_before, normalize, scale)
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :used]
    if not softmax_before:
        return ids, softmax(np.take_along_axis(logits, ids, axis=-1)) * np.float32(scale)
    weights = np.take_along_axis(softmax(logits), ids, axis=-1)
    if normalize:
        # the floor is the smallest normal float16, as the published implementations have it
        weights /= np.maximum(weights.sum(axis=-1, keepdims=True), np.float32(2.0**-14))
    return ids, weights * np.float32(scale)


def _route_device(logits: Any, used: int, softmax_before: bool, normalize: bool, scale: float) -> tuple[Any, Any]:
    cupy, logits = cupy_module(), float32(logits)
    tokens, count = logits.shape
    ids, weights = cupy.empty((tokens, used), np.int32), cupy.empty((tokens, used), np.float32)
    if tokens:
        grid = (blocks(tokens * card_of(logits.device.id).wave, THREADS),)
        args = (ids, weights, logits, tokens, count, used, int(softmax_before), int(normalize), scale)
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


class Matrices(NamedTuple):
    """The matrices of all experts for one of their products.

    Attributes:
        weight: QuantizedArray or floats, shape (experts, rows, columns).
        bias: shape (experts, rows), or None.
    """

    weight: Any
    bias: Any = None


def experts(
    x: Any,
    ids: Any,
    weights: Any,
    gate: Matrices,
    up: Matrices,
    down: Matrices,
    activate: str = "swiglu",
    residual: Any = None,
) -> Any:
    """The weighted sum of what each token's experts, gated feed-forwards, give: `down(activate(gate(x), up(x)))`.

    On a device nothing waits for the ids, and what is launched depends on shapes alone, so it can be captured.

    Args:
        x: floats, shape (tokens, dim); on a device also Activations, where `takes_int8` says so.
        ids, weights: shape (tokens, used), from `route`.
        gate, up: weights (experts, ffn, dim); Matrices, or what else has a weight and a bias.
        down: weights (experts, dim, ffn).
        activate: "swiglu", "geglu" or "swiglu_oai": the function of that name in rocforge.ops.activation.
        residual: float32, shape (tokens, dim), is added; or None.

    Returns:
        float32, shape (tokens, dim).
    """
    if get_array_module(ids) is not np:
        from rocforge.ops.device.experts import experts_device

        return experts_device(x, ids, weights, gate, up, down, activate, residual)
    out = np.zeros(x.shape, np.float32) if residual is None else residual.astype(np.float32)
    for index in np.unique(ids):
        rows, slots = np.nonzero(ids == index)
        y = getattr(activation, activate)(*(_linear_of(index, x[rows], matrices) for matrices in (gate, up)))
        out[rows] += weights[rows, slots][:, None] * _linear_of(index, y, down)
    return out


def _linear_of(index: int, x: np.ndarray, matrices: Matrices) -> np.ndarray:
    return linear(x, matrices.weight[index], None if matrices.bias is None else matrices.bias[index])


def expert_linear(x: Any, ids: Any, matrices: Matrices) -> Any:
    """`linear` of each token-expert pair with its expert's matrix.

    Args:
        x: float32, shape (tokens, columns), or a row a pair: (tokens * used, columns).
        ids: the experts, shape (tokens, used).
        matrices: Matrices, or what else has a weight (experts, rows, columns) and a bias.

    Returns:
        float32, shape (tokens * used, rows).
    """
    if get_array_module(ids) is not np:
        from rocforge.ops.device.experts import expert_linear_device

        return expert_linear_device(x, ids, matrices)
    pairs = ids.reshape(-1)
    x = x if len(x) == len(pairs) else np.repeat(x, ids.shape[1], axis=0)
    out = np.empty((len(pairs), matrices.weight.shape[1]), np.float32)
    for index in np.unique(pairs):
        rows = np.nonzero(pairs == index)[0]
        out[rows] = _linear_of(index, x[rows], matrices)
    return out


def combine_experts(y: Any, weights: Any) -> Any:
    """The sum of what a token's experts give, each times its weight.

    Args:
        y: float32, a row a token-expert pair, shape (tokens * used, dim).
        weights: float32, shape (tokens, used).

    Returns:
        float32, shape (tokens, dim).
    """
    if get_array_module(y) is not np:
        from rocforge.ops.device.experts import combine_experts_device

        return combine_experts_device(y, weights)
    return np.einsum("tud,tu->td", y.reshape(*weights.shape, -1), weights)
