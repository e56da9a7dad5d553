"""Products with weights on a device: which kernel or library does them, by the number of rows and the formats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.ops.activation import add_to_rows
from rocforge.ops.arguments import check_sums
from rocforge.ops.device.gemm import gemms_fp16
from rocforge.ops.device.matvec import fills_device, gated_product, product_then_norm, products
from rocforge.ops.device.operands import (
    MAX_COLUMNS,
    MOST_COLUMNS,
    Activations,
    columns_for,
    columns_for_weights,
    format_of,
    is_packed,
    quantize_activations,
    takes_fp16,
)
from rocforge.ops.device.strided import float32
from rocforge.ops.device.tiles import tile_gated, tile_products
from rocforge.ops.norm import rms_norm_of_sum

MATRICES = 3
"""The most that one launch multiplies."""


def products_device(x: Any, weights: Sequence[Any], biases: Sequence[Any], residual: Any) -> list[Any]:
    """What `rocforge.ops.linear.linears` gives, of arrays on a device."""
    leading, n = x.shape[:-1], math.prod(x.shape[:-1])
    if not isinstance(x, Activations):
        x = x.reshape(n, x.shape[-1])
    if residual is not None:
        residual = float32(residual).reshape(n, residual.shape[-1])
    biases = [float32(bias) for bias in biases]
    form = columns_for(n)
    if form is None and n > MAX_COLUMNS:
        ys = _many(x, weights, biases, residual)
    else:
        ys = _few(x, form, weights, biases, residual)
    return ys if len(leading) == 1 else [y.reshape(*leading, y.shape[-1]) for y in ys]


def _few(x: Any, form: int | None, weights: Sequence[Any], biases: Sequence[Any], residual: Any) -> list[Any]:
    """By our own kernels, as far as they have the formats."""
    formats, ys = [format_of(weight) for weight in weights], []
    x = x if isinstance(x, Activations) else float32(x)
    rounded = x
    for start, stop in launches(formats):
        run = weights[start:stop], biases[start:stop], None if start else residual
        if is_packed(formats[start]) and form is not None:
            rounded = rounded if isinstance(rounded, Activations) else quantize_activations(x, form)
            ys += tile_products(rounded, *run) if form else products(rounded, *run)
        elif formats[start] is not None and 0 < len(x) <= MAX_COLUMNS:
            ys += products(x, *run)
        else:
            ys += _many(x, *run)
    return ys


def gated_product_device(
    x: Any, gate: Any, up: Any, gate_bias: Any, up_bias: Any, activation: str, then: Any = None
) -> Any:
    """What `rocforge.ops.linear.gated_linear` gives, in one launch; None where no kernel does that.

    Where the weight `then`, that the result is to be multiplied with, wants it, these are Activations.
    """
    n, kind = math.prod(x.shape[:-1]), format_of(gate)
    packed_form = columns_for(n)
    form = packed_form if is_packed(kind) else 0 if 0 < n <= MAX_COLUMNS else None
    if form is None or kind is None or kind != format_of(up):
        return None
    check_sums(x, [gate, up], [gate_bias, up_bias])
    flat = x if isinstance(x, Activations) else float32(x).reshape(n, x.shape[-1])
    biases = float32(gate_bias), float32(up_bias)
    rounded = then is not None and x.ndim == 2 and is_packed(format_of(then)) and packed_form == form
    if form:
        units = flat if isinstance(flat, Activations) else quantize_activations(flat, form)
        y = tile_gated(units, gate, up, biases, activation, rounded)
    else:
        y = gated_product(flat, gate, up, *biases, activation, rounded)
    return y if rounded else y.reshape(*x.shape[:-1], -1)


def product_then_norm_device(
    x: Any, weight: Any, bias: Any, residual: Any, norm: Any, eps: float, weights: Sequence[Any]
) -> tuple[Any, Any] | None:
    """What `rocforge.ops.linear.linear_then_norm` gives, without a launch for the norm; None where that can't be."""
    if x.ndim != 2:
        return None
    if residual is not None and takes_fp16(len(x), [weight, *weights]):
        check_sums(x, [weight], [bias], residual)
        return rms_norm_of_sum(residual, *_many(x, [weight], [None], None), bias, norm, eps)
    if len(x) != 1 or columns_for_weights(1, [weight, *weights]) != 0:
        return None
    if (isinstance(x, Activations) and x.norm is not None) or not fills_device(len(weight)):
        return None
    check_sums(x, [weight], [bias], residual)
    return product_then_norm(x, weight, *map(float32, (bias, residual, norm)), eps)


def launches(formats: Sequence[str]) -> list[tuple[int, int]]:
    """Runs (start, stop) of matrices that one launch takes: up to three of one format, of which the last may differ."""
    runs, start = [], 0
    for i in range(1, len(formats) + 1):
        same = i < len(formats) and i - start < MATRICES and is_packed(formats[i]) == is_packed(formats[start])
        if not (same and all(name == formats[start] for name in formats[start:i])):
            runs.append((start, i))
            start = i
    return runs


def _many(x: Any, weights: Sequence[Any], biases: Sequence[Any], residual: Any) -> list[Any]:
    if isinstance(x, Activations):
        raise TypeError(f"activations {x.shape} are for packed weights and up to {MOST_COLUMNS} rows")
    x = x if x.dtype == np.float16 else x.astype(np.float32, copy=False)
    ys = gemms_fp16(x, weights)
    for y, bias, more in itertools.zip_longest(ys, biases, [residual]):
        add_to_rows(y, bias, more)
    return ys
