"""Mixture of experts: which experts a token goes to, and products with each token's expert.

Source: Shazeer et al., Outrageously Large Neural Networks, https://arxiv.org/abs/1701.06538.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.arrays import get_array_module
from rocforge.device.memory import memory_held
from rocforge.ops import activation
from rocforge.ops.activation import softmax
from rocforge.ops.arguments import check_row, host_floats
from rocforge.ops.device import experts as device_experts
from rocforge.ops.device import moe as device
from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.device.strided import float32
from rocforge.ops.linear import linear
from rocforge.ops.norm import rms_norm
from rocforge.ops.types import Array, Groups, HostArray, Matrices, NextNorm, Weight

UNITS = ("swiglu", "geglu", "swiglu_oai")
"""Activations of the experts that `experts` takes, and of feed-forwards that rocforge.ops.linear.gated_linear does."""


def route(
    logits: Array,
    used: int,
    softmax_before: bool = True,
    normalize: bool = True,
    scale: float = 1.0,
    sigmoid: bool = False,
    groups: tuple[int, int] = (1, 1),
    bias: Array = None,
    expert_scales: Array = None,
) -> tuple[Array, Array]:
    """The experts with the highest logits for each token, and their weights.

    Args:
        logits: floats, shape (tokens, experts).
        used: how many experts a token goes to.
        softmax_before: the softmax is over all experts; False: over the chosen ones alone (gpt-oss).
        normalize: a token's weights are made to sum to one.
        scale: factor on all weights.
        sigmoid: weights are the sigmoids of the logits, in place of a softmax.
        groups: into how many equal runs the experts are parted, and of how many of these, with the highest sums of
            their best two, experts are chosen.
        bias: float32, shape (experts,), or None: experts are chosen by weight plus bias.
        expert_scales: float32, shape (experts,), or None: factors on the weights, in the end.

    Returns:
        ids, integers of shape (tokens, used), the highest first; weights, float32 of that shape.

    Raises:
        ValueError: `used` is not 1 to the number of experts, or on a device more than 32.
    """
    on_host = get_array_module(logits) is np
    _check_used(used, logits.shape[-1], on_host)
    if not on_host:
        policy = (used, softmax_before, normalize, scale, sigmoid, groups, bias, expert_scales)
        return device.route(logits, device.Routing.of(logits.shape[-1], *policy))
    if sigmoid:
        every = np.float32(1) / (np.float32(1) + np.exp(-logits))
    else:
        every = softmax(logits) if softmax_before else logits
    scores = _in_groups(every if bias is None else every + bias, *groups)
    ids = np.argsort(-scores, axis=-1, kind="stable")[:, :used]
    weights = np.take_along_axis(every, ids, axis=-1)
    if not softmax_before and not sigmoid:
        weights = softmax(weights)
    elif normalize:
        # the floor is the smallest normal float16, as the published implementations have it
        weights /= np.maximum(weights.sum(axis=-1, keepdims=True), np.float32(2.0**-14))
    weights = weights * np.float32(scale)
    return ids, weights if expert_scales is None else weights * expert_scales[ids]


def _check_used(used: int, experts: int, on_host: bool) -> None:
    most = experts if on_host else min(experts, device.MAX_USED)
    if not 1 <= used <= most:
        raise ValueError(f"route: a token cannot go to {used} of {experts} experts; it can to 1 to {most}")


def _in_groups(scores: HostArray, groups: int, used: int) -> HostArray:
    """Scores (tokens, experts), minus infinity but in the groups that experts are chosen of."""
    if groups == 1:
        return scores
    parts = scores.reshape(len(scores), groups, scores.shape[1] // groups)
    best = np.sort(parts, axis=-1)[..., -2:].sum(axis=-1)
    chosen = np.argsort(-best, axis=-1, kind="stable")[:, :used]
    out = np.full_like(parts, -np.inf)
    np.put_along_axis(out, chosen[..., None], np.take_along_axis(parts, chosen[..., None], axis=1), axis=1)
    return out.reshape(scores.shape)


def group_by_expert(ids: Array, count: int) -> Groups:
    """Sort the token-expert pairs of `ids` (tokens, used), from `route`, by expert, of which there are `count`."""
    if get_array_module(ids) is not np:
        return device.group_by_expert(ids, count)
    order = np.argsort(ids.reshape(-1), kind="stable").astype(np.int32)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    counts = np.bincount(ids.reshape(-1), minlength=count)
    return Groups(order, rank, np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))


def experts(
    x: Array | PackedOperand,
    ids: Array,
    weights: Array,
    gate: Matrices,
    up: Matrices | None,
    down: Matrices,
    activate: str = "swiglu",
    residual: Array = None,
) -> Array:
    """The weighted sum of what each token's experts, gated feed-forwards, give: `down(activate(gate(x), up(x)))`.

    On a device nothing waits for the ids, and what is launched depends on shapes alone, so it can be captured.

    Args:
        x: floats, shape (tokens, dim); on a device also a PackedOperand in the form that these products take.
        ids, weights: shape (tokens, used), from `route`.
        gate, up: weights (experts, ffn, dim); Matrices, or what else has a weight and a bias. Without up, gate has
            the rows of both, (experts, 2 * ffn, dim).
        down: weights (experts, dim, ffn).
        activate: "swiglu", "geglu" or "swiglu_oai": the function of that name in rocforge.ops.activation.
        residual: float32, shape (tokens, dim), is added; or None.

    Returns:
        float32, shape (tokens, dim).
    """
    if get_array_module(ids) is not np:
        return device_experts.experts(x, ids, weights, gate, up, down, activate, residual)
    x = host_floats("experts", x)
    out = np.zeros(x.shape, np.float32) if residual is None else residual.astype(np.float32)
    for index in np.unique(ids):
        rows, slots = np.nonzero((ids == index) & (weights != 0))  # what weighs nothing may be of another card's expert
        y = _linear_of(index, x[rows], gate)
        y = getattr(activation, activate)(*(halves(y) if up is None else (y, _linear_of(index, x[rows], up))))
        out[rows] += weights[rows, slots][:, None] * _linear_of(index, y, down)
    return out


def runs_beside(x: Array, router: Weight) -> AbstractContextManager[bool]:
    """A context in which a router of x and products with its experts may run beside the launches before them, of which
    they take nothing: False where they would gain nothing."""
    if get_array_module(x) is np or not (tuning.current().beside and device.routes_few(router, len(x))):
        return nullcontext(False)
    return memory_held()


def router_logits(x: Array, router: Matrices, beside: bool = False) -> Array:
    """`linear(x, router.weight, router.bias)` of normalized tokens (tokens, dim), with a launch for few of them.

    With `beside`, x was there before the launch before this one, which may run beside that.
    """
    weight, bias = router
    if get_array_module(x) is np or not device.routes_few(weight, len(x)):
        return linear(x, weight, bias)
    return device.router_logits(x, weight, bias, beside)


def experts_by_logits(
    x: Array | PackedOperand,
    logits: Array,
    routing: tuple[Any, ...],
    gate: Matrices,
    up: Matrices | None,
    down: Matrices,
    activate: str = "swiglu",
    beside: bool = False,
) -> Array:
    """`experts(x, *route(logits, *routing), ...)`; on a device products of few tokens choose the experts themselves.

    With `beside`, x and the logits were there before the launch before these, of which the first may run beside it.
    """
    on_host = get_array_module(logits) is np
    _check_used(routing[0], logits.shape[-1], on_host)
    if not on_host:
        how = device.Routing.of(logits.shape[-1], *routing)
        beside = beside and how.has_arrays_of(routing)
        return device_experts.experts_by_logits(x, logits, how, gate, up, down, activate, beside=beside)[0]
    return experts(x, *route(logits, *routing), gate, up, down, activate)


def halves(y: Array) -> tuple[Array, Array]:
    """What gate and up give, of what a matrix with the rows of both does: y (rows, 2 * ffn)."""
    ffn = y.shape[1] // 2
    return y[:, :ffn], y[:, ffn:]


def mixture(
    x: Array,
    norm: Array,
    eps: float,
    router: Matrices,
    routing: tuple[Any, ...],
    gate: Matrices,
    up: Matrices | None,
    down: Matrices,
    activate: str,
    residual: Array | Callable[[], Array] = None,
    following: NextNorm | None = None,
    always: bool = False,
) -> tuple[Array, Array | PackedOperand | None]:
    """A whole mixture: `experts(y, *route(linear(y, router), *routing), ...)` of y = `rms_norm(x, norm, eps)`.

    Args:
        x: float32, shape (tokens, dim).
        norm, eps: of the norm.
        router: weight (experts, dim), bias (experts,) or None; with `always`, perhaps with one row more.
        routing: `used` and what follows it in `route`.
        gate, up, down, activate, residual: as in `experts`; or what makes the residual, which is called behind the
            router, so that launches of both may run beside each other.
        following: the norm of the result that comes next, if any.
        always: the last of gate's, up's and down's experts is not the router's to choose: every token takes it, times
            the sigmoid of the router's logit for it, if that has one.

    Returns:
        float32, shape (tokens, dim); and the norm of that, as the products after it take it, where a launch could make
        both.

    Raises:
        ValueError: as `route` and `experts` do.
    """
    if get_array_module(x) is np:
        y = rms_norm(x, norm, eps)
        residual = residual() if callable(residual) else residual
        logits, count = linear(y, router.weight, router.bias), len(down.weight) - always
        ids, weights = route(logits[:, :count], *routing)
        if always:
            own = logits[:, count:] if len(router.weight) > count else np.full((len(x), 1), np.inf, np.float32)
            ids = np.concatenate([ids, np.full_like(ids[:, :1], count)], axis=1)
            weights = np.concatenate([weights, np.float32(1) / (np.float32(1) + np.exp(-own))], axis=1)
        return experts(y, ids, weights, gate, up, down, activate, residual), None
    check_row("mixture", x, weight=norm)
    _check_used(routing[0] + always, len(down.weight), on_host=False)
    args = (x, norm, eps, router, routing, gate, up, down, activate, residual, following, always)
    return device_experts.mixture(*args)


def _linear_of(index: int, x: HostArray, matrices: Matrices) -> Array:
    return linear(x, matrices.weight[index], None if matrices.bias is None else matrices.bias[index])


def expert_linear(x: Array, ids: Array, matrices: Matrices) -> Array:
    """`linear` of each token-expert pair with its expert's matrix.

    Args:
        x: float32, shape (tokens, columns), or a row a pair: (tokens * used, columns).
        ids: the experts, shape (tokens, used).
        matrices: Matrices, or what else has a weight (experts, rows, columns) and a bias.

    Returns:
        float32, shape (tokens * used, rows).
    """
    if get_array_module(ids) is not np:
        return device_experts.expert_linear(x, ids, matrices)
    pairs = ids.reshape(-1)
    x = x if len(x) == len(pairs) else np.repeat(x, ids.shape[1], axis=0)
    out = np.empty((len(pairs), matrices.weight.shape[1]), np.float32)
    for index in np.unique(pairs):
        rows = np.nonzero(pairs == index)[0]
        out[rows] = _linear_of(index, x[rows], matrices)
    return out


def scale_by_expert(y: Array, ids: Array, scales: Array) -> Array:
    """Rows of y, one a token-expert pair (tokens * used, rows), times their experts' of scales (experts,); ids as in
    `expert_linear`."""
    if get_array_module(ids) is not np:
        return device.scale_by_expert(y, ids, scales)
    return y * scales[ids.reshape(-1)][:, None]


def combine_experts(y: Array, weights: Array) -> Array:
    """The sum of what a token's experts give, each times its weight.

    Args:
        y: float32, a row a token-expert pair, shape (tokens * used, dim).
        weights: float32, shape (tokens, used).

    Returns:
        float32, shape (tokens, dim).
    """
    if get_array_module(y) is not np:
        return device.combine(y, None, float32(weights), None)
    return np.einsum("tud,tu->td", y.reshape(*weights.shape, -1), weights)
