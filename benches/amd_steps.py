"""What a decode step of one sequence launches, and what each launch reads: shapes alone, no device.

tests/device/test_decode.py and test_moe.py pin the same launches by running models.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from amd_cards import Card
from amd_code import Defines
from gguf import GGMLQuantizationType

from rocforge.device import tuning
from rocforge.device.geometry import GEMV_RUN, decode, gated_rows, gemv_log_lanes, then_norm_log_lanes
from rocforge.formats.planar import cells_of, planar_row_nbytes
from rocforge.ops.device.plan import fills_units
from rocforge.ops.device.strided import blocks
from rocforge.selftest.synthetic import SHAPES, Shape, type_of

CONTEXT = 64
"""Tokens that attention sees."""


class Experts(NamedTuple):
    """A mixture: how many experts a layer has, and how many a token uses."""

    count: int
    used: int


class Model(NamedTuple):
    shape: Shape
    experts: Experts | None = None


QWEN3_MOE = Shape("qwen3moe", 48, 2048, 768, 32, 4, 128, 151936, 1000000.0, False)
MODELS = {
    "Llama 3.2 1B": Model(SHAPES["llama-3.2-1b"]),
    "Llama 3.1 8B": Model(SHAPES["llama-3.1-8b"]),
    "Qwen3 30B-A3B": Model(QWEN3_MOE, Experts(128, 8)),
}
RECIPES = ("Q4_K_M", "Q8_0")


class Launch(NamedTuple):
    """A kernel launch.

    Attributes:
        kernel, source, defines: which code it is.
        nbytes: that it reads of weights or cache.
        weights: that it multiplies, in loops of products.
        iterations: of that loop, for each lane.
        blocks, threads: the grid, and threads of a block.
        waits: loads that wait for the one before, in a kernel without such a loop.
    """

    kernel: str
    source: str
    defines: Defines = ()
    nbytes: int = 0
    weights: int = 0
    iterations: int = 0
    blocks: int = 1
    threads: int = 256
    waits: int = 2


class Matrix(NamedTuple):
    rows: int
    columns: int
    qtype: str

    @property
    def nbytes(self) -> int:
        return self.rows * planar_row_nbytes(self.columns, GGMLQuantizationType[self.qtype])


def step(model: Model, recipe: str, card: Card) -> list[Launch]:
    """The launches of a step on a card, in order."""
    shape, tuned = model.shape, tuning.shipped(card.target)
    qtype = functools.partial(_qtype, recipe, shape)
    launches = [
        Launch("begin_step", "step.hip"),
        Launch("rope_angles", "angles.hip", waits=1),
        Launch("dequantize_float32", "dequantize.hip", (("RF_QTYPE", qtype("token_embd", 0)),)),
        _norm(shape),
    ]
    for layer in range(shape.layers):
        launches += _attention(shape, functools.partial(qtype, layer=layer), card.family.wave, tuned)
        if model.experts:
            launches += _mixture(model, functools.partial(qtype, layer=layer), tuned)
        else:
            launches += _feed_forward(shape, functools.partial(qtype, layer=layer), card, tuned)
    output = Matrix(shape.vocabulary, shape.dim, qtype("token_embd" if shape.tied else "output", 0))
    sampled = {"nbytes": 4 * shape.vocabulary, "waits": 2}
    return [
        *launches,
        _matvec(tuned, output),
        Launch("sample_slices", "sampling.hip", blocks=blocks(shape.vocabulary, tuned.sample_slice), **sampled),
        Launch("sample_rows", "sampling.hip", threads=tuned.sample_row_threads),
    ]


def _qtype(recipe: str, shape: Shape, tensor: str, layer: int) -> str:
    return type_of(recipe, f"blk.{layer}.{tensor}.weight", layer, shape).name


def _matvec(tuned: tuning.Tuning, *matrices: Matrix) -> Launch:
    """The launch of `products` for one to three matrices of one row length."""
    rows, cells = sum(m.rows for m in matrices), cells_of(matrices[0].columns)
    lanes = 1 << gemv_log_lanes(tuned, 1, rows, cells)
    defines = {"RF_QTYPE": matrices[0].qtype, "RF_TOKENS": "1"}
    if matrices[-1].qtype != matrices[0].qtype:
        defines["RF_QTYPE_LAST"] = matrices[-1].qtype
    return Launch(
        "matvec",
        "matvec.hip",
        tuple(sorted(defines.items())),
        sum(m.nbytes for m in matrices),
        sum(m.rows * m.columns for m in matrices),
        blocks(cells, lanes),
        sum(blocks(m.rows * lanes, tuned.gemv_threads) for m in matrices),
        tuned.gemv_threads,
    )


def _then_norm(matrix: Matrix, shape: Shape, card: Card, tuned: tuning.Tuning) -> list[Launch]:
    """A product with the norm behind it, in one launch or, where that would leave units idle, in two."""
    plain, cells = _matvec(tuned, matrix), cells_of(matrix.columns)
    if not fills_units(matrix.rows, card.counted, tuned):
        return [plain, _norm(shape)]
    lanes = 1 << then_norm_log_lanes(tuned, matrix.rows, cells, card.counted)
    sizes = {"iterations": blocks(cells, lanes), "blocks": blocks(matrix.rows, GEMV_RUN)}
    sizes["threads"] = GEMV_RUN * lanes
    return [plain._replace(kernel="matvec_then_norm", **sizes)]


def _norm(shape: Shape) -> Launch:
    return Launch("rms_norm", "norm.hip", nbytes=8 * shape.dim, threads=1024)


def _attention(shape: Shape, qtype: functools.partial, wave: int, tuned: tuning.Tuning) -> Iterator[Launch]:
    heads, group = shape.heads * shape.head_dim, shape.heads // shape.kv_heads
    kv = shape.kv_heads * shape.head_dim
    projections = (Matrix(n, shape.dim, qtype(f"attn_{name}")) for name, n in (("q", heads), ("k", kv), ("v", kv)))
    yield _matvec(tuned, *projections)
    sizes = {"RF_ALONE": "1", "RF_BLOCK_SIZE": "32", "RF_GROUP": str(group), "RF_HEAD_DIM": str(shape.head_dim)}
    threads = decode(tuned, shape.head_dim, shape.head_dim, group, wave, alone=True).threads
    read = {"nbytes": 4 * kv * CONTEXT, "waits": 3}  # lengths and tables, then keys, then values
    yield Launch(
        "attention_decode", "attention.hip", tuple(sizes.items()), blocks=shape.kv_heads, threads=threads, **read
    )


def _feed_forward(shape: Shape, qtype: functools.partial, card: Card, tuned: tuning.Tuning) -> list[Launch]:
    output = Matrix(shape.dim, shape.heads * shape.head_dim, qtype("attn_output"))
    gate, down = Matrix(shape.ffn, shape.dim, qtype("ffn_gate")), Matrix(shape.dim, shape.ffn, qtype("ffn_down"))
    return [*_then_norm(output, shape, card, tuned), _gated(tuned, gate), *_then_norm(down, shape, card, tuned)]


def _gated(
    tuned: tuning.Tuning,
    gate: Matrix,
    experts: int = 1,
    source: str = "matvec.hip",
    kernel: str = "matvec_gated",
) -> Launch:
    """gate and up, of one expert or of several."""
    defines = {"RF_QTYPE": gate.qtype}
    if source == "matvec.hip":
        defines["RF_TOKENS"] = "1"
    return Launch(
        kernel,
        source,
        tuple(sorted(defines.items())),
        2 * experts * gate.nbytes,
        2 * experts * gate.rows * gate.columns,
        blocks(cells_of(gate.columns), tuned.gated_lanes),
        experts * blocks(gate.rows, gated_rows(tuned, 1)),
        tuned.gated_threads,
    )


def _mixture(model: Model, qtype: functools.partial, tuned: tuning.Tuning) -> list[Launch]:
    """The output, its norm, the router, the routing and the experts; and the next layer's norm."""
    shape, (count, used) = model.shape, model.experts
    gate, down = Matrix(shape.ffn, shape.dim, qtype("ffn_gate")), Matrix(shape.dim, shape.ffn, qtype("ffn_down"))
    # its loop has no products of integers; a cell of floats is 16 bytes, eight of which are loaded at a time
    router = (("RF_QTYPE", "Floats<float>"), ("RF_TOKENS", "1"))
    threads, products = tuned.gemv_threads, tuned.gated_threads // tuned.gated_lanes
    sizes = {"nbytes": 4 * shape.dim * count, "threads": threads, "blocks": blocks(count * 32, threads)}
    last = _gated(tuned, down, used, "experts.hip", "experts_down")
    return [
        _matvec(tuned, Matrix(shape.dim, shape.heads * shape.head_dim, qtype("attn_output"))),
        _norm(shape),
        Launch("matvec", "matvec.hip", router, waits=blocks(shape.dim // 4, tuned.gemv_float_cells * 32), **sizes),
        Launch("route", "moe.hip"),
        _gated(tuned, gate, used, "experts.hip", "experts_gated"),
        last._replace(nbytes=last.nbytes // 2, weights=last.weights // 2, blocks=blocks(shape.dim, products // used)),
        _norm(shape),
    ]
