"""Each head's row times its own matrix, on a device: what rocforge.ops.latent_attention.head_linear gives.

A head's matrix is an expert that every token takes. Of few tokens one launch of head_linear.hip rounds the rows and
multiplies them; of more, those of a head are multiplied together on the matrix unit, by experts_tiles.hip.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from rocforge.device import tuning
from rocforge.device.arrays import Constant
from rocforge.device.cards import card_of
from rocforge.device.geometry import down_step, expert_tile_pairs
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.planar import CELL, cells_of
from rocforge.ops.device.experts import MAX_PAIRS, expert_linear
from rocforge.ops.device.experts_pairs import launch_tiles
from rocforge.ops.device.moe import PairTiles, sorted_pairs
from rocforge.ops.device.operands import PackedOperand, empty_operand, output_arguments, quantized
from rocforge.ops.device.plan import (
    OperandForm,
    Product,
    form_for,
    fragments_for,
    heads_product,
)
from rocforge.ops.device.strided import float32
from rocforge.ops.device.weights import format_of, memory_of
from rocforge.ops.types import Array, Matrices, Weight

MOST_CELLS = 8
"""Cells of a row that a block of head_linear.hip has room for."""
KEPT_PAIRS = 4096
"""Up to so many pairs of a token and a head their order is kept, of more it is made each time."""


def head_linear(x: Array, weight: Weight, consumer: Weight | None = None) -> Array | PackedOperand:
    """As rocforge.ops.latent_attention.head_linear."""
    (tokens, heads, columns), kind = x.shape, format_of(weight)
    product = heads_product(kind, tokens, tuning.current())
    if product is Product.GEMV_INT8 and 0 < tokens * heads <= MAX_PAIRS and cells_of(columns) <= MOST_CELLS:
        return _of_few(x, weight, consumer)
    if product in (Product.TILE, Product.WIDE):
        y = _by_tiles(float32(x), weight)
    else:
        y = expert_linear(x.reshape(-1, columns), _heads_of(tokens, heads), Matrices(weight))
    return y.reshape(tokens, heads, -1) if consumer is None else y.reshape(tokens, -1)


def _of_few(x: Array, weight: Weight, consumer: Weight | None) -> Array | PackedOperand:
    """The result is written as the consumer takes it, where a head's are whole runs of 32."""
    (tokens, heads, columns), rows, device = x.shape, weight.shape[1], x.device.id
    tuned, pairs = tuning.of(device), tokens * heads
    form = OperandForm.FLOAT32 if consumer is None else form_for([consumer], tokens)
    packs = form.packed and rows % 32 == 0 and heads * rows % CELL == 0
    out: Any = empty_operand((tokens, heads * rows), form if packs else OperandForm.FLOAT32)
    step = down_step(tuned, card_of(device), rows, cells_of(columns), pairs)
    y, _, packed, width = output_arguments(out)
    args = {"x": float32(x), "w": memory_of(weight), "y": y, "quantized": packed, "width": width}
    args |= {"cells": cells_of(heads * rows), "columns": columns, "heads": heads, "rows": rows, "step": step}
    _kernel(format_of(weight).kernel)((step, pairs), (tuned.gated_threads,), args)
    return out.reshape(tokens, heads, rows) if consumer is None else out


@functools.cache
def _kernel(kind: str) -> Kernel:
    return Kernel("head_linear.hip", "head_linear", RF_QTYPE=kind)


def _by_tiles(x: Array, weight: Weight) -> Array:
    """(tokens * heads, rows); of so many tokens at a time as a launch takes."""
    (tokens, heads, columns), rows, matrices = x.shape, weight.shape[1], Matrices(weight)
    y, step = cupy_module().empty((tokens * heads, rows), np.float32), max(MAX_PAIRS // heads, 1)
    for start in range(0, tokens, step):
        count = min(step, tokens - start)
        pairs = slice(start * heads, (start + count) * heads)
        height = expert_tile_pairs(count * heads, heads)
        order, tiles = _sorted(count, heads, height)
        args = {"w": memory_of(weight), "bias": None, "y": y[pairs], "rows": rows, "puts_back": 1}
        operand = quantized(x.reshape(-1, columns)[pairs], fragments_for(count * heads))
        launch_tiles("experts_down_pairs", operand, order, 1, tiles, height, matrices, rows, args)
    return y


def _sorted(tokens: int, heads: int, height: int) -> tuple[Array, PairTiles]:
    """Pairs of a token and a head by the head, and each head's in tiles."""
    if tokens * heads > KEPT_PAIRS:
        groups, tiles = sorted_pairs(_heads_of(tokens, heads), heads, height)
        return groups.order, tiles
    kept = _kept_order(tokens, heads, height)
    listed = kept.listed.on_current_device()
    return kept.order.on_current_device(), PairTiles(listed, len(listed) - 1)


class _KeptOrder(NamedTuple):
    """As Groups and PairTiles have them."""

    order: Constant
    listed: Constant


@functools.cache
def _kept_order(tokens: int, heads: int, height: int) -> _KeptOrder:
    order = np.arange(tokens * heads, dtype=np.int32).reshape(tokens, heads).T.reshape(-1)
    begins = range(0, tokens, height)
    tiles = [(h, h * tokens + at, min(height, tokens - at), 0) for h in range(heads) for at in begins]
    return _KeptOrder(Constant(order.copy()), Constant(np.array([(len(tiles), 0, 0, 0), *tiles], np.int32)))


def _heads_of(tokens: int, heads: int) -> Array:
    """int32 (tokens, heads): 0, 1, ... of each token."""
    return _kept_heads(heads, 1 << max(tokens - 1, 0).bit_length()).on_current_device()[:tokens]


@functools.cache
def _kept_heads(heads: int, tokens: int) -> Constant:
    return Constant(np.tile(np.arange(heads, dtype=np.int32), (tokens, 1)))
