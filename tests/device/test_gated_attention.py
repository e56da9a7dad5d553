"""Attention on a device whose results go through gates: its kernels, and the layers that have them."""

from __future__ import annotations

from dataclasses import replace

import cupy as cp
import numpy as np
import pytest
from gates import sigmoid
from gguf import GGMLQuantizationType
from golden import families
from simulated import needs_mma
from test_attention import filled
from test_decode import launched

import rocforge as rf
from rocforge.device import tuning
from rocforge.load import load_model
from rocforge.nn import Transformer
from rocforge.nn.batch import Batch, Chunk
from rocforge.ops.activation import gate_heads
from rocforge.ops.attention import attend, paged_attention
from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.linear import linear
from rocforge.ops.rope import rope_frequencies
from rocforge.ops.types import HeadGate
from rocforge.selftest.weights import relative_error

pytestmark = pytest.mark.slow

UNITS = {"sigmoid": sigmoid, "softplus": lambda x: np.logaddexp(x, 0)}
CHUNKS = [Chunk(0, 37, [3, 9]), Chunk(31, 3, [5, 0]), Chunk(200, 1, [7, 2, 11, 4, 6, 8, 10]), Chunk(20, 1, [1])]
SHAPES = [(6, 2, 64), (16, 2, 256), (20, 1, 512)]


def gate_of(rng, tokens: int, heads: int, elements: int, unit: str) -> HeadGate:
    """Every other run of a row that has more behind them; some numbers are large."""
    wide = 8 * rng.standard_normal((tokens, 2 * heads * elements + 4), np.float32)
    parts = cp.asarray(wide)[:, : 2 * heads * elements].reshape(tokens, heads, 2 * elements)
    return HeadGate(parts[..., elements:], unit)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("heads, kv_heads, head_dim", SHAPES)
def test_gates(heads: int, kv_heads: int, head_dim: int, whole: bool, unit: str):
    """A gate for each element, or for each head, of both kernels, with one split, and many whose sum blocks share."""
    rng = np.random.default_rng(head_dim)
    layer = Batch.of(filled(rng, kv_heads, head_dim, 12), CHUNKS).state_of(0)
    q = cp.asarray(rng.standard_normal((42, heads, head_dim), np.float32))
    gate = gate_of(rng, 42, heads, 1 if whole else head_dim, unit)
    expected = paged_attention(q, layer).get() * UNITS[unit](gate.values.get().astype(np.float64))
    for splits in ({}, {"unsplit_tokens": 32}, {"unsplit_tokens": 32, "combine_nbytes": 0, "decode_blocks": 64}):
        with tuning.trying(**splits):
            y = paged_attention(q, layer, gate=gate)
            assert max(relative_error(y[rows], expected[rows]) for rows in (slice(40), 40, 41)) < 1e-5
    assert relative_error(gate_heads(paged_attention(q, layer), gate), expected) < 1e-5


@needs_mma
def test_gates_on_the_matrix_unit():
    """The same."""
    with tuning.trying(decode_matrix_group=0):
        test_gates(16, 2, 256, False, "sigmoid")


def test_gates_do_not_fit(rng):
    layer = Batch.of(filled(rng, 2, 64, 1), [Chunk(3, 1, [0])]).state_of(0)
    q, gate = cp.zeros((1, 6, 64), np.float32), HeadGate(cp.zeros((1, 6, 32), np.float32), "sigmoid")
    with pytest.raises(ValueError, match=r"gate has the shape \(1, 6, 32\); allowed are \(1, 6, 64\) and \(1, 6, 1\)"):
        paged_attention(q, layer, gate=gate)


def test_gated_for_a_product(rng):
    """Rounded to int8, to fragments and to float16 as what is gated by a launch of its own."""
    layer = Batch.of(filled(rng, 2, 64, 12), CHUNKS[2:]).state_of(0)
    weight = rng.standard_normal((4, 384)).astype(np.float32)
    q, gate = cp.asarray(rng.standard_normal((2, 6, 64), np.float32)), gate_of(rng, 2, 6, 64, "sigmoid")
    gated = paged_attention(q, layer, gate=gate).reshape(2, 384)
    packed = rf.quantize(weight, "Q8_0").to_device("gpu")
    for int8_tokens in (2, 0):
        with tuning.trying(int8_tokens=int8_tokens):
            y = paged_attention(q, layer, gate=gate, consumer=packed)
            assert isinstance(y, PackedOperand) and (linear(y, packed) == linear(gated, packed)).all()
    layer = Batch.of(filled(rng, 2, 64, 12), CHUNKS).state_of(0)
    q, gate = cp.asarray(rng.standard_normal((42, 6, 64), np.float32)), gate_of(rng, 42, 6, 64, "softplus")
    with tuning.trying(float_tile_tokens=0):
        y = paged_attention(q, layer, gate=gate, consumer=cp.asarray(weight.astype(np.float16)))
    gated = paged_attention(q, layer, gate=gate)
    assert y.dtype == np.float16 and (y == gated.astype(np.float16).reshape(42, 384)).all()


@pytest.mark.parametrize("chunks", [CHUNKS[2:], CHUNKS])
def test_queries_lie_beside_gates(rng, chunks: list[Chunk]):
    """Both kernels that rotate queries read them where they are, and give the bits that a copy of them gives."""
    tokens, seed = sum(chunk.count for chunk in chunks), int(rng.integers(1 << 30))
    wide = cp.asarray(rng.standard_normal((tokens, 6, 128), np.float32))
    k, v = cp.asarray(rng.standard_normal((2, tokens, 2, 64), np.float32))
    q_norm, results = cp.asarray(rng.standard_normal(64, np.float32)), []
    for copied in (False, True):
        batch = Batch.of(filled(np.random.default_rng(seed), 2, 64, 12), chunks)
        q, gate = wide[..., :64], HeadGate(wide[..., 64:], "sigmoid")
        if copied:
            q, gate = q.copy(), HeadGate(gate.values.copy(), "sigmoid")
        rotation = batch.rotation(rope_frequencies(32, neox=True))
        results.append(attend(q, k, v, batch.state_of(0), rotation, q_norm=q_norm, k_norm=q_norm, gate=gate))
    assert (results[0] == results[1]).all()


def wide_heads(path, name: str) -> Transformer:
    """A family's model whose heads are whole cells, with packed weights."""
    keys = {"attention.key_length": 64, "attention.value_length": 64}
    family = replace(families.FAMILIES[name], metadata={**families.FAMILIES[name].metadata, **keys})
    families.build(path, name, GGMLQuantizationType.Q8_0, of={name: family})
    return load_model(rf.open_gguf(path), "gpu")


@pytest.mark.any_wave
@pytest.mark.parametrize("name", ["qwen35", "spark2_5"])
def test_a_gate_is_no_launch(tmp_path, name):
    """Five launches a layer, as without gates, in attn_q or beside it."""
    layer = ["matvec", "attention_decode", "matvec_then_norm", "matvec_gated", "matvec_then_norm"]
    names = launched(wide_heads(tmp_path / "model.gguf", name))
    assert names[-len(layer) - 3 : -3] == layer


@pytest.mark.any_wave
@pytest.mark.parametrize("path", ["attn_q_norm", "attn_heads"])
def test_observed_parts_of_a_gated_layer(tmp_path, path):
    """Queries and gates that launches of their own take: the logits are the same."""
    model = wide_heads(tmp_path / "model.gguf", "qwen35")
    tokens, seen = families.prompt("qwen35")[:9], []
    expected = rf.asnumpy(model(tokens))
    with getattr(model.blk[3], path).observe(seen.append):
        assert relative_error(rf.asnumpy(model(tokens)), expected) < 1e-3
    assert [y.shape for y in seen] == [(9, 6, 64)]
