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

from rocforge.device import tuning
from rocforge.device.arrays import cupy_module
from rocforge.device.geometry import gated_rows
from rocforge.device.kernels import Kernel
from rocforge.ops.device.dequantize import CELL, cells_of
from rocforge.ops.device.experts_parts import Part, kind_of, parts
from rocforge.ops.device.gemm import to_fp16
from rocforge.ops.device.matvec import GATES
from rocforge.ops.device.operands import MAX_COLUMNS, Activations, format_of, is_packed, quantize_activations
from rocforge.ops.device.strided import blocks, float32
from rocforge.ops.moe import Groups, Matrices, group_by_expert

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
    (_, ffn, dim), used, tuned = pair[0].weight.shape, ids.shape[1], tuning.current()

    def launch(hidden: Any, ids: Any, first: int, part: Part) -> None:
        y, rounded = (None, hidden) if hidden.dtype == np.uint8 else (hidden, None)
        args = (x, _cells(part.kind, dim), ids, first, used, *part.data, *part.biases)
        args = (*args, y, rounded, cells_of(ffn), ffn, GATES[activate])
        rows = ffn if rounded is None else CELL * cells_of(ffn)
        grid = (blocks(rows, gated_rows(tuned, 1)), len(hidden))
        _kernel("experts_gated", part.kind)(grid, (tuned.gated_threads,), args)

    if kind_of(*pair) is not None:
        return launch(hidden, ids, 0, *parts(pair))
    for part in parts(pair, ids.reshape(-1)):
        launch(hidden[part.span], None, part.span.start, part)


def _few_down(out: Any, hidden: Any, ids: Any, weights: Any, down: Matrices, residual: Any) -> None:
    """Down, and the sum; where it is unpacked for each place, the sum is a launch of its own."""
    (_, dim, ffn), cupy, tuned = down.weight.shape, cupy_module(), tuning.current()
    products = tuned.gated_threads // tuned.gated_lanes  # of a block

    def launch(out: Any, hidden: Any, ids: Any, used: int, weights: Any, part: Part, residual: Any = None) -> None:
        args = (hidden, _cells(part.kind, ffn), ids, weights, used, *part.data, *part.biases, residual, out, dim)
        _kernel("experts_down", part.kind)((blocks(dim, products // used), len(out)), (tuned.gated_threads,), args)

    if kind_of(down) is not None:
        return launch(out, hidden, ids, ids.shape[1], weights, *parts([down]), residual)
    y = cupy.empty((ids.size, dim), np.float32)
    for part in parts([down], ids.reshape(-1)):
        launch(y[part.span], hidden[part.span], None, 1, None, part)
    _combine_places(out, y, None, weights, residual)


def _combine_places(out: Any, y: Any, rank: Any, weights: Any, residual: Any) -> None:
    tokens, dim = out.shape
    threads = tuning.current().elementwise_threads
    _combine((tokens, blocks(dim, threads)), (threads,), (out, y, rank, weights, residual, len(y) // tokens, dim))


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
    gated, last, rows = (hidden, x, groups.order), (y, hidden), tuning.current().experts_tile_rows
    # a gated tile has half of the rows, of both matrices
    _many_tiles("experts_gated_tiles", gated, groups, ids.shape[1:], pair, (ffn, dim, GATES[activate]), rows // 2)
    _many_tiles("experts_down_tiles", last, groups, (), [down], (dim, ffn), rows)
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
    tuned = tuning.current()
    for part in parts(matrices):
        offsets = groups.offsets[part.span.start : part.span.stop + 1]
        args = (*arrays, offsets, *used, part.count, *part.data, *part.biases, *sizes)
        tiles = groups.order.size // tuned.experts_tile_pairs + part.count
        _kernel(name, part.kind)((blocks(sizes[0], height) * tiles,), (tuned.experts_tile_rows,), args)
