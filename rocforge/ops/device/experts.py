"""Products with each token's experts on a device.

Of few tokens, each token-expert pair is a GEMV, by experts.hip. Pairs of more tokens are sorted by expert
(rocforge.ops.device.experts_pairs). Which experts are read is known to the device alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rocforge.device import tuning
from rocforge.device.arrays import Constant
from rocforge.device.cards import card_of
from rocforge.device.geometry import down_step, gated_rows
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.planar import CELL, cells_of
from rocforge.ops.device import moe as device_moe
from rocforge.ops.device.dequantize import rows_by_id
from rocforge.ops.device.experts_pairs import OF_SORTED_PAIRS, Pair
from rocforge.ops.device.experts_parts import Part, kind_of, parts
from rocforge.ops.device.matvec import gated_matrices
from rocforge.ops.device.moe import Routing, combine
from rocforge.ops.device.norm import rms_norm_both, rms_norm_of_experts
from rocforge.ops.device.operands import PackedOperand, as_operand, empty_operand, quantized
from rocforge.ops.device.plan import OperandForm, Product, experts_form, experts_product_for, form_for
from rocforge.ops.device.products import linears
from rocforge.ops.device.strided import blocks, float32
from rocforge.ops.device.weights import WeightFormat, format_of, memory_of
from rocforge.ops.types import Array, ExpertMatrices, Matrices, NextNorm

MAX_PAIRS = 1 << 15
"""Token-expert pairs of a launch: a grid has 65,535 blocks in its second axis."""


@functools.cache
def _kernel(name: str, kind: WeightFormat, beside: bool = False) -> Kernel:
    besides: dict[str, Any] = {"RF_BESIDE": 1} if beside else {}
    return Kernel("experts.hip", name, RF_QTYPE=kind.kernel, **besides)


def _pair(gate: Matrices, up: Matrices | None) -> Pair:
    if up is not None:
        return gate, up
    if gate.bias is not None:
        raise ValueError("experts: gate has the rows of up too, and a bias; on a device it can have one only apart")
    return (gate,)


def experts(
    x: Array | PackedOperand,
    ids: Array,
    weights: Array,
    gate: Matrices,
    up: Matrices | None,
    down: Matrices,
    unit: str,
    residual: Array,
) -> Array:
    """What `rocforge.ops.moe.experts` gives, of arrays on a device.

    Raises:
        ValueError: the matrices' rows are not whole runs of 8 elements.
    """
    _check_rows(down)
    tokens, pair = len(ids), _pair(gate, up)
    if not tokens:
        return cupy_module().empty((0, down.weight.shape[1]), np.float32)
    ids, weights, residual = cupy_module().ascontiguousarray(ids, dtype=np.int32), float32(weights), float32(residual)
    product = experts_product_for(ExpertMatrices(gate, up, down), tokens)
    operand = as_operand(x, experts_form(product, tokens))
    if product in OF_SORTED_PAIRS:
        y, rank = OF_SORTED_PAIRS[product](operand, ids, pair, down, unit)
        return combine(y, rank, weights, residual)
    return _gemv(operand, _by_ids(ids), weights, pair, down, unit, residual)


def _check_rows(down: Matrices) -> None:
    _, dim, ffn = down.weight.shape
    if dim % 8 or ffn % 8:
        raise ValueError(f"experts: rows of {dim} and {ffn} elements; on a device they must be multiples of 8")


class Chosen(NamedTuple):
    """Which experts tokens go to, as kernels take it: ids (tokens, used), or logits (tokens, experts); neither, where
    each pair has a matrix of its own."""

    ids: Array
    logits: Array
    routing: Routing


_EACH_ITS_OWN = Chosen(None, None, Routing(0, 1, 0, 0, 1.0))


def _by_ids(ids: Array) -> Chosen:
    return Chosen(ids, None, Routing(0, ids.shape[1], 0, 0, 1.0))


def mixture(
    x: Array,
    norm: Array,
    eps: float,
    router: Matrices,
    routing: tuple[Any, ...],
    gate: Matrices,
    up: Matrices | None,
    down: Matrices,
    unit: str,
    residual: Array | Callable[[], Array],
    following: NextNorm | None,
    always: bool,
) -> tuple[Array, Array | PackedOperand | None]:
    """What `rocforge.ops.moe.mixture` gives, of arrays on a device.

    Where each token-expert pair is a GEMV these are three launches: norm and logits; gate and up; down and the sum. The
    last two choose the experts by the logits themselves. Where the residual is made between the first two, these may
    run beside what is launched for it.
    """
    _check_rows(down)
    matrices, count = ExpertMatrices(gate, up, down), len(down.weight) - always
    how, beside = Routing.of(count, *routing), callable(residual)
    operand, logits = _routed(x, norm, eps, router, form_for(matrices, len(x)), beside)
    residual = residual() if callable(residual) else residual  # its own operands are held (rocforge.device.memory)
    how = how._replace(used=how.used + always, always=int(always), gates=int(len(router.weight) > count))
    return experts_by_logits(operand, logits, how, *matrices, unit, residual, following, beside)


def experts_by_logits(
    x: Array | PackedOperand,
    logits: Array,
    how: Routing,
    gate: Matrices,
    up: Matrices | None,
    down: Matrices,
    unit: str,
    residual: Array = None,
    following: NextNorm | None = None,
    beside: bool = False,
) -> tuple[Array, Array | PackedOperand | None]:
    """What `rocforge.ops.moe.experts_by_logits` gives, and the norm that follows on it, as `mixture` does; `beside`: x
    and the logits were there before the launch before these."""
    _check_rows(down)
    tokens, residual = len(x), float32(residual)
    pair, product = _pair(gate, up), experts_product_for(ExpertMatrices(gate, up, down), tokens)
    operand = as_operand(x, experts_form(product, tokens))
    if product is Product.GEMV_INT8 and kind_of(down) is not None and tokens:
        chosen = Chosen(None, float32(logits), how)
        beside = beside and operand is x and chosen.logits is logits  # else a conversion is what comes before
        return _gemv(operand, chosen, None, pair, down, unit, residual, beside), None
    ids, weights = device_moe.route(logits, how)
    if product not in OF_SORTED_PAIRS or not tokens:
        return experts(operand, ids, weights, gate, up, down, unit, residual), None
    y, rank = OF_SORTED_PAIRS[product](operand, ids, pair, down, unit)
    form = OperandForm.FLOAT32 if following is None else form_for(following.consumers, tokens)
    if following is None or residual is None or form is OperandForm.FLOAT32:
        return combine(y, rank, weights, residual), None
    return rms_norm_of_experts(y, rank, weights, residual, following.weight, following.eps, form)


def _routed(
    x: Array, norm: Array, eps: float, router: Matrices, form: OperandForm, beside: bool
) -> tuple[Array | PackedOperand, Array]:
    """The norm of x in a form, and the router's logits of it: of one launch, where that is faster than one for each."""
    if form.packed and device_moe.routes_few(router.weight, len(x)):
        return device_moe.router(x, norm, eps, router.weight, router.bias, form, beside)
    y, operand = rms_norm_both(x, norm, eps, form)
    (logits,) = linears(y, [router.weight], [router.bias], None)
    return operand, logits


def _gemv(
    x: Array | PackedOperand,
    chosen: Chosen,
    weights: Array,
    pair: Pair,
    down: Matrices,
    unit: str,
    residual: Array,
    beside: bool = False,
) -> Array:
    """Two launches: gate and up of each token-expert pair; down of each, and the sum over a token's experts."""
    ffn = down.weight.shape[2]
    form = OperandForm.INT8 if format_of(down.weight).planar else OperandForm.FLOAT32
    hidden = empty_operand((len(x) * chosen.routing.used, ffn), form)
    _gemv_gated(hidden, x, chosen, pair, ffn, unit, beside)
    return _gemv_down(_memory(hidden), len(x), chosen, weights, down, residual)


def _memory(x: Array | PackedOperand) -> Array:
    return x.data if isinstance(x, PackedOperand) else x


def _gemv_gated(
    out: Array | PackedOperand,
    x: Array | PackedOperand,
    chosen: Chosen,
    pair: Pair,
    ffn: int,
    unit: str,
    beside: bool,
) -> None:
    dim, tuned = pair[0].weight.shape[2], tuning.current()
    packed, x = isinstance(out, PackedOperand), _memory(x)
    rows = CELL * cells_of(ffn) if packed else ffn

    def launch(out: Array, chosen: Chosen, first: int, part: Part) -> None:
        to = (None, out, cells_of(ffn)) if packed else (out, None, 0)
        matrices = gated_matrices(part.data, part.biases, ffn, unit)
        args = {"x": x, "cells": part.kind.cells(dim), "first": first, "chosen": chosen}
        args |= {"matrices": matrices, "out": to}
        grid = (blocks(rows, gated_rows(tuned, 1)), len(out))
        as_they_lie = all(a is b for a, b in zip(part.data, (memory_of(m.weight) for m in pair), strict=True))
        _kernel("experts_gated", part.kind, beside and as_they_lie and tuned.beside)(grid, (tuned.gated_threads,), args)

    if kind_of(*pair) is not None:
        return launch(_memory(out), chosen, 0, *parts(pair))
    own = Chosen(None, None, chosen.routing)
    for part in parts(pair, chosen.ids.reshape(-1)):
        launch(_memory(out)[part.span], own, part.span.start, part)


def _gemv_down(hidden: Array, tokens: int, chosen: Chosen, weights: Array, down: Matrices, residual: Array) -> Array:
    """Down, and the sum; where it is unpacked for each pair, the sum is a launch of its own."""
    dim, empty = down.weight.shape[1], cupy_module().empty
    if kind_of(down) is not None:
        out, (part,) = empty((tokens, dim), np.float32), parts([down])
        _launch_down(out, hidden, chosen, weights, part, down, residual)
        return out
    y = empty((chosen.ids.size, dim), np.float32)
    for part in parts([down], chosen.ids.reshape(-1)):
        _launch_down(y[part.span], hidden[part.span], _EACH_ITS_OWN, None, part, down)
    return combine(y, None, weights, residual)


def _launch_down(
    out: Array, x: Array, chosen: Chosen, weights: Array, part: Part, down: Matrices, residual: Array = None
) -> None:
    (_, rows, columns), device = down.weight.shape, cupy_module().cuda.runtime.getDevice()
    tuned, cells, (data,), (bias,) = tuning.of(device), part.kind.cells(columns), part.data, part.biases
    step = down_step(tuned, card_of(device), rows, cells, len(out), chosen.routing.used)
    args = {"x": x, "cells": cells, "chosen": chosen, "weights": weights}
    args |= {"w": data, "bias": bias, "residual": residual, "y": out, "rows": rows, "step": step}
    _kernel("experts_down", part.kind)((step, len(out)), (tuned.gated_threads,), args)


def expert_linear(x: Array, ids: Array, matrices: Matrices) -> Array:
    """What `rocforge.ops.moe.expert_linear` gives, of arrays on a device."""
    cupy, rows = cupy_module(), matrices.weight.shape[1]
    ids, x, kind = cupy.ascontiguousarray(ids, dtype=np.int32), float32(x), kind_of(matrices)
    if len(x) != ids.size:
        x = rows_by_id(
            x, _token_of_pair(ids.shape[1], 1 << (ids.size - 1).bit_length()).on_current_device()[: ids.size]
        )
    out, pairs = cupy.empty((ids.size, rows), np.float32), ids.reshape(-1)
    for start in range(0, ids.size, MAX_PAIRS):
        span = slice(start, start + MAX_PAIRS)
        operand = quantized(x[span]).data if kind is not None and kind.planar else x[span]
        _linear_of_pairs(out[span], operand, pairs[span], matrices)
    return out


def _linear_of_pairs(out: Array, x: Array, ids: Array, matrices: Matrices) -> None:
    if kind_of(matrices) is not None:
        (part,) = parts([matrices])
        return _launch_down(out, x, _by_ids(ids[:, None]), None, part, matrices)
    for part in parts([matrices], ids):
        _launch_down(out[part.span], x[part.span], _EACH_ITS_OWN, None, part, matrices)


@functools.cache
def _token_of_pair(used: int, pairs: int) -> Constant:
    """int32 (pairs,): the token of each token-expert pair."""
    return Constant(np.arange(pairs, dtype=np.int32) // used)
