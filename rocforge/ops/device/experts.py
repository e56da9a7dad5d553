"""Products with each token's experts on a device.

Up to MAX_COLUMNS tokens, each place (a token with one of its experts) is a product of one column, by experts.hip; more
tokens are sorted by expert and multiplied in float16 on the matrix unit, by experts_prefill.hip. Which experts are read
is known to the device alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device.arrays import cupy_module
from rocforge.device.kernels import Kernel
from rocforge.formats.planar import CELL, cells_of
from rocforge.ops.device.dequantize import rows_by_id
from rocforge.ops.device.experts_parts import Part, kind_of, parts
from rocforge.ops.device.gemm import to_fp16
from rocforge.ops.device.matvec import GATES
from rocforge.ops.device.operands import MAX_COLUMNS, Activations, format_of, is_packed, quantize_activations
from rocforge.ops.device.strided import blocks, float32
from rocforge.ops.moe import MAX_USED, Groups, Matrices, group_by_expert

THREADS, BLOCK_ROWS, GROUPS = 256, 32, MAX_USED
"""As in experts.hip: threads of a block, rows of a gated product that it computes, products that down's does."""
TILE_THREADS, TILE_ROWS, TILE_PLACES = 128, 128, 64
"""As in experts_prefill.hip; a gated product's tile has half of the rows, of both matrices."""

MOST_PAIRS = 1 << 15
"""Token-expert pairs of a launch: a grid has 65,535 blocks in its second axis."""

_BIASES = "float32*? float32*?"
_SIGNATURES = {
    "experts_gated": f"void* int32 int32*? uint32 uint32 void* void* {_BIASES} float32*? uint8*? int32 int32 int32",
    "experts_down": "void* int32 int32*? float32*? int32 void* float32*? float32*? float32* int32",
    "experts_gated_tiles": f"float16* float16* int32* int32* uint32 int32 void* void* {_BIASES} int32 uint32 int32",
    "experts_down_tiles": "float32* float16* int32* int32 void* float32*? int32 uint32",
}
_combine = Kernel("moe.hip", "combine_experts", "float32* float32* int32*? float32*? float32*? uint32 uint32")


@functools.cache
def _kernel(name: str, kind: str) -> Kernel:
    source = "experts_prefill.hip" if name.endswith("tiles") else "experts.hip"
    return Kernel(source, name, _SIGNATURES[name], RF_QTYPE=kind)


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
    cupy, ffn = cupy_module(), pair[0].weight.shape[1]
    kind = kind_of(*pair)
    if not is_packed(kind):
        x = float32(x)
    elif not isinstance(x, Activations):
        x = quantize_activations(float32(x))
    packed = is_packed(kind_of(down))
    hidden = Activations.empty(ids.size, ffn).data if packed else cupy.empty((ids.size, ffn), np.float32)
    _few_gated(hidden, x.data if is_packed(kind) else x, ids, pair, activate)
    _few_down(out, hidden, ids, weights, down, residual)


def _few_gated(hidden: Any, x: Any, ids: Any, pair: tuple[Matrices, Matrices], activate: str) -> None:
    """Gate and up, to float32 or int8 activations."""
    (_, ffn, dim), used = pair[0].weight.shape, ids.shape[1]

    def launch(hidden: Any, ids: Any, first: int, part: Part) -> None:
        y, rounded = (None, hidden) if hidden.dtype == np.uint8 else (hidden, None)
        args = (x, _cells(part.kind, dim), ids, first, used, *part.data, *part.biases)
        args = (*args, y, rounded, cells_of(ffn), ffn, GATES[activate])
        rows = ffn if rounded is None else CELL * cells_of(ffn)
        _kernel("experts_gated", part.kind)((blocks(rows, BLOCK_ROWS), len(hidden)), (THREADS,), args)

    if kind_of(*pair) is not None:
        return launch(hidden, ids, 0, *parts(pair))
    for part in parts(pair, ids.reshape(-1)):
        launch(hidden[part.span], None, part.span.start, part)


def _few_down(out: Any, hidden: Any, ids: Any, weights: Any, down: Matrices, residual: Any) -> None:
    """Down, and the sum; where it is unpacked for each place, the sum is a launch of its own."""
    (_, dim, ffn), cupy = down.weight.shape, cupy_module()

    def launch(out: Any, hidden: Any, ids: Any, used: int, weights: Any, part: Part, residual: Any = None) -> None:
        args = (hidden, _cells(part.kind, ffn), ids, weights, used, *part.data, *part.biases, residual, out, dim)
        _kernel("experts_down", part.kind)((blocks(dim, GROUPS // used), len(out)), (THREADS,), args)

    if kind_of(down) is not None:
        return launch(out, hidden, ids, ids.shape[1], weights, *parts([down]), residual)
    y = cupy.empty((ids.size, dim), np.float32)
    for part in parts([down], ids.reshape(-1)):
        launch(y[part.span], hidden[part.span], None, 1, None, part)
    _combine_places(out, y, None, weights, residual)


def expert_linear_device(x: Any, ids: Any, matrices: Matrices) -> Any:
    """What `rocforge.ops.moe.expert_linear` gives, of arrays on a device."""
    cupy, rows = cupy_module(), matrices.weight.shape[1]
    ids, x, kind = cupy.ascontiguousarray(ids, dtype=np.int32), float32(x), kind_of(matrices)
    if len(x) != ids.size:
        x = rows_by_id(x, _token_of_pair(ids.shape[1], 1 << (ids.size - 1).bit_length(), x.device.id)[: ids.size])
    out, pairs = cupy.empty((ids.size, rows), np.float32), ids.reshape(-1)
    for start in range(0, ids.size, MOST_PAIRS):
        span = slice(start, start + MOST_PAIRS)
        hidden = quantize_activations(x[span]).data if is_packed(kind) else x[span]
        _product_of_pairs(out[span], hidden, pairs[span], matrices)
    return out


def _product_of_pairs(out: Any, hidden: Any, ids: Any, matrices: Matrices) -> None:
    (_, rows, columns), whole = matrices.weight.shape, kind_of(matrices) is not None
    for part in parts([matrices], None if whole else ids):
        y, x = (out, hidden) if whole else (out[part.span], hidden[part.span])
        args = (x, _cells(part.kind, columns), ids if whole else None, None, 1, *part.data, *part.biases, None, y, rows)
        _kernel("experts_down", part.kind)((blocks(rows, GROUPS), len(y)), (THREADS,), args)


@functools.cache
def _token_of_pair(used: int, pairs: int, device: int) -> Any:
    """int32 (pairs,): the token of each token-expert pair. It is kept, since graphs of steps read it."""
    cupy = cupy_module()
    with cupy.cuda.Device(device):
        tokens = cupy.asarray(np.arange(pairs, dtype=np.int32) // used)
        cupy.cuda.get_current_stream().synchronize()  # it may be used on another stream
    return tokens


def combine_experts_device(y: Any, weights: Any) -> Any:
    """What `rocforge.ops.moe.combine_experts` gives, of arrays on a device."""
    out = cupy_module().empty((len(weights), y.shape[1]), np.float32)
    if out.size:
        _combine_places(out, y, None, float32(weights), None)
    return out


def _combine_places(out: Any, y: Any, rank: Any, weights: Any, residual: Any) -> None:
    tokens, dim = out.shape
    grid = (tokens, blocks(dim, THREADS))
    _combine(grid, (THREADS,), (out, y, rank, weights, residual, len(y) // tokens, dim))


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
    cupy, (count, ffn, dim) = cupy_module(), pair[0].weight.shape
    x, groups = to_fp16(float32(x)), group_by_expert(ids, count)
    hidden, y = cupy.empty((ids.size, ffn), np.float16), cupy.empty((ids.size, dim), np.float32)
    gated, last = (hidden, x, groups.order), (y, hidden)
    _many_tiles("experts_gated_tiles", gated, groups, ids.shape[1:], pair, (ffn, dim, GATES[activate]), TILE_ROWS // 2)
    _many_tiles("experts_down_tiles", last, groups, (), [down], (dim, ffn), TILE_ROWS)
    _combine_places(out, y, groups.rank, weights, residual)


def _many_tiles(
    name: str,
    arrays: Sequence[Any],
    groups: Groups,
    used: Sequence[int],
    matrices: Sequence[Matrices],
    sizes: Sequence[int],
    height: int,
) -> None:
    """A launch for each part of the experts, which reads from where its first one begins among the places."""
    for part in parts(matrices):
        offsets = groups.offsets[part.span.start : part.span.stop + 1]
        args = (*arrays, offsets, *used, part.count, *part.data, *part.biases, *sizes)
        tiles = groups.order.size // TILE_PLACES + part.count
        _kernel(name, part.kind)((blocks(sizes[0], height) * tiles,), (TILE_THREADS,), args)
