"""Products with weights on a device, as `rocforge.ops.device.plan` says: what rocforge.ops.linear gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.ops.arguments import check_sums
from rocforge.ops.device.activation import add_to_rows, gated_unit
from rocforge.ops.device.float_tiles import float_tile_gated, float_tile_products
from rocforge.ops.device.gemm import gemm_fp16, gemms_float32, gemms_fp16
from rocforge.ops.device.matvec import gated_product, product_then_norm, products
from rocforge.ops.device.norm import rms_norm, rms_norm_of_sum
from rocforge.ops.device.operands import PackedOperand, as_operand
from rocforge.ops.device.plan import (
    NormPlan,
    OperandForm,
    Product,
    form_of,
    gated_plan,
    launches,
    norm_plan_for,
    product_for,
)
from rocforge.ops.device.strided import float32
from rocforge.ops.device.tiles import tile_gated, tile_products
from rocforge.ops.device.weights import format_of
from rocforge.ops.device.wide import wide_gated, wide_parts, wide_products
from rocforge.ops.types import Array, Weight


def linears(
    x: Array | PackedOperand,
    weights: Sequence[Weight],
    biases: Sequence[Array],
    residual: Array,
    overwrite: bool = False,
) -> list[Array]:
    """What `rocforge.ops.linear.linears` gives, of arrays on a device."""
    flat, leading = _flat(x)
    tokens = len(flat)
    if residual is not None:
        residual = float32(residual).reshape(tokens, residual.shape[-1])
    biases = [float32(bias) for bias in biases]
    ys: list[Array] = []
    form = None
    for launch in launches(tuple([format_of(weight) for weight in weights]), tokens, tuning.current()):
        if launch.form is not form:
            operand, form = as_operand(flat, launch.form), launch.form
        run = slice(launch.start, launch.stop)
        added = None if launch.start else residual
        ys += _launch(launch.product, operand, weights[run], biases[run], added, overwrite)
    return ys if len(leading) == 1 else [y.reshape(*leading, y.shape[-1]) for y in ys]


def _flat(x: Array | PackedOperand) -> tuple[Array | PackedOperand, tuple[int, ...]]:
    """x with its leading axes as one, and these axes."""
    leading = x.shape[:-1]
    if isinstance(x, PackedOperand) or len(leading) == 1:
        return x, leading
    return x.reshape(math.prod(leading), x.shape[-1]), leading


def _launch(
    product: Product,
    x: Array | PackedOperand,
    weights: Sequence[Weight],
    biases: Sequence[Array],
    residual: Array,
    overwrite: bool = False,
) -> list[Array]:
    """The results; the BLAS library's single product is added to the residual itself, where that may be overwritten."""
    if run := _PRODUCTS.get(product):
        return run(x, weights, biases, residual)
    if overwrite and product is Product.GEMM_FP16 and residual is not None and len(weights) == 1:
        ys, residual = [gemm_fp16(x, weights[0], to=residual)], None
    else:
        ys = (gemms_fp16 if product is Product.GEMM_FP16 else gemms_float32)(x, weights)
    for y, bias, added in itertools.zip_longest(ys, biases, [residual]):
        add_to_rows(y, bias, added)
    return ys


_PRODUCTS: dict[Product, Any] = {
    Product.GEMV_INT8: products,
    Product.GEMV_FLOAT: products,
    Product.TILE: tile_products,
    Product.FLOAT_TILE: float_tile_products,
    Product.WIDE: wide_products,
}


def gated_linear(
    x: Array | PackedOperand, gate: Weight, up: Weight, biases: Sequence[Array], unit: str, consumer: Weight | None
) -> Array | PackedOperand:
    """What `rocforge.ops.linear.gated_linear` gives, in the form that `consumer`, if there is one, takes."""
    check_sums(x, [gate, up], biases)
    flat, leading = _flat(x)
    following = None if consumer is None or len(leading) != 1 else format_of(consumer)
    plan = gated_plan(format_of(gate), format_of(up), following, len(flat), tuning.current())
    if plan.product is None:
        if plan.rounded and len(leading) == 1 and all(bias is None for bias in biases):
            parts = gemms_fp16(as_operand(flat, plan.form), [gate, up], np.float16)
        else:
            parts = linears(x, [gate, up], biases, None)
        return gated_unit(unit, *parts, form=plan.result)
    run = _GATED[plan.product]
    y = run(as_operand(flat, plan.form), gate, up, [float32(bias) for bias in biases], unit, plan.result)
    return y if isinstance(y, PackedOperand) or len(leading) == 1 else y.reshape(*leading, y.shape[-1])


_GATED: dict[Product, Any] = {
    Product.GEMV_INT8: gated_product,
    Product.GEMV_FLOAT: gated_product,
    Product.TILE: tile_gated,
    Product.FLOAT_TILE: float_tile_gated,
    Product.WIDE: wide_gated,
}


def linear_then_norm(
    x: Array | PackedOperand,
    weight: Weight,
    bias: Array,
    residual: Array,
    norm: Array,
    eps: float,
    consumers: Sequence[Weight],
    overwrite: bool,
) -> tuple[Array, Array | PackedOperand] | None:
    """What `rocforge.ops.linear.linear_then_norm` gives, without a launch for the norm; None where that can't be."""
    if x.ndim != 2:
        return None
    plan = norm_plan_for(weight, consumers, len(x))
    if plan is NormPlan.WITH_SUM and residual is not None:
        check_sums(x, [weight], [bias], residual)
        product = product_for(format_of(weight), len(x), tuning.current())
        form = form_of(product, len(x))
        operand = as_operand(x, form)
        if product is Product.GEMM_FP16 and overwrite and bias is None:
            (y,) = _launch(product, operand, [weight], [None], float32(residual), overwrite)
            return y, rms_norm(y, norm, eps, form=form)
        if product is Product.WIDE:
            y = wide_parts(operand, weight)
        else:
            (y,) = _launch(product, operand, [weight], [None], None)
        return rms_norm_of_sum(residual, y, bias, norm, eps, form)
    if plan is NormPlan.IN_PRODUCT and getattr(x, "norm", None) is None:
        check_sums(x, [weight], [bias], residual)
        operand = as_operand(x, OperandForm.INT8)
        return product_then_norm(operand, weight, float32(bias), float32(residual), float32(norm), eps)
    return None
