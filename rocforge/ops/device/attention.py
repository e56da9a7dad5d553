"""Attention on a device: launches of attention.hip and attention_prefill.hip, and of rope.hip's store into the cache.

Shapes and meanings are those of rocforge.ops.attention. The cache is float16.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from rocforge.device import geometry, tuning
from rocforge.device.arrays import cupy_module
from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.device.tuning import Tuning
from rocforge.formats.planar import CELL
from rocforge.nn.batch import Batch
from rocforge.nn.cache import BLOCK_SIZE, KVCache
from rocforge.ops.device.operands import PackedOperand, empty_operand, output_arguments
from rocforge.ops.device.plan import OperandForm, form_for
from rocforge.ops.device.strided import a_thread_each, aligned, blocks, float32, rows_of


class Sequences(NamedTuple):
    """Where the keys and values of some sequences are: int32 CuPy arrays, as in Batch, and the most queries of any.

    `counters` are zeros that decode launches count in and leave as zeros, one for each sequence's key heads.
    """

    tables: Any
    lengths: Any
    query_starts: Any
    most_queries: int
    some_have_one: bool
    counters: Any


class Fresh(NamedTuple):
    """Keys and values (tokens, kv_heads, head_dim) not yet in the cache, and how they and the queries get ready."""

    k: Any
    v: Any
    slots: Any
    cos: Any
    sin: Any
    q_norm: Any
    k_norm: Any
    eps: float
    neox: bool


def attend(
    q: Any,
    fresh: Fresh,
    batch: Batch,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Any,
    then: Any,
) -> Any:
    """`rotate_and_store`, then `paged_attention`: one launch where each sequence has one query."""
    if batch.queries[1] > 1:
        q, fresh = rotate_and_store(q, fresh, batch, layer), None
    return paged_attention(q, batch, layer, scale, window, softcap, sinks, then, fresh)


def paged_attention(
    q: Any,
    batch: Batch,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Any,
    then: Any,
    fresh: Fresh | None = None,
) -> Any:
    """As rocforge.ops.attention.paged_attention: for `then` in the form that it takes, where the kernels write that."""
    keys, values = batch.cache.layer(layer)
    sequences, options = _sequences_of(batch), (scale, softcap or 0.0, window or 0)
    out = _room_for(then, q, sequences.most_queries == 1)
    _attend(out, q, keys, values, sequences, sinks, options, fresh=fresh)
    return out if then is None or isinstance(out, PackedOperand) else out.reshape(len(q), -1)


def _room_for(then: Any, q: Any, single: bool) -> Any:
    """Where to write what is to be multiplied with the weight `then`: in the form that this takes, or in float32.

    Packed forms are written where all sequences have one query, a head is whole runs of 32, and a row whole cells.
    """
    form = OperandForm.FLOAT32 if then is None else form_for([then], len(q))
    if not form.packed:
        return empty_operand(q.shape, form)
    tokens, heads, head_dim = q.shape
    if single and head_dim % 32 == 0 and heads * head_dim % CELL == 0:
        return empty_operand((tokens, heads * head_dim), form)
    return empty_operand(q.shape, OperandForm.FLOAT32)


def _sequences_of(batch: Batch) -> Sequences:
    fewest, most = batch.queries
    return Sequences(batch.tables, batch.lengths, batch.query_starts, most, fewest == 1, _counters(batch.cache))


def attention(
    q: Any, k: Any, v: Any, scale: float, causal: bool, window: int | None, softcap: float | None, sinks: Any
) -> Any:
    """One sequence, whose keys and values are taken for a cache with its blocks in order."""
    cupy = cupy_module()
    tokens, queries = len(k), len(q)
    table = np.arange(blocks(tokens, BLOCK_SIZE))
    numbers = cupy.asarray(np.array([tokens, 0, queries, *table], np.int32))
    counters = cupy.zeros(k.shape[1], np.int32)
    sequences = Sequences(numbers[3:].reshape(1, -1), numbers[:1], numbers[1:3], queries, queries == 1, counters)
    out = cupy.empty(q.shape, np.float32)
    k, v = (aligned(cupy.ascontiguousarray(a, dtype=np.float16)) for a in (k, v))
    _attend(out, q, k, v, sequences, sinks, (scale, softcap or 0.0, window or 0), causal)
    return out


def _attend(
    out: Any,
    q: Any,
    keys: Any,
    values: Any,
    sequences: Sequences,
    sinks: Any,
    options: tuple[float, float, int],
    causal: bool = True,
    fresh: Fresh | None = None,
) -> None:
    """Queries that are alone in their sequence go to the decode kernel, the others to the prefill kernel.

    `out` is float32, float16, or, where all are alone, packed. With `fresh`, all are alone.
    """
    if q.size == 0:
        return
    kv_heads, head_dim = keys.shape[-2:]
    group, device = q.shape[1] // kv_heads, q.device.id
    card, tuned = card_of(device), tuning.of(device)
    count, stride = len(sequences.lengths), sequences.tables.shape[1]
    q, before = _before(q, fresh)
    sinks = None if sinks is None else float32(sinks)
    scale, softcap, window = options
    common = {"q": q, "keys": keys, "values": values, "tables": sequences.tables, "lengths": sequences.lengths}
    common |= {"query_starts": sequences.query_starts, "sinks": sinks, "table_stride": stride, "kv_heads": kv_heads}
    common |= {"scale": scale, "softcap": softcap, "window": window}
    to = dict(zip(("out", "fp16", "activations", "activation_tokens"), output_arguments(out), strict=True))
    if sequences.some_have_one:
        splits = _splits(card.compute_units, count * kv_heads, stride * BLOCK_SIZE, tuned)
        partials = cupy_module().empty(count * kv_heads * splits * group * (head_dim + 4), np.float32)
        work = {"partials": partials, "counters": sequences.counters, "splits": splits}
        work["unsplit"] = tuned.unsplit_tokens
        decode = _decode_kernel(head_dim, group)
        threads = geometry.decode(tuned, head_dim, group, card.wave).threads
        decode((splits, kv_heads, count), (threads,), {**common, **to, **work, **before})
    if sequences.most_queries > 1:
        tiles = blocks(sequences.most_queries * group, geometry.prefill(tuned, head_dim).rows)
        prefill = _prefill_kernel(head_dim, group)
        args = {**common, "out": to["out"], "fp16": to["fp16"], "causal": int(causal)}
        prefill((tiles, kv_heads, count), (tuned.prefill_waves * card.wave,), args)


_NOTHING_BEFORE = {
    **dict.fromkeys(("new_keys", "new_values", "slots", "cos", "sin", "q_norm", "k_norm")),
    **dict.fromkeys(("k_stride", "v_stride", "rotated_pairs", "neox"), 0),
    "eps": 0.0,
}


def _before(q: Any, fresh: Fresh | None) -> tuple[Any, dict[str, Any]]:
    """The queries, and what attention_decode does before it attends: nothing, or what is left of `fresh`."""
    if fresh is None:
        return float32(q), {**_NOTHING_BEFORE, "q_stride": q.shape[1] * q.shape[2]}
    (q, q_stride), (k, k_stride), (v, v_stride) = (rows_of(a) for a in (q, fresh.k, fresh.v))
    rows = {"new_keys": k, "new_values": v, "q_stride": q_stride, "k_stride": k_stride, "v_stride": v_stride}
    return q, {**rows, "rotated_pairs": fresh.cos.shape[1], **_angles_and_norms(fresh)}


def _angles_and_norms(fresh: Fresh) -> dict[str, Any]:
    names = ("slots", "cos", "sin", "q_norm", "k_norm", "eps")
    return {**{name: getattr(fresh, name) for name in names}, "neox": int(fresh.neox)}


def _splits(units: int, heads: int, longest: int, tuned: Tuning) -> int:
    """Into how many parts a decode launch cuts each sequence: not by the lengths of the moment, for it is replayed.

    `heads` counts the key heads of all sequences.
    """
    if heads > tuned.split_heads:
        return 1
    return max(1, min(blocks(tuned.decode_blocks * units, heads), blocks(longest, BLOCK_SIZE), tuned.most_splits))


def _counters(cache: KVCache) -> Any:
    """Zeros that decode launches count in, and leave as zeros; the cache's, since graphs of its steps hold them."""
    if cache.counters is None:
        cache.counters = cupy_module().zeros(tuning.current().split_heads, np.int32)
    return cache.counters


def _sizes(head_dim: int, group: int) -> dict[str, int]:
    if head_dim % (32 if head_dim > 128 else 16) or head_dim > 256:
        raise ValueError(f"head_dim is {head_dim}; allowed are multiples of 16 up to 128 and of 32 up to 256")
    return {"RF_HEAD_DIM": head_dim, "RF_GROUP": group, "RF_BLOCK_SIZE": BLOCK_SIZE}


@functools.cache
def _decode_kernel(head_dim: int, group: int) -> Kernel:
    return Kernel("attention.hip", "attention_decode", **_sizes(head_dim, group))


@functools.cache
def _prefill_kernel(head_dim: int, group: int) -> Kernel:
    return Kernel("attention_prefill.hip", "attention_prefill", **_sizes(head_dim, group))


def rotate_and_store(q: Any, fresh: Fresh, batch: Batch, layer: int) -> Any:
    out, heads = cupy_module().empty(q.shape, np.float32), q.shape[1]
    tokens, kv_heads, head_dim = fresh.k.shape
    keys, values = batch.cache.layer(layer)
    if tokens == 0:
        return out
    (q, q_stride), (k, k_stride), (v, v_stride) = (rows_of(a) for a in (q, fresh.k, fresh.v))
    args = {"q_out": out, "keys": keys, "values": values, "q": q, "k": k, "v": v, "pairs": fresh.cos.shape[1]}
    args |= {"q_stride": q_stride, "k_stride": k_stride, "v_stride": v_stride}
    args |= {"tokens": tokens, "heads": heads, "kv_heads": kv_heads, **_angles_and_norms(fresh)}
    rows = tokens * (heads + 2 * kv_heads)
    grid, block = a_thread_each(rows * card_of(keys.device.id).wave)
    _store_kernel(head_dim)(grid, block, args)
    return out


@functools.cache
def _store_kernel(head_dim: int) -> Kernel:
    return Kernel("rope.hip", "rope_store", RF_HEAD_DIM=head_dim)
