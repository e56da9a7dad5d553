"""Products of 64 and more tokens with planar weights on Hopper's matrix unit: one launch for up to three matrices.

Of few rows the depth is cut into parts, whose sum is another launch's: of its own, or the norm that follows.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device import geometry
from rocforge.device.cards import card_of
from rocforge.device.geometry import WIDE_LDS
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.planar import cells_of
from rocforge.ops.device.activation import add_to_rows
from rocforge.ops.device.matvec import gated_matrices, gated_output, matrix_arguments
from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.device.strided import blocks
from rocforge.ops.device.weights import format_of, memory_of
from rocforge.ops.types import Array, Weight


def wide_products(
    x: PackedOperand, weights: Sequence[Weight], biases: Sequence[Array] | None = None, residual: Array = None
) -> list[Array]:
    """`x @ w.T + bias` for each of one to three matrices.

    Args:
        x: swizzled.
        weights: one to three planar matrices (rows, columns) of one format, or the last of another.
        biases: float32 (rows,) or None, for each.
        residual: float32 (tokens, rows of the first), added to the first; or None.

    Returns:
        float32 CuPy arrays (tokens, rows), one for each: columns of one array.
    """
    biases = [None] * len(weights) if biases is None else biases
    parts = _products(x, weights, biases, residual)
    y, ends = parts[0], list(itertools.accumulate(map(len, weights)))
    ys = [y[:, end - len(weight) : end] for end, weight in zip(ends, weights, strict=True)]
    if len(parts) > 1 and residual is None and all(bias is None for bias in biases):
        add_to_rows(y, None, None, parts)
    elif len(parts) > 1:
        for each, end, bias, added in itertools.zip_longest(ys, ends, biases, [residual]):
            add_to_rows(each, bias, added, parts[:, :, end - each.shape[1] : end])
    return ys


def wide_parts(x: PackedOperand, weight: Weight) -> Array:
    """`x @ w.T` as float32 parts (parts, tokens, rows), whose sum it is.

    Args:
        x: swizzled.
        weight: a planar matrix (rows, columns).
    """
    return _products(x, [weight], [None], None)


def _products(x: PackedOperand, weights: Sequence[Weight], biases: Sequence[Array], residual: Array) -> Array:
    """Parts (parts, tokens, rows of all) of the products; biases and the residual are added where it is one part."""
    rows, units = [len(w) for w in weights], card_of(cupy_module().cuda.runtime.getDevice()).compute_units
    cut = geometry.wide(len(x), rows, cells_of(x.shape[1]), units)
    parts = cupy_module().empty((cut.depth, len(x), sum(rows)), np.float32)
    ends = itertools.accumulate(rows)
    ys = [parts[0, 0, end - n : end] for end, n in zip(ends, rows, strict=True)]
    first, last = format_of(weights[0]).kernel, format_of(weights[-1]).kernel
    alone = cut.depth == 1
    matrices = matrix_arguments(weights, biases if alone else None, ys)
    args = {"matrices": matrices, "residual": residual if alone else None, "stride": sum(rows)}
    _launch(_kernel("wide_products", first, None if first == last else last, cut.tokens), x, rows, cut, args, units)
    return parts


def wide_gated(
    x: PackedOperand, gate: Weight, up: Weight, biases: Sequence[Array], unit: str, result: OperandForm
) -> Array | PackedOperand:
    """`unit(x @ gate.T + gate_bias, x @ up.T + up_bias)` in one launch.

    Args:
        x: swizzled.
        gate, up: planar matrices of one shape and format.
        biases: float32 (rows,) or None, for each.
        unit: one of GATES.
        result: FLOAT32, or SWIZZLED, for the product that follows.

    Returns:
        (tokens, rows) in that form.
    """
    out, output, elements = gated_output(len(x), len(gate), result)
    matrices = gated_matrices([memory_of(gate), memory_of(up)], biases, len(gate), unit)
    rows, units = [2 * elements], card_of(cupy_module().cuda.runtime.getDevice()).compute_units
    cut = geometry.wide(len(x), rows, cells_of(x.shape[1]), units)._replace(depth=1)
    kernel = _kernel("wide_gated", format_of(gate).kernel, None, cut.tokens)
    _launch(kernel, x, rows, cut, {"matrices": matrices, "out": output}, units)
    return out


def _launch(
    kernel: Kernel, x: PackedOperand, rows: Sequence[int], cut: geometry.Wide, args: dict[str, Any], units: int
) -> None:
    tokens, columns = x.shape
    counts = cut.depth, blocks(tokens, cut.tokens), sum(blocks(n, cut.rows) for n in rows)
    grid = min(math.prod(counts), units)
    operand = (x.data, tokens, x.width, cells_of(columns))
    kernel((grid,), (cut.threads,), {"x": operand, "parts": (*counts, grid), **args}, WIDE_LDS)


@functools.cache
def _kernel(name: str, first: str | None, last: str | None, tokens: int) -> Kernel:
    other = {} if last is None else {"RF_QTYPE_LAST": last}
    return Kernel("wide.hip", name, RF_QTYPE=first, RF_TOKENS=tokens, RF_LDS=WIDE_LDS, **other)
