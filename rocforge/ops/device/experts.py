"""Products with each token's experts on a device.

Up to MAX_GEMV_TOKENS, each token-expert pair is a GEMV, by experts.hip; pairs of more tokens are sorted by expert and
multiplied in float16 on the matrix unit, by experts_prefill.hip. Which experts are read is known to the device alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.geometry import gated_rows
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.planar import CELL, cells_of
from rocforge.ops.device.experts_parts import Part, kind_of, parts
from rocforge.ops.device.matvec import gated_matrices
from rocforge.ops.device.moe import combine, group_by_expert
from rocforge.ops.device.operands import PackedOperand, as_operand, empty_operand
from rocforge.ops.device.plan import OperandForm, Product, experts_form_for, experts_product
from rocforge.ops.device.strided import blocks, float32
from rocforge.ops.device.weights import WeightFormat, format_of
from rocforge.ops.types import Array, Groups, Matrices

_SIGNATURES = {
    "experts_gated": None,
    "experts_down": "void* int32 int32*? float32*? int32 void* float32*? float32*? float32* int32",
    "experts_gated_tiles": None,
    "experts_down_tiles": "float32* float16* int32* int32 void* float32*? int32 uint32",
}


@functools.cache
def _kernel(name: str, kind: WeightFormat) -> Kernel:
    source = "experts_prefill.hip" if name.endswith("tiles") else "experts.hip"
    return Kernel(source, name, _SIGNATURES[name], RF_QTYPE=kind.kernel)


def takes_int8(tokens: int, gate: Matrices, up: Matrices) -> bool:
    """Whether `experts` takes so many tokens in int8: on a device, where their matrices are planar, of one format."""
    return experts_form_for([gate.weight, up.weight], tokens) is OperandForm.INT8


def experts(
    x: Array | PackedOperand,
    ids: Array,
    weights: Array,
    gate: Matrices,
    up: Matrices,
    down: Matrices,
    unit: str,
    residual: Array,
) -> Array:
    """What `rocforge.ops.moe.experts` gives, of arrays on a device.

    Raises:
        ValueError: the matrices' rows are not whole runs of 8 elements.
    """
    (_, ffn, dim), tokens = gate.weight.shape, len(ids)
    if dim % 8 or ffn % 8:
        raise ValueError(f"experts: rows of {dim} and {ffn} elements; on a device they must be multiples of 8")
    out = cupy_module().empty((tokens, dim), np.float32)
    if tokens:
        ids, weights = cupy_module().ascontiguousarray(ids, dtype=np.int32), float32(weights)
        product = experts_product((format_of(gate.weight), format_of(up.weight)), tokens)
        run = _grouped_gemm if product is Product.GROUPED_GEMM else _gemv
        operand = as_operand(x, experts_form_for([gate.weight, up.weight], tokens))
        run(out, operand, ids, weights, (gate, up), down, unit, None if residual is None else float32(residual))
    return out


def _gemv(
    out: Array,
    x: Array | PackedOperand,
    ids: Array,
    weights: Array,
    pair: tuple[Matrices, Matrices],
    down: Matrices,
    unit: str,
    residual: Array,
) -> None:
    """Two launches: gate and up of each token-expert pair; down of each, and the sum over a token's experts."""
    tokens, ffn = len(ids), pair[0].weight.shape[1]
    hidden = empty_operand((ids.size, ffn), experts_form_for([down.weight], tokens))
    _gemv_gated(hidden, x, ids, pair, unit)
    _gemv_down(out, _memory(hidden), ids, weights, down, residual)


def _memory(x: Array | PackedOperand) -> Array:
    return x.data if isinstance(x, PackedOperand) else x


def _gemv_gated(
    out: Array | PackedOperand, x: Array | PackedOperand, ids: Array, pair: tuple[Matrices, Matrices], unit: str
) -> None:
    (_, ffn, dim), used, tuned = pair[0].weight.shape, ids.shape[1], tuning.current()
    packed, x = isinstance(out, PackedOperand), _memory(x)
    rows = CELL * cells_of(ffn) if packed else ffn

    def launch(out: Array, ids: Array, first: int, part: Part) -> None:
        to = (None, out, cells_of(ffn)) if packed else (out, None, 0)
        matrices = gated_matrices(*part.data, part.biases, ffn, unit)
        args = {"x": x, "cells": part.kind.cells(dim), "ids": ids, "first": first, "used": used}
        args |= {"matrices": matrices, "out": to}
        grid = (blocks(rows, gated_rows(tuned, 1)), len(out))
        _kernel("experts_gated", part.kind)(grid, (tuned.gated_threads,), args)

    if kind_of(*pair) is not None:
        return launch(_memory(out), ids, 0, *parts(pair))
    for part in parts(pair, ids.reshape(-1)):
        launch(_memory(out)[part.span], None, part.span.start, part)


def _gemv_down(out: Array, hidden: Array, ids: Array, weights: Array, down: Matrices, residual: Array) -> None:
    """Down, and the sum; where it is unpacked for each pair, the sum is a launch of its own."""
    (_, dim, ffn), cupy, tuned = down.weight.shape, cupy_module(), tuning.current()
    products = tuned.gated_threads // tuned.gated_lanes  # of a block

    def launch(
        out: Array, hidden: Array, ids: Array, used: int, weights: Array, part: Part, residual: Array = None
    ) -> None:
        args = (hidden, part.kind.cells(ffn), ids, weights, used, *part.data, *part.biases, residual, out, dim)
        _kernel("experts_down", part.kind)((blocks(dim, products // used), len(out)), (tuned.gated_threads,), args)

    if kind_of(down) is not None:
        return launch(out, hidden, ids, ids.shape[1], weights, *parts([down]), residual)
    y = cupy.empty((ids.size, dim), np.float32)
    for part in parts([down], ids.reshape(-1)):
        launch(y[part.span], hidden[part.span], None, 1, None, part)
    combine(out, y, None, weights, residual)


def _grouped_gemm(
    out: Array,
    x: Array,
    ids: Array,
    weights: Array,
    pair: tuple[Matrices, Matrices],
    down: Matrices,
    unit: str,
    residual: Array,
) -> None:
    """Four launches: the token-expert pairs sorted, gate and up, down, and the sum over a token's experts."""
    cupy, (count, ffn, dim) = cupy_module(), pair[0].weight.shape
    groups = group_by_expert(ids, count)
    hidden, y = cupy.empty((ids.size, ffn), np.float16), cupy.empty((ids.size, dim), np.float32)
    rows = tuning.current().experts_tile_rows

    def gated(offsets: Array, part: Part) -> dict[str, Any]:
        matrices = gated_matrices(*part.data, part.biases, ffn, unit)
        args = {"y": hidden, "x": x, "order": groups.order, "offsets": offsets, "used": ids.shape[1], "columns": dim}
        return {**args, "experts": part.count, "matrices": matrices}

    def last(offsets: Array, part: Part) -> tuple[Any, ...]:
        return (y, hidden, offsets, part.count, *part.data, *part.biases, dim, ffn)

    _tiles("experts_gated_tiles", groups, pair, blocks(ffn, rows // 2), gated)  # half of a tile's rows are of gate
    _tiles("experts_down_tiles", groups, [down], blocks(dim, rows), last)
    combine(out, y, groups.rank, weights, residual)


def _tiles(
    name: str, groups: Groups, matrices: Sequence[Matrices], runs: int, arguments: Callable[[Array, Part], Any]
) -> None:
    """A launch for each part of the experts, which reads from where its first one begins among the pairs.

    `runs` are the tiles of the matrices' rows; `arguments` are made of where the part's experts begin, and of the part.
    """
    tuned = tuning.current()
    for part in parts(matrices):
        offsets = groups.offsets[part.span.start : part.span.stop + 1]
        tiles = groups.order.size // tuned.experts_tile_pairs + part.count
        _kernel(name, part.kind)((runs * tiles,), (tuned.experts_tile_rows,), arguments(offsets, part))
