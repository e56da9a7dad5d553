"""Latent attention on a device: launches of latent_attention.hip. Shapes are those of rocforge.ops.latent_attention."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rocforge.device import tuning
from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.attention import Macros, cache_arrays, paged_attention, splits_of, types_of
from rocforge.ops.device.dequantize import dequantize_device
from rocforge.ops.device.head_linear import head_linear
from rocforge.ops.device.operands import to_fp16
from rocforge.ops.device.strided import a_thread_each, blocks, copy_into, float32, rows_of
from rocforge.ops.state import BLOCK_SIZE, PagedLayer
from rocforge.ops.types import Array, Weight
from rocforge.quant import QuantizedArray

HEADS, WAVES = 16, 8
"""Heads and waves of a block of the kernel."""
UNIT, MOST = 16, 576
"""Latents and shared keys are multiples of so many elements, and both at most so many."""
EXPAND_THREADS, EXPAND_TOKENS, EXPAND_COLUMNS, TURN_TILE = 256, 128, 128, 32
"""Of latent_plan.hip and latent_expand.hip: threads of a block; tokens, and rows of the weights, that one multiplies;
and rows of a tile that is turned."""


class Expansion(NamedTuple):
    """Where keys and values of a batch's sequences with several tokens go, all layers' in turn.

    Attributes:
        tables: int32 (sequences, blocks of the longest): those sequences' blocks among the keys and values.
        sources: int32 (blocks,): of each of these the block of the latents, -1 where it is none's.
        alone: int32 (sequences,): the row of a sequence's one token, -1 of those that have several, or none.
        lengths: int32 (sequences,): tokens of the sequences with one; 0 of the others.
        starts: int32 (sequences + 1,): 0, 1, ...: query_starts of a row for each sequence.
    """

    tables: Array
    sources: Array
    alone: Array
    lengths: Array
    starts: Array


_plan = Kernel("latent_plan.hip", "latent_plan")
_put_alone = Kernel("latent_plan.hip", "latent_alone", "float32* float32* int32* uint32")


def plan_expansion(layer: PagedLayer, room: int) -> Expansion:
    """What all layers of a batch share that make keys and values of latents, in `room` blocks."""
    sequences, stride = layer.tables.shape
    width = min(stride, room)
    sizes = (sequences, width), room, sequences, sequences, sequences + 1
    plan = Expansion(*(cupy_module().empty(size, np.int32) for size in sizes))
    args = {"expanded": plan.tables, "sources": plan.sources, "alone": plan.alone, "alone_lengths": plan.lengths}
    args |= {"alone_starts": plan.starts, "tables": layer.tables, "lengths": layer.lengths}
    args |= {"query_starts": layer.query_starts, "table_stride": stride, "width": width, "sequences": sequences}
    _plan((sequences,), (EXPAND_THREADS,), {**args, "room": room, "block_size": layer.block_size})
    return plan


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
    (tokens, heads, dim), shared = q.shape, keys.shape[1]
    own, rotated = (cupy_module().empty((tokens, heads, n), np.float32) for n in (dim - shared, shared))
    _store((own, rotated, None), q, latents, keys, layer, rotation, norm, eps, factors)
    return own, rotated


def _store(
    to: tuple[Array, Array, Array],
    q: Array,
    latents: Array,
    keys: Array,
    layer: PagedLayer,
    rotation: tuple[Array, Array, bool] | None,
    norm: Array,
    eps: float,
    factors: Array,
) -> None:
    """Queries go to `own` and `rotated`; where there is `whole`, to that of sequences with several tokens."""
    (tokens, heads, dim), (rank, shared), (own, rotated, whole) = q.shape, (latents.shape[1], keys.shape[1]), to
    if not tokens:
        return
    (q, q_stride), (latents, latent_stride), (keys, key_stride) = map(rows_of, (q, latents, keys))
    cos, sin, neox = rotation or (None, None, False)
    args = {"own": own, "rotated": rotated, "keys": cache_arrays(layer)["keys"], "slots": layer.slots}
    args |= {"q": q, "latents": latents, "shared_keys": keys, "q_stride": q_stride, "latent_stride": latent_stride}
    args |= {"key_stride": key_stride, "cos": cos, "sin": sin, "neox": int(neox), "norm": float32(norm), "eps": eps}
    args |= {"factors": factors, "tokens": tokens, "heads": heads, "own_dim": dim - shared, "whole": whole}
    args |= {"query_starts": layer.query_starts, "sequences": len(layer.query_starts) - 1}
    grid, block = a_thread_each(tokens * (heads + 1) * card_of(own.device.id).wave)
    _kernel("latent_store", rank, shared, layer)(grid, block, args)


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


def expanded_attention(
    q: Array,
    latents: Array,
    keys: Array,
    layer: PagedLayer,
    rotation: tuple[Array, Array, bool] | None,
    weights: tuple[Weight, Weight],
    scale: float,
    plan: Expansion,
    norm: Array,
    eps: float,
    factors: Array,
) -> Array:
    """As rocforge.ops.latent_attention.expanded_attention."""
    (tokens, heads, dim), shared, empty = q.shape, keys.shape[1], cupy_module().empty
    own, rotated = (empty((len(plan.alone), heads, n), np.float32) for n in (dim - shared, shared))
    whole = empty((tokens, heads, dim), np.float32)
    _store((own, rotated, whole), q, latents, keys, layer, rotation, norm, eps, factors)
    out = paged_attention(whole, _expanded(layer, weights, shared, plan), scale, None, None, None)
    if layer.queries[0] > 1:
        return out
    alone = replace(layer, queries=(1, 1), lengths=plan.lengths, query_starts=plan.starts)
    seen = latent_attention(head_linear(own, weights[0]), rotated, alone, scale)
    y: Array = head_linear(seen, weights[1])
    _put_alone((len(y),), (EXPAND_THREADS,), (out, y, plan.alone, heads * y.shape[2]))
    return out


def _expanded(layer: PagedLayer, weights: tuple[Weight, Weight], shared: int, plan: Expansion) -> PagedLayer:
    """Keys and values of the sequences with several tokens, as a layer that has all heads'."""
    (heads, rank, own), value_dim, empty = weights[0].shape, weights[1].shape[1], cupy_module().empty
    slots, block = len(plan.sources) * BLOCK_SIZE, (EXPAND_THREADS,)
    keys, values = (empty((slots, heads, n), np.float16) for n in (own + shared, value_dim))
    args = {"keys": keys, "values": values, "latents": cache_arrays(layer)["keys"], "sources": plan.sources}
    args |= {"weights": _rows_by_rank(weights, shared, layer), "room": len(plan.sources)}
    args |= {"heads": heads, "own": own, "value_dim": value_dim}
    grid = blocks(slots, EXPAND_TOKENS), blocks(heads * (own + value_dim), EXPAND_COLUMNS)
    _kernel("latent_expand", rank, shared, layer)(grid, block, args)
    return replace(layer, keys=keys, values=values, queries=(2, layer.queries[1]), tables=plan.tables)


def _rows_by_rank(weights: tuple[Weight, Weight], shared: int, layer: PagedLayer) -> Array:
    """float16 (heads, own, rank) of what makes keys, and behind it (heads, value_dim, rank) of what makes values."""
    of_keys, of_values = weights
    (heads, rank, own), empty = of_keys.shape, cupy_module().empty
    both = empty(of_keys.size + of_values.size, np.float16)
    turned, rest = both[: of_keys.size].reshape(heads, own, rank), both[of_keys.size :].reshape(of_values.shape)
    grid = blocks(own, TURN_TILE), blocks(rank, TURN_TILE), heads
    args = _write_fp16(of_keys, empty(of_keys.shape, np.float16)), turned, own
    _kernel("latent_turn", rank, shared, layer)(grid, (EXPAND_THREADS,), args)
    _write_fp16(of_values, rest)
    return both


def _write_fp16(weight: Weight, out: Array) -> Array:
    """`out`, with the values of a weight in float16."""
    if isinstance(weight, QuantizedArray):
        return dequantize_device(weight, "float16", out=out)
    copy_into(out, to_fp16(weight))
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
    source, signature = _EXPANDERS.get(name, ("latent_attention.hip", None))
    return Kernel(source, name, signature, **sizes)


_EXPANDERS = {
    "latent_turn": ("latent_expand.hip", "float16* float16* uint32"),
    "latent_expand": ("latent_expand.hip", None),
}
"""Sources and signatures of kernels that make keys and values."""
