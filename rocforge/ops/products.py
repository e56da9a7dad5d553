"""Products with weights on a device: which kernel or library does them, by the number of rows and the formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.arrays import cupy_module
from rocforge.ops.gemm import is_single, product_halves, to_halves
from rocforge.ops.matvec import (
    MAX_COLUMNS,
    Activations,
    format_of,
    gated_product,
    is_packed,
    products,
    quantize_activations,
)

MATRICES = 3
"""The most that one launch multiplies."""


def products_device(x: Any, weights: Sequence[Any], biases: Sequence[Any], residual: Any) -> list[Any]:
    """What `rocforge.ops.linear.linears` gives, of arrays on a device."""
    leading, n = x.shape[:-1], int(np.prod(x.shape[:-1]))
    formats = [format_of(weight) for weight in weights]
    if not isinstance(x, Activations):
        x = x.reshape(n, x.shape[-1]).astype(np.float32, copy=False)
    if residual is not None:
        residual = cupy_module().ascontiguousarray(residual).reshape(n, -1)
    if not 0 < n <= MAX_COLUMNS or None in formats:
        ys = _many(x, weights, biases)
        if residual is not None:
            ys[0] += residual
    else:
        ys, rounded = [], quantize_activations(x) if any(map(is_packed, formats)) and _is_array(x) else x
        for start, stop in launches(formats):
            operand = rounded if is_packed(formats[start]) else x
            ys += products(operand, weights[start:stop], biases[start:stop], None if start else residual)
    return [y.reshape(*leading, y.shape[-1]) for y in ys]


def gated_product_device(
    x: Any, gate: Any, up: Any, gate_bias: Any, up_bias: Any, activation: str, then: Any = None
) -> Any:
    """What `rocforge.ops.linear.gated_linear` gives, in one launch; None where no kernel does that.

    Where the weight `then`, that the result is to be multiplied with, wants it, these are Activations.
    """
    n = int(np.prod(x.shape[:-1]))
    if not 0 < n <= MAX_COLUMNS or format_of(gate) is None or format_of(gate) != format_of(up):
        return None
    flat = x.reshape(n, x.shape[-1]) if _is_array(x) else x
    if then is not None and x.ndim == 2 and is_packed(format_of(then)):
        return gated_product(flat, gate, up, gate_bias, up_bias, activation, rounded=True)
    return gated_product(flat, gate, up, gate_bias, up_bias, activation).reshape(*x.shape[:-1], -1)


def launches(formats: Sequence[str]) -> list[tuple[int, int]]:
    """Runs (start, stop) of matrices that one launch takes: up to three of one format, of which the last may differ."""
    runs, start = [], 0
    for i in range(1, len(formats) + 1):
        same = i < len(formats) and i - start < MATRICES and is_packed(formats[i]) == is_packed(formats[start])
        if not (same and all(name == formats[start] for name in formats[start:i])):
            runs.append((start, i))
            start = i
    return runs


def _many(x: Any, weights: Sequence[Any], biases: Sequence[Any]) -> list[Any]:
    if isinstance(x, Activations):
        raise TypeError(f"int8 activations are for up to {MAX_COLUMNS} rows and packed weights; these are {x.shape}")
    rounded = x if all(map(is_single, weights)) else to_halves(x)
    ys = [product_halves(x if is_single(weight) else rounded, weight) for weight in weights]
    for y, bias in zip(ys, biases, strict=True):
        if bias is not None:
            y += bias
    return ys


def _is_array(x: Any) -> bool:
    return not isinstance(x, Activations)
