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
from rocforge.ops.device.dequantize import rows_by_id
from rocforge.ops.device.experts_parts import Part, kind_of, parts
from rocforge.ops.device.matvec import gated_matrices
from rocforge.ops.device.moe import combine, group_by_expert
from rocforge.ops.device.operands import PackedOperand, as_operand, empty_operand, quantized
from rocforge.ops.device.plan import OperandForm, Product, experts_form_for, experts_product, form_of
from rocforge.ops.device.strided import blocks, float32
from rocforge.ops.device.weights import WeightFormat, format_of
from rocforge.ops.types import Array, Groups, Matrices

MAX_PAIRS = 1 << 15
"""Token-expert pairs of a launch: a grid has 65,535 blocks in its second axis."""

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
    if not tokens:
        return cupy_module().empty((0, dim), np.float32)
    ids, weights = cupy_module().ascontiguousarray(ids, dtype=np.int32), float32(weights)
    product = experts_product((format_of(gate.weight), format_of(up.weight)), tokens)
    run = _grouped_gemm if product is Product.GROUPED_GEMM else _gemv
    return run(as_operand(x, form_of(product, tokens)), ids, weights, (gate, up), down, unit, float32(residual))


def _gemv(
    x: Array | PackedOperand,
    ids: Array,
    weights: Array,
    pair: tuple[Matrices, Matrices],
    down: Matrices,
    unit: str,
    residual: Array,
) -> Array:
    """Two launches: gate and up of each token-expert pair; down of each, and the sum over a token's experts."""
    tokens, ffn = len(ids), pair[0].weight.shape[1]
    hidden = empty_operand((ids.size, ffn), experts_form_for([down.weight], tokens))
    _gemv_gated(hidden, x, ids, pair, unit)
    return _gemv_down(_memory(hidden), ids, weights, down, residual)


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
        matrices = gated_matrices(part.data, part.biases, ffn, unit)
        args = {"x": x, "cells": part.kind.cells(dim), "ids": ids, "first": first, "used": used}
        args |= {"matrices": matrices, "out": to}
        grid = (blocks(rows, gated_rows(tuned, 1)), len(out))
        _kernel("experts_gated", part.kind)(grid, (tuned.gated_threads,), args)

    if kind_of(*pair) is not None:
        return launch(_memory(out), ids, 0, *parts(pair))
    for part in parts(pair, ids.reshape(-1)):
        launch(_memory(out)[part.span], None, part.span.start, part)


def _gemv_down(hidden: Array, ids: Array, weights: Array, down: Matrices, residual: Array) -> Array:
    """Down, and the sum; where it is unpacked for each pair, the sum is a launch of its own."""
    (_, dim, ffn), cupy, tuned = down.weight.shape, cupy_module(), tuning.current()
    products = tuned.gated_threads // tuned.gated_lanes  # of a block

    def launch(
        out: Array, hidden: Array, ids: Array, used: int, weights: Array, part: Part, residual: Array = None
    ) -> None:
        args = (hidden, part.kind.cells(ffn), ids, weights, used, *part.data, *part.biases, residual, out, dim)
        _kernel("experts_down", part.kind)((blocks(dim, products // used), len(out)), (tuned.gated_threads,), args)

    if kind_of(down) is not None:
        out, (part,) = cupy.empty((len(ids), dim), np.float32), parts([down])
        launch(out, hidden, ids, ids.shape[1], weights, part, residual)
        return out
    y = cupy.empty((ids.size, dim), np.float32)
    for part in parts([down], ids.reshape(-1)):
        launch(y[part.span], hidden[part.span], None, 1, None, part)
    return combine(y, None, weights, residual)


def expert_linear(x: Array, ids: Array, matrices: Matrices) -> Array:
    """What `rocforge.ops.moe.expert_linear` gives, of arrays on a device."""
    cupy, rows = cupy_module(), matrices.weight.shape[1]
    ids, x, kind = cupy.ascontiguousarray(ids, dtype=np.int32), float32(x), kind_of(matrices)
    if len(x) != ids.size:
        x = rows_by_id(x, _token_of_pair(ids.shape[1], 1 << (ids.size - 1).bit_length(), x.device.id)[: ids.size])
    out, pairs = cupy.empty((ids.size, rows), np.float32), ids.reshape(-1)
    for start in range(0, ids.size, MAX_PAIRS):
        span = slice(start, start + MAX_PAIRS)
        operand = quantized(x[span]).data if kind is not None and kind.planar else x[span]
        _linear_of_pairs(out[span], operand, pairs[span], matrices)
    return out


def _linear_of_pairs(out: Array, x: Array, ids: Array, matrices: Matrices) -> None:
    (_, rows, columns), whole, tuned = matrices.weight.shape, kind_of(matrices) is not None, tuning.current()
    products = tuned.gated_threads // tuned.gated_lanes  # of a block
    for part in parts([matrices], None if whole else ids):
        y, operand = (out, x) if whole else (out[part.span], x[part.span])
        which = ids if whole else None
        args = (operand, part.kind.cells(columns), which, None, 1, *part.data, *part.biases, None, y, rows)
        _kernel("experts_down", part.kind)((blocks(rows, products), len(y)), (tuned.gated_threads,), args)


@functools.cache
def _token_of_pair(used: int, pairs: int, device: int) -> Array:
    """int32 (pairs,): the token of each token-expert pair. It is kept, since graphs of steps read it."""
    cupy = cupy_module()
    with cupy.cuda.Device(device):
        tokens = cupy.asarray(np.arange(pairs, dtype=np.int32) // used)
        cupy.cuda.get_current_stream().synchronize()  # it may be used on another stream
    return tokens


def _grouped_gemm(
    x: Array,
    ids: Array,
    weights: Array,
    pair: tuple[Matrices, Matrices],
    down: Matrices,
    unit: str,
    residual: Array,
) -> Array:
    """Four launches: the token-expert pairs sorted, gate and up, down, and the sum over a token's experts."""
    cupy, (count, ffn, dim) = cupy_module(), pair[0].weight.shape
    groups = group_by_expert(ids, count)
    hidden, y = cupy.empty((ids.size, ffn), np.float16), cupy.empty((ids.size, dim), np.float32)
    rows = tuning.current().experts_tile_rows

    def gated(offsets: Array, part: Part) -> dict[str, Any]:
        matrices = gated_matrices(part.data, part.biases, ffn, unit)
        args = {"y": hidden, "x": x, "order": groups.order, "offsets": offsets, "used": ids.shape[1], "columns": dim}
        return {**args, "experts": part.experts, "matrices": matrices}

    def last(offsets: Array, part: Part) -> tuple[Any, ...]:
        return (y, hidden, offsets, part.experts, *part.data, *part.biases, dim, ffn)

    _tiles("experts_gated_tiles", groups, pair, blocks(ffn, rows // 2), gated)  # half of a tile's rows are of gate
    _tiles("experts_down_tiles", groups, [down], blocks(dim, rows), last)
    return combine(y, groups.rank, weights, residual)


def _tiles(
    name: str, groups: Groups, matrices: Sequence[Matrices], runs: int, arguments: Callable[[Array, Part], Any]
) -> None:
    """A launch for each part of the experts, which reads from where its first one begins among the pairs.

    `runs` are the tiles of the matrices' rows; `arguments` are made of where the part's experts begin, and of the part.
    """
    tuned = tuning.current()
    for part in parts(matrices):
        offsets = groups.offsets[part.span.start : part.span.stop + 1]
        tiles = groups.order.size // tuned.experts_tile_pairs + part.experts
        _kernel(name, part.kind)((runs * tiles,), (tuned.experts_tile_rows,), arguments(offsets, part))
