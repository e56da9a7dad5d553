"""Latent attention on a device: launches of latent_attention.hip. Shapes are those of rocforge.ops.latent_attention."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.arrays import Constant
from rocforge.device.cards import card_of
from rocforge.device.geometry import expert_tile_pairs
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.attention import Macros, cache_arrays, splits_of, types_of
from rocforge.ops.device.dequantize import rows_by_id
from rocforge.ops.device.experts import MAX_PAIRS, expert_linear, launch_tiles
from rocforge.ops.device.moe import sorted_pairs
from rocforge.ops.device.operands import quantized
from rocforge.ops.device.plan import Product, experts_product, fragments_for
from rocforge.ops.device.strided import a_thread_each, blocks, float32, rows_of
from rocforge.ops.device.weights import format_of, memory_of
from rocforge.ops.state import BLOCK_SIZE, PagedLayer
from rocforge.ops.types import Array, Matrices, Weight

HEADS, WAVES = 16, 8
"""Heads and waves of a block of the kernel."""
UNIT, MOST = 16, 576
"""Latents and shared keys are multiples of so many elements, and both at most so many."""


def store_latents(
    q: Array,
    latents: Array,
    keys: Array,
    layer: PagedLayer,
    rotation: tuple[Array, Array, bool] | None,
    norm: Array,
    eps: float,
    factors: Array,
) -> tuple[Array, Array]:
    """As rocforge.ops.latent_attention.store_latents."""
    (tokens, heads, dim), (rank, shared), empty = q.shape, (latents.shape[1], keys.shape[1]), cupy_module().empty
    own, rotated = (empty((tokens, heads, n), np.float32) for n in (dim - shared, shared))
    if not tokens:
        return own, rotated
    (q, q_stride), (latents, latent_stride), (keys, key_stride) = map(rows_of, (q, latents, keys))
    cos, sin, neox = rotation or (None, None, False)
    args = {"own": own, "rotated": rotated, "keys": cache_arrays(layer)["keys"], "slots": layer.slots}
    args |= {"q": q, "latents": latents, "shared_keys": keys, "q_stride": q_stride, "latent_stride": latent_stride}
    args |= {"key_stride": key_stride, "cos": cos, "sin": sin, "neox": int(neox), "norm": float32(norm), "eps": eps}
    args |= {"factors": factors, "tokens": tokens, "heads": heads, "own_dim": dim - shared}
    grid, block = a_thread_each(tokens * (heads + 1) * card_of(own.device.id).wave)
    _kernel("latent_store", rank, shared, layer)(grid, block, args)
    return own, rotated


def latent_attention(absorbed: Array, rotated: Array, layer: PagedLayer, scale: float) -> Array:
    """As rocforge.ops.latent_attention.latent_attention."""
    tokens, heads, rank = absorbed.shape
    out = cupy_module().empty(absorbed.shape, np.float32)
    if not tokens:
        return out
    (sequences, stride), tiles, device = layer.tables.shape, blocks(heads, HEADS), out.device.id
    card, tuned = card_of(device), tuning.of(device)
    splits = splits_of(card.compute_units, tokens * tiles, stride * layer.block_size, tuned)
    numbers = tokens * tiles * splits * HEADS * (rank + 2)
    partials = cupy_module().empty(numbers, np.float32) if splits > 1 else None
    args = {"out": out, "absorbed": float32(absorbed), "rotated": float32(rotated)}
    args |= {"keys": cache_arrays(layer)["keys"], "tables": layer.tables, "lengths": layer.lengths}
    args |= {"query_starts": layer.query_starts, "partials": partials}
    args |= {"table_stride": stride, "sequences": sequences, "heads": heads, "splits": splits, "scale": scale}
    sizes, block = (rank, rotated.shape[2], layer), (WAVES * card.wave,)
    _kernel("latent_attention", *sizes)((tokens, tiles, splits), block, args)
    if splits > 1:
        _kernel("latent_combine", *sizes)((tokens, heads), block, args)
    return out


def _kernel(name: str, rank: int, shared: int, layer: PagedLayer) -> Kernel:
    if rank % UNIT or shared % UNIT or rank + shared > MOST:
        raise ValueError(
            f"latents are of {rank} elements and shared keys of {shared}; on a device allowed are multiples of {UNIT}, "
            f"and {MOST} of both"
        )
    return _compiled(name, rank, shared, types_of(layer))


@functools.cache
def _compiled(name: str, rank: int, shared: int, types: Macros) -> Kernel:
    sizes: dict[str, Any] = {"RF_HEAD_DIM": rank + shared, "RF_RANK": rank, "RF_BLOCK_SIZE": BLOCK_SIZE, **dict(types)}
    return Kernel("latent_attention.hip", name, **sizes)


def head_linear(x: Array, weight: Weight) -> Array:
    """As rocforge.ops.latent_attention.head_linear: each head's matrix is an expert that every token takes."""
    (tokens, heads, columns), kind = x.shape, format_of(weight)
    x, ids, matrices = x.reshape(-1, columns), _heads_of(tokens, heads), Matrices(weight)
    product = experts_product(kind, kind, kind, tokens, tuning.current())
    if product not in (Product.TILE, Product.WIDE):
        return expert_linear(x, ids, matrices).reshape(tokens, heads, -1)
    y, step = cupy_module().empty((tokens, heads, weight.shape[1]), np.float32), max(MAX_PAIRS // heads, 1)
    for start in range(0, tokens, step):
        some = slice(start, start + step)
        _by_tiles(y[some].reshape(-1, weight.shape[1]), x[start * heads :], ids[some], matrices)
    return y


def _by_tiles(out: Array, x: Array, ids: Array, matrices: Matrices) -> None:
    """Each pair's row times its head's matrix, on the matrix unit: the pairs sorted, multiplied, and put back."""
    heads, rows, _ = matrices.weight.shape
    height, y = expert_tile_pairs(ids.size, heads), cupy_module().empty(out.shape, np.float32)
    groups, tiles = sorted_pairs(ids, heads, height)
    args = {"w": memory_of(matrices.weight), "bias": None, "y": y, "rows": rows}
    operand = quantized(x[: ids.size], fragments_for(ids.size))
    launch_tiles("experts_down_pairs", operand, groups.order, 1, tiles, height, matrices, rows, args)
    rows_by_id(y, groups.rank, out)


def _heads_of(tokens: int, heads: int) -> Array:
    """int32 (tokens, heads): 0, 1, ... of each token."""
    return _kept_heads(heads, 1 << max(tokens - 1, 0).bit_length()).on_current_device()[:tokens]


@functools.cache
def _kept_heads(heads: int, tokens: int) -> Constant:
    return Constant(np.tile(np.arange(heads, dtype=np.int32), (tokens, 1)))
