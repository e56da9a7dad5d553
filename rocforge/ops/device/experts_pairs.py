"""Products of many token-expert pairs, which are sorted by expert first.

Of some tokens, an expert's pairs are multiplied by experts_few.hip, two at a time; of many in float16 on the matrix
unit, from packed weights by experts_tiles.hip or experts_wide.hip, and of other formats, or on a card without the unit,
by experts_prefill.hip. OF_SORTED_PAIRS has them all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.cards import card_of
from rocforge.device.geometry import (
    FEW_PAIRS,
    WIDE_LDS,
    expert_tile_pairs,
    gated_rows,
    gemv_log_lanes,
    gemv_rows,
    tile_blocks,
    tile_row_tiles,
)
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.planar import CELL, cells_of
from rocforge.ops.device.experts_parts import Part, parts
from rocforge.ops.device.matvec import gated_matrices
from rocforge.ops.device.moe import PairTiles, group_by_expert, scatter_tokens, sorted_pairs
from rocforge.ops.device.operands import PackedOperand, empty_operand
from rocforge.ops.device.plan import OperandForm, Product, fragments_for
from rocforge.ops.device.strided import blocks, float32
from rocforge.ops.device.weights import WeightFormat, format_of, memory_of
from rocforge.ops.types import Array, Groups, Matrices

WIDE_ROWS, WIDE_PAIRS, WIDE_THREADS = 192, 160, 512
"""Of experts_wide.hip: rows and token-expert pairs of a work item; and threads of a block."""

Pair = tuple[Matrices, ...]
"""Gate and up; or what has the rows of both."""


def _as_they_lie(pair: Pair, ffn: int, unit: str) -> tuple[Any, ...]:
    """The `Gated` of a launch over all experts' gate and up."""
    return gated_matrices([memory_of(m.weight) for m in pair], [float32(m.bias) for m in pair], ffn, unit)


def _few_products(x: PackedOperand, ids: Array, pair: Pair, down: Matrices, unit: str) -> tuple[Array, Array]:
    """Three launches: the token-expert pairs sorted, gate and up, and down; see OF_SORTED_PAIRS."""
    (count, dim, ffn), used, tuned = down.weight.shape, ids.shape[1], tuning.current()
    cells = cells_of(ffn)
    groups, tiles = sorted_pairs(ids, count, FEW_PAIRS)
    hidden, y = empty_operand((ids.size, ffn), OperandForm.INT8), cupy_module().empty((ids.size, dim), np.float32)
    pairs = (x.data, groups.order, tiles.listed, used, cells_of(dim))
    args = {"pairs": pairs, "matrices": _as_they_lie(pair, ffn, unit), "out": (None, hidden.data, cells)}
    grid = blocks(CELL * cells, gated_rows(tuned, FEW_PAIRS)), tiles.most
    _few_kernel("experts_gated_few", format_of(pair[0].weight))(grid, (tuned.gated_threads,), args)
    log_lanes = gemv_log_lanes(tuned, FEW_PAIRS, dim * tiles.most, cells)
    last = {"w": memory_of(down.weight), "bias": float32(down.bias), "y": y, "rows": dim, "log_lanes": log_lanes}
    last |= {"pairs": (hidden.data, None, tiles.listed, 1, cells)}
    grid = blocks(blocks(dim, gemv_rows(tuned, FEW_PAIRS)) << log_lanes, tuned.gemv_threads), tiles.most
    _few_kernel("experts_down_few", format_of(down.weight))(grid, (tuned.gemv_threads,), last)
    return y, groups.rank


@functools.cache
def _few_kernel(name: str, kind: WeightFormat) -> Kernel:
    return Kernel("experts_few.hip", name, RF_QTYPE=kind.kernel, RF_TOKENS=FEW_PAIRS)


def _tile_products(x: PackedOperand, ids: Array, pair: Pair, down: Matrices, unit: str) -> tuple[Array, Array]:
    """Three launches: the token-expert pairs sorted, gate and up, and down; see OF_SORTED_PAIRS."""
    (count, dim, ffn), used = down.weight.shape, ids.shape[1]
    height = expert_tile_pairs(ids.size, count)
    groups, tiles = sorted_pairs(ids, count, height)
    hidden = empty_operand((ids.size, ffn), fragments_for(ids.size))
    y = cupy_module().empty((ids.size, dim), np.float32)
    args = {"matrices": _as_they_lie(pair, ffn, unit), "out": hidden.data, "out_width": hidden.width}
    args |= {"out_cells": cells_of(ffn)}
    launch_tiles("experts_gated_pairs", x, groups.order, used, tiles, height, pair[0], 2 * CELL * cells_of(ffn), args)
    args = {"w": memory_of(down.weight), "bias": float32(down.bias), "y": y, "rows": dim, "puts_back": 0}
    launch_tiles("experts_down_pairs", hidden, None, 1, tiles, height, down, dim, args)
    return y, groups.rank


def launch_tiles(
    name: str,
    x: PackedOperand,
    order: Array,
    used: int,
    tiles: PairTiles,
    height: int,
    matrices: Matrices,
    rows: int,
    args: dict[str, Any],
) -> None:
    """One launch of experts_tiles.hip; `order` and `used` are as in its Pairs, `rows` of all matrices of an expert."""
    device, cells = cupy_module().cuda.runtime.getDevice(), cells_of(x.shape[1])
    tuned, card = tuning.of(device), card_of(device)
    items = tiles.most * blocks(rows, 16 * tile_row_tiles(tuned, height))
    grid = min(blocks(items, tuned.tile_threads // card.wave), tile_blocks(tuned, height, card))
    pairs = (x.data, order, tiles.listed, used, x.width, cells, grid)
    kernel = _tiles_kernel(name, format_of(matrices.weight), height)
    kernel((grid,), (tuned.tile_threads,), {"pairs": pairs, **args})


@functools.cache
def _tiles_kernel(name: str, kind: WeightFormat, height: int) -> Kernel:
    return Kernel("experts_tiles.hip", name, RF_QTYPE=kind.kernel, RF_TOKENS=height)


def _wide_products(x: Array, ids: Array, pair: Pair, down: Matrices, unit: str) -> tuple[Array, Array]:
    """Four launches: the pairs sorted, the tokens in their places, gate and up, and down; see OF_SORTED_PAIRS."""
    count, dim, ffn = down.weight.shape
    groups, tiles = sorted_pairs(ids, count, WIDE_PAIRS, 8)
    # a tile is read whole
    operand = scatter_tokens(x, groups.rank, len(groups.order) + WIDE_PAIRS)
    hidden = empty_operand((len(operand), ffn), OperandForm.SWIZZLED)
    y = cupy_module().empty((len(groups.order), dim), np.float16)
    args = {"matrices": _as_they_lie(pair, ffn, unit), "out": hidden.data, "out_cells": cells_of(ffn)}
    _launch_wide("experts_gated_wide", operand, tiles, pair[0], 2 * CELL * cells_of(ffn), args)
    args = {"w": memory_of(down.weight), "bias": float32(down.bias), "y": y, "rows": dim}
    _launch_wide("experts_down_wide", hidden, tiles, down, dim, args)
    return y, groups.rank


def _launch_wide(
    name: str, x: PackedOperand, tiles: PairTiles, matrices: Matrices, rows: int, args: dict[str, Any]
) -> None:
    """One launch of experts_wide.hip; `rows` are those of all matrices of an expert."""
    units = card_of(cupy_module().cuda.runtime.getDevice()).compute_units
    grid = min(tiles.most * blocks(rows, WIDE_ROWS), units)
    pairs = (x.data, tiles.listed, x.width, cells_of(x.shape[1]), grid)
    _wide_kernel(name, format_of(matrices.weight))((grid,), (WIDE_THREADS,), {"pairs": pairs, **args}, WIDE_LDS)


@functools.cache
def _wide_kernel(name: str, kind: WeightFormat) -> Kernel:
    return Kernel("experts_wide.hip", name, RF_QTYPE=kind.kernel, RF_LDS=WIDE_LDS)


def _grouped_gemm(x: Array, ids: Array, pair: Pair, down: Matrices, unit: str) -> tuple[Array, Array]:
    """Three launches: the token-expert pairs sorted, gate and up, and down; see OF_SORTED_PAIRS."""
    cupy, (count, dim, ffn) = cupy_module(), down.weight.shape
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
    return y, groups.rank


_SIGNATURES = {
    "experts_gated_tiles": None,
    "experts_down_tiles": "float32* float16* int32* int32 void* float32*? int32 uint32",
}


@functools.cache
def _prefill_kernel(name: str, kind: WeightFormat) -> Kernel:
    return Kernel("experts_prefill.hip", name, _SIGNATURES[name], RF_QTYPE=kind.kernel)


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
        _prefill_kernel(name, part.kind)((runs * tiles,), (tuned.experts_tile_rows,), arguments(offsets, part))


OF_SORTED_PAIRS = {
    Product.GEMV_FEW: _few_products,
    Product.TILE: _tile_products,
    Product.WIDE: _wide_products,
    Product.GROUPED_GEMM: _grouped_gemm,
}
"""What computes the products of many pairs: float32 or float16 (places, dim), and int32 (pairs,), the place of each."""
