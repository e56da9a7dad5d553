"""Products with each token's experts on a device.

Up to MAX_COLUMNS tokens, each place (a token with one of its experts) is a product of one column, by experts.hip; more
tokens are sorted by expert and multiplied in float16 on the matrix unit, by experts_prefill.hip. Which experts are read
is known to the device alone.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from rocforge.arrays import cupy_module
from rocforge.kernels import Kernel
from rocforge.ops.dequantize import cells_of, dequantize_device
from rocforge.ops.gemm import to_halves
from rocforge.ops.matvec import GATES
from rocforge.ops.moe import MAX_USED, Matrices, group_by_expert
from rocforge.ops.operands import MAX_COLUMNS, Activations, format_of, is_packed, quantize_activations
from rocforge.ops.strided import blocks, float32
from rocforge.quant import QuantizedArray

THREADS, BLOCK_ROWS, GROUPS = 256, 32, MAX_USED
"""As in experts.hip: threads of a block, rows of a gated product that it computes, products that down's does."""
TILE_THREADS, TILE_ROWS, TILE_PLACES = 128, 128, 64
"""As in experts_prefill.hip; a gated product's tile has half of the rows, of both matrices."""

_BIASES = "float32*? float32*?"
_SIGNATURES = {
    "experts_gated": f"void* int32 int32* uint32 void* void* {_BIASES} float32*? uint8*? int32 int32 int32",
    "experts_down": "void* int32 int32* float32* int32 void* float32*? float32*? float32* int32",
    "experts_gated_tiles": f"float16* float16* int32* int32* uint32 int32 void* void* {_BIASES} int32 uint32 int32",
    "experts_down_tiles": "float32* float16* int32* int32 void* float32*? int32 uint32",
}
_combine = Kernel("moe.hip", "combine_experts", "float32* float32* int32* float32* float32*? uint32 uint32")


@functools.cache
def _kernel(name: str, kind: str) -> Kernel:
    source = "experts_prefill.hip" if name.endswith("tiles") else "experts.hip"
    return Kernel(source, name, _SIGNATURES[name], QTYPE=kind)


def takes_int8(tokens: int, gate: Matrices, up: Matrices) -> bool:
    """Whether `experts` takes Activations of that many tokens."""
    kind = format_of(gate.weight[0])
    return 0 < tokens <= MAX_COLUMNS and is_packed(kind) and kind == format_of(up.weight[0])


def experts_device(
    x: Any, ids: Any, weights: Any, gate: Matrices, up: Matrices, down: Matrices, activate: str, residual: Any
) -> Any:
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
        run = _few if tokens <= MAX_COLUMNS else _many
        run(out, x, ids, weights, (gate, up), down, activate, None if residual is None else float32(residual))
    return out


class _Operands(NamedTuple):
    """Matrices as kernels take them: arrays, biases, their format's name, and which one each place takes."""

    data: list[Any]
    biases: list[Any]
    kind: str
    ids: Any


def _operands(matrices: tuple[Matrices, ...], ids: Any, chosen_alone: bool) -> _Operands:
    """Formats that have no kernel, and pairs of two formats, are unpacked to float16: all experts, or those chosen."""
    weights, biases = [m.weight for m in matrices], [m.bias for m in matrices]
    kinds = {format_of(weight[0]) for weight in weights}
    if len(kinds) > 1 or None in kinds:
        if chosen_alone:
            chosen = ids.reshape(-1)
            weights, biases = [w[chosen] for w in weights], [None if b is None else b[chosen] for b in biases]
            ids = cupy_module().arange(ids.size, dtype=np.int32).reshape(ids.shape)
        weights, kinds = [_as_halves(weight) for weight in weights], {"Floats<f16>"}
    data = [weight.data if isinstance(weight, QuantizedArray) else weight for weight in weights]
    return _Operands([cupy_module().ascontiguousarray(a) for a in data], biases, kinds.pop(), ids)


def _as_halves(weight: Any) -> Any:
    return dequantize_device(weight, "float16") if isinstance(weight, QuantizedArray) else weight.astype(np.float16)


def _cells(kind: str, columns: int) -> int:
    """What kernels of few columns count a row in: cells of 128 elements, or 16 bytes of floats."""
    return cells_of(columns) if is_packed(kind) else columns // (4 if kind == "Floats<float>" else 8)


def _few(
    out: Any,
    x: Any,
    ids: Any,
    weights: Any,
    pair: tuple[Matrices, Matrices],
    down: Matrices,
    activate: str,
    residual: Any,
) -> None:
    """Two launches: gate and up of each place; down of each place, and the sum over a token's places."""
    cupy, (tokens, used), (_, ffn, dim) = cupy_module(), ids.shape, pair[0].weight.shape
    gated, last = _operands(pair, ids, chosen_alone=True), _operands((down,), ids, chosen_alone=True)
    if is_packed(gated.kind) and not isinstance(x, Activations):
        x = quantize_activations(float32(x))
    x = x.data if is_packed(gated.kind) else float32(x)
    if is_packed(last.kind):
        y, rounded = None, Activations.empty(ids.size, ffn).data
    else:
        y, rounded = cupy.empty((ids.size, ffn), np.float32), None
    rows = ffn if rounded is None else 128 * cells_of(ffn)
    args = (x, _cells(gated.kind, dim), gated.ids, used, *gated.data, *gated.biases)
    args = (*args, y, rounded, cells_of(ffn), ffn, GATES[activate])
    _kernel("experts_gated", gated.kind)((blocks(rows, BLOCK_ROWS), ids.size), (THREADS,), args)
    hidden = y if rounded is None else rounded
    args = (hidden, _cells(last.kind, ffn), last.ids, weights, used, *last.data, *last.biases, residual, out, dim)
    _kernel("experts_down", last.kind)((blocks(dim, GROUPS // used), tokens), (THREADS,), args)


def _many(
    out: Any,
    x: Any,
    ids: Any,
    weights: Any,
    pair: tuple[Matrices, Matrices],
    down: Matrices,
    activate: str,
    residual: Any,
) -> None:
    """Five launches: the places sorted, x in float16, gate and up, down, and the sum over a token's places."""
    cupy, (tokens, used), (count, ffn, dim) = cupy_module(), ids.shape, pair[0].weight.shape
    gated, last = _operands(pair, ids, chosen_alone=False), _operands((down,), ids, chosen_alone=False)
    groups = group_by_expert(ids, count)
    tiles = ids.size // TILE_PLACES + count
    hidden, y = cupy.empty((ids.size, ffn), np.float16), cupy.empty((ids.size, dim), np.float32)
    args = (hidden, to_halves(float32(x)), groups.order, groups.offsets, used, count, *gated.data, *gated.biases)
    args = (*args, ffn, dim, GATES[activate])
    _kernel("experts_gated_tiles", gated.kind)((blocks(ffn, TILE_ROWS // 2), tiles), (TILE_THREADS,), args)
    args = (y, hidden, groups.offsets, count, *last.data, *last.biases, dim, ffn)
    _kernel("experts_down_tiles", last.kind)((blocks(dim, TILE_ROWS), tiles), (TILE_THREADS,), args)
    grid = (tokens, blocks(dim, THREADS))
    _combine(grid, (THREADS,), (out, y, groups.rank, weights, residual, used, dim))
