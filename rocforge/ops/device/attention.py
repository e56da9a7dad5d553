"""Attention on a device: launches of attention.hip and attention_prefill.hip, and of rope.hip's store into the cache.

Shapes and meanings are those of rocforge.ops.attention. The cache is float16 or packed.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from rocforge.device import geometry, tuning
from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.device.tuning import Tuning
from rocforge.errors import UnsupportedModelError
from rocforge.formats.planar import CELL
from rocforge.ops.device.operands import PackedOperand, empty_operand, output_arguments
from rocforge.ops.device.plan import OperandForm, form_for
from rocforge.ops.device.strided import ALIGNMENT, a_thread_each, aligned, blocks, float32, heads_of, rows_of
from rocforge.ops.state import BLOCK_SIZE, PackedRows, PagedLayer
from rocforge.ops.types import Array, HeadGate, Weight

MOST_GROUP = 12 << 10
"""Elements of the query heads that share a key head, whose results a block of decode attention has in LDS."""


class Fresh(NamedTuple):
    """Keys and values (tokens, kv_heads, head_dim) not yet in the cache, and how they and the queries get ready.

    k and v are None where the cache has them, cos and sin where nothing is rotated, v_eps where values are no more
    normalized.
    """

    k: Array
    v: Array
    slots: Array
    cos: Array
    sin: Array
    q_norm: Array
    k_norm: Array
    eps: float
    v_eps: float | None
    neox: bool

    @property
    def pairs(self) -> int:
        """How many pairs of a head's elements are rotated."""
        return 0 if self.cos is None else self.cos.shape[1]


def attend(
    q: Array,
    fresh: Fresh,
    layer: PagedLayer,
    scale: float,
    softcap: float | None,
    sinks: Array,
    slopes: Array,
    gate: HeadGate | None,
    consumer: Weight | None,
) -> Array:
    """`rotate_and_store`, then `paged_attention`: one launch where each sequence has one query, and keys to store."""
    if layer.queries[1] > 1 or fresh.k is None:
        return paged_attention(rotate_and_store(q, fresh, layer), layer, scale, softcap, sinks, slopes, gate, consumer)
    return paged_attention(q, layer, scale, softcap, sinks, slopes, gate, consumer, fresh)


def paged_attention(
    q: Array,
    layer: PagedLayer,
    scale: float,
    softcap: float | None,
    sinks: Array,
    slopes: Array,
    gate: HeadGate | None = None,
    consumer: Weight | None = None,
    fresh: Fresh | None = None,
) -> Array:
    """As rocforge.ops.attention.paged_attention; `fresh` is stored before, where all sequences have one query."""
    out = _room_for(consumer, (*q.shape[:2], layer.values.shape[-1]), layer.queries[1] == 1)
    _attend(out, q, layer, (sinks, slopes), (scale, softcap or 0.0), gate, fresh)
    return out if consumer is None or isinstance(out, PackedOperand) else out.reshape(len(q), -1)


def _room_for(consumer: Weight | None, shape: tuple[int, int, int], single: bool) -> Array | PackedOperand:
    """Where to write what is to be multiplied with the weight `consumer`: in the form that this takes, or in float32.

    Packed forms are written where all sequences have one query, a head is whole runs of 32, and a row whole cells.
    """
    tokens, heads, value_dim = shape
    form = OperandForm.FLOAT32 if consumer is None else form_for([consumer], tokens)
    if not form.packed:
        return empty_operand(shape, form)
    if single and value_dim % 32 == 0 and heads * value_dim % CELL == 0:
        return empty_operand((tokens, heads * value_dim), form)
    return empty_operand(shape, OperandForm.FLOAT32)


def attention(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    causal: bool,
    window: tuple[int | None, bool],
    softcap: float | None,
    sinks: Array,
    slopes: Array,
) -> Array:
    """One sequence, whose keys and values are taken for a cache with its blocks in order; `window` and `chunked`."""
    cupy = cupy_module()
    tokens, queries = len(k), len(q)
    table = np.arange(blocks(tokens, BLOCK_SIZE))
    numbers = cupy.asarray(np.array([tokens, 0, queries, *table], np.int32))
    out = cupy.empty((*q.shape[:2], v.shape[2]), np.float32)
    k, v = (aligned(cupy.ascontiguousarray(a, dtype=np.float16)) for a in (k, v))
    layer = PagedLayer(
        k,
        v,
        window[0],
        BLOCK_SIZE,
        slots=None,
        queries=(queries, queries),
        tables=numbers[3:].reshape(1, -1),
        lengths=numbers[:1],
        query_starts=numbers[1:3],
        counters=cupy.zeros(k.shape[1], np.int32),
        causal=causal,
        chunked=window[1],
    )
    _attend(out, q, layer, (sinks, slopes), (scale, softcap or 0.0))
    return out


def _attend(
    out: Array,
    q: Array,
    layer: PagedLayer,
    of_heads: tuple[Array, Array],
    scale_and_cap: tuple[float, float],
    gate: HeadGate | None = None,
    fresh: Fresh | None = None,
) -> None:
    """Queries that are alone in their sequence go to the decode kernel, the others to the prefill kernel, beside which
    it may run.

    `out` is float32, float16, or, where all are alone, packed. With `fresh`, all are alone. `of_heads` are sinks and
    slopes.
    """
    if q.size == 0:
        return
    sinks, slopes = (None if a is None else float32(a) for a in of_heads)
    (kv_heads, head_dim), value_dim = layer.keys.shape[-2:], layer.values.shape[-1]
    macros = types_of(layer) + (() if slopes is None else (("RF_ALIBI", "1"),))
    if gate is not None:
        macros += (("RF_GATE", gate.unit), ("RF_GATE_STEP", str(int(gate.values.shape[2] > 1))))
    group, device = q.shape[1] // kv_heads, q.device.id
    card, tuned = card_of(device), tuning.of(device)
    count, stride = layer.tables.shape
    q, before = _before(q, fresh)
    (scale, softcap), (fewest, most) = scale_and_cap, layer.queries
    common = {"q": q, **cache_arrays(layer), "tables": layer.tables, "lengths": layer.lengths}
    common |= {"query_starts": layer.query_starts, "sinks": sinks, "slopes": slopes, "table_stride": stride}
    common |= {
        "gates": _gates(gate),
        "kv_heads": kv_heads,
        "scale": scale,
        "softcap": softcap,
        "window": layer.window or 0,
        "chunked": int(layer.chunked),
    }
    to = dict(zip(("out", "fp16", "activations", "activation_width"), output_arguments(out), strict=True))
    if most > 1:
        cut = geometry.prefill(tuned, head_dim, value_dim, card.wave)
        tiles = blocks(len(q) * group, cut.rows)
        prefill = _prefill_kernel(head_dim, value_dim, group, macros)
        args = {
            **common,
            **window_arguments(layer),
            "out": to["out"],
            "fp16": to["fp16"],
            "sequences": count,
            "tiles": tiles,
            "causal": int(layer.causal),
        }
        prefill((tiles, kv_heads, cut.parts), (cut.threads,), args, cut.shared)
    if fewest == 1:
        types = geometry.decode_types(dict(macros))
        decoding = geometry.decode(tuned, head_dim, value_dim, group, card.wave, count == 1, types)
        splits = splits_of(card.compute_units, count * kv_heads, stride * layer.block_size, tuned, decoding.blocks)
        partials = cupy_module().empty(count * kv_heads * splits * group * (value_dim + 4), np.float32)
        work = {"partials": partials, "counters": layer.counters, "splits": splits, "unsplit": tuned.unsplit_tokens}
        decode = _decode_kernel(head_dim, value_dim, group, count == 1, macros, most > 1 and tuned.beside)
        decode((kv_heads, count, splits), (decoding.threads,), {**common, **to, **work, **before})


def _gates(gate: HeadGate | None) -> tuple[Array, int, int]:
    """What HeadGates in head_gates.h has."""
    if gate is None:
        return None, 0, 0
    values, stride, head_stride = heads_of(gate.values)
    if gate.values.shape[2] > 1 and (values.data.ptr | 4 * stride | 4 * head_stride) % ALIGNMENT:
        values, stride, head_stride = heads_of(float32(gate.values))
    return values, stride, head_stride


_NOTHING_BEFORE = {
    **dict.fromkeys(("new_keys", "new_values", "slots", "cos", "sin", "q_norm", "k_norm")),
    **dict.fromkeys(("k_stride", "v_stride", "rotated_pairs", "neox", "values_normed"), 0),
    **dict.fromkeys(("eps", "v_eps"), 0.0),
}


def _before(q: Array, fresh: Fresh | None) -> tuple[Array, dict[str, Any]]:
    """The queries, and what attention_decode does before it attends: nothing, or what is left of `fresh`."""
    if fresh is None:
        return float32(q), {**_NOTHING_BEFORE, "q_stride": q.shape[1] * q.shape[2], "q_head_stride": q.shape[2]}
    (q, q_stride, q_head_stride), (k, k_stride), (v, v_stride) = heads_of(q), rows_of(fresh.k), rows_of(fresh.v)
    rows = {"new_keys": k, "new_values": v, "k_stride": k_stride, "v_stride": v_stride}
    rows |= {"q_stride": q_stride, "q_head_stride": q_head_stride}
    return q, {**rows, "rotated_pairs": fresh.pairs, **_angles_and_norms(fresh)}


def _angles_and_norms(fresh: Fresh) -> dict[str, Any]:
    names = ("slots", "cos", "sin", "q_norm", "k_norm", "eps")
    values = {"values_normed": int(fresh.v_eps is not None), "v_eps": fresh.v_eps or 0.0}
    return {**{name: getattr(fresh, name) for name in names}, **values, "neox": int(fresh.neox)}


def splits_of(units: int, heads: int, longest: int, tuned: Tuning, resident: int = 0) -> int:
    """Into how many parts a decode launch cuts each sequence: not by the lengths of the moment, for it is replayed.

    `heads` counts the key heads of all sequences. Where a unit runs `resident` blocks at a time, there are no more.
    """
    if heads > tuned.split_heads:
        return 1
    wanted = resident * units // heads if resident else blocks(tuned.decode_blocks * units, heads)
    return max(1, min(wanted, blocks(longest, BLOCK_SIZE), tuned.most_splits))


def cache_arrays(layer: PagedLayer) -> dict[str, Array]:
    """The memory of the cache, as kernels take it."""
    pair = {"keys": layer.keys, "values": layer.values}
    return {name: rows.data if isinstance(rows, PackedRows) else rows for name, rows in pair.items()}


def window_arguments(layer: PagedLayer) -> dict[str, int]:
    """How many keys each of many queries sees, 0 for all, as kernels take it: without `causal` its own in the middle.

    The decode kernel's one query is the last token, which has none behind it.
    """
    window = layer.window or 0
    return {"window": window if layer.causal or not window else 2 * window - 1, "chunked": int(layer.chunked)}


Macros = tuple[tuple[str, str], ...]
"""Names and values."""


def types_of(layer: PagedLayer) -> Macros:
    """Macros that name the types of a layer's keys and values; none where both are float16."""
    pair = {"RF_KEY_TYPE": layer.keys, "RF_VALUE_TYPE": layer.values}
    return tuple((name, rows.type.name.upper()) for name, rows in pair.items() if isinstance(rows, PackedRows))


def serves(head_dim: int, value_dim: int) -> bool:
    """Whether the kernels have heads of such keys and values."""
    step = _step(head_dim)
    return head_dim % step == value_dim % step == 0 and value_dim <= head_dim <= 512


def _step(head_dim: int) -> int:
    return 16 if head_dim <= 128 else 32 if head_dim <= 256 else 64


def _sizes(head_dim: int, value_dim: int, group: int) -> dict[str, Any]:
    step = _step(head_dim)
    if head_dim % step or head_dim > 512:
        allowed = "allowed are multiples of 16 up to 128, of 32 up to 256 and of 64 up to 512"
        raise ValueError(f"head_dim is {head_dim}; {allowed}")
    if value_dim % step:
        raise ValueError(f"value_dim is {value_dim}; allowed are multiples of {step} with head_dim {head_dim}")
    if group * head_dim > MOST_GROUP:
        raise ValueError(f"{group} heads of {head_dim} share a key; allowed are {MOST_GROUP} elements, which LDS holds")
    return {"RF_HEAD_DIM": head_dim, "RF_GROUP": group, "RF_BLOCK_SIZE": BLOCK_SIZE, **_shorter(head_dim, value_dim)}


def _shorter(head_dim: int, value_dim: int) -> dict[str, int]:
    """The macro of values that are shorter than keys."""
    if value_dim > head_dim:
        problem = f"keys have {head_dim} elements and values {value_dim}"
        raise UnsupportedModelError(f"{problem}; allowed on a GPU are values as long as keys, or shorter")
    return {} if value_dim == head_dim else {"RF_VALUE_DIM": value_dim}


@functools.cache
def _decode_kernel(head_dim: int, value_dim: int, group: int, alone: bool, macros: Macros, beside: bool) -> Kernel:
    defines = {**_sizes(head_dim, value_dim, group), **dict(macros), "RF_ALONE": int(alone)}
    defines |= {"RF_BESIDE": 1} if beside else {}
    return Kernel("attention.hip", "attention_decode", **defines)


@functools.cache
def _prefill_kernel(head_dim: int, value_dim: int, group: int, macros: Macros) -> Kernel:
    return Kernel("attention_prefill.hip", "attention_prefill", **_sizes(head_dim, value_dim, group), **dict(macros))


def rotate_and_store(q: Array, fresh: Fresh, layer: PagedLayer) -> Array:
    out = cupy_module().empty(q.shape, np.float32)
    tokens, heads, head_dim = q.shape
    if tokens == 0:
        return out
    kv_heads, (k, k_stride), (v, v_stride) = 0, (None, 0), (None, 0)
    if fresh.k is not None:
        kv_heads, (k, k_stride), (v, v_stride) = fresh.k.shape[1], rows_of(fresh.k), rows_of(fresh.v)
    q, q_stride, q_head_stride = heads_of(q)
    args = {"q_out": out, **cache_arrays(layer), "q": q, "k": k, "v": v, "pairs": fresh.pairs}
    args |= {"q_stride": q_stride, "q_head_stride": q_head_stride, "k_stride": k_stride, "v_stride": v_stride}
    args |= {"tokens": tokens, "heads": heads, "kv_heads": kv_heads, **_angles_and_norms(fresh)}
    rows = tokens * (heads + 2 * kv_heads)
    grid, block = a_thread_each(rows * card_of(out.device.id).wave)
    _store_kernel(head_dim, layer.values.shape[-1], types_of(layer))(grid, block, args)
    return out


@functools.cache
def _store_kernel(head_dim: int, value_dim: int, types: Macros) -> Kernel:
    sizes: dict[str, Any] = {"RF_HEAD_DIM": head_dim, "RF_BLOCK_SIZE": BLOCK_SIZE, **_shorter(head_dim, value_dim)}
    return Kernel("rope.hip", "rope_store", **sizes, **dict(types))
