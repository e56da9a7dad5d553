"""What a block can be said to be: each policy against its formula, fused or called."""

from types import MappingProxyType

import numpy as np
import pytest
from meddling import Wrapped

from rocforge.nn import MLP, Attention, Block, LayerNorm, RMSNorm, Transformer
from rocforge.nn.reader import Reader

DIM, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCABULARY, EPS = 32, 4, 2, 8, 48, 20, 1e-5
SIZES = {"dim": DIM, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "eps": EPS}
TOKENS = np.arange(7)


METADATA = {
    "general.architecture": "odd",
    "odd.block_count": 2,
    "odd.embedding_length": DIM,
    "odd.context_length": 64,
    "odd.attention.layer_norm_rms_epsilon": EPS,
    "odd.attention.layer_norm_epsilon": EPS,
}


class File(dict):
    """Tensors of two blocks, with metadata."""

    metadata = MappingProxyType(METADATA)


FILE = File({"token_embd.weight": np.zeros((VOCABULARY, DIM)), "blk.0.x": np.zeros(1), "blk.1.x": np.zeros(1)})


def model_of(block_of, rng):
    """A model whose blocks are made by a function, with random weights."""

    class Odd(Transformer):
        def block(self, layer, read):
            return block_of(read)

    model = Odd(Reader(FILE))
    shapes = {path: p.shape for path, p in model.named_parameters() if path.endswith("weight") or "norm" in path}
    arrays = {path: rng.standard_normal(shape).astype(np.float32) / 4 for path, shape in shapes.items()}
    model.load_weights({path: array + 1 if "norm.weight" in path else array for path, array in arrays.items()})
    return model


def rms(x, norm):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + norm.eps) * norm.weight


def layer(x, norm):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + norm.eps) * norm.weight + norm.bias


def attend(block, x, gate=False, whole=False, value_dim=HEAD_DIM):
    """Attention without positions."""
    q, k, v = (x @ getattr(block, name).weight.T for name in ("attn_q", "attn_k", "attn_v"))
    if whole:
        q, k = rms(q, block.attn_q_norm), rms(k, block.attn_k_norm)
    q, k, v = (a.reshape(len(x), -1, dim) for a, dim in ((q, HEAD_DIM), (k, HEAD_DIM), (v, value_dim)))
    k, v = (np.repeat(a, HEADS // KV_HEADS, axis=1) for a in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(HEAD_DIM)
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v).reshape(len(x), -1)
    if gate:
        y = y / (1 + np.exp(-(x @ block.attn_gate.weight.T)))
    return y @ block.attn_output.weight.T


def feed(block, x):
    gate, up = x @ block.ffn_gate.weight.T, x @ block.ffn_up.weight.T
    return gate / (1 + np.exp(-gate)) * up @ block.ffn_down.weight.T


def parallel(block, x):
    n = layer(x, block.attn_norm)
    return x + attend(block, n) + feed(block, n)


def gated(block, x):
    x = x + attend(block, rms(x, block.attn_norm), gate=True)
    return x + feed(block, rms(x, block.ffn_norm))


def post_norm(block, x):
    x = x + rms(attend(block, x, whole=True), block.post_attention_norm)
    return x + rms(feed(block, x), block.post_ffw_norm)


def ungated(block, x):
    x = x + attend(block, rms(x, block.attn_norm))
    up = rms(x, block.ffn_norm) @ block.ffn_up.weight.T
    return x + up / (1 + np.exp(-up)) @ block.ffn_down.weight.T


def short_values(block, x):
    x = x + attend(block, rms(x, block.attn_norm), value_dim=6)
    return x + feed(block, rms(x, block.ffn_norm))


POST = {"pre": (None, None), "post": ("post_attention_norm", "post_ffw_norm")}
POLICIES = {
    parallel: lambda read: Block(
        Attention(**SIZES, rope=None), MLP(DIM, FFN), read.layer_norm, pre=("attn_norm", None), parallel=True
    ),
    gated: lambda read: Block(Attention(**SIZES, rope=None, gate=True), MLP(DIM, FFN), read.rms_norm),
    post_norm: lambda read: Block(Attention(**SIZES, rope=None, norms="whole"), MLP(DIM, FFN), read.rms_norm, **POST),
    short_values: lambda read: Block(Attention(**SIZES, rope=None, value_dim=6), MLP(DIM, FFN), read.rms_norm),
    ungated: lambda read: Block(Attention(**SIZES, rope=None), MLP(DIM, FFN, "silu", gate=False), read.rms_norm),
}


@pytest.mark.parametrize("formula", POLICIES, ids=lambda formula: formula.__name__)
def test_policies(formula, rng):
    """Logits are those of the formula, with blocks as they are, and with blocks that are called."""
    model = model_of(POLICIES[formula], rng)
    x = model.token_embd.weight[TOKENS].astype(np.float64)
    for block in model.blk:
        x = formula(block, x)
    expected = rms(x, model.output_norm) @ model.output.weight.T
    np.testing.assert_allclose(model(TOKENS), expected, rtol=2e-4, atol=2e-4)
    model.blk = [Wrapped(block) for block in model.blk]
    np.testing.assert_allclose(model(TOKENS), expected, rtol=2e-4, atol=2e-4)
    assert [block.calls for block in model.blk] == [1, 1]


def test_norms_of_the_stream():
    """Which norm it is, is the family's choice."""
    read = Reader(FILE)
    assert isinstance(read.rms_norm(), RMSNorm) and isinstance(read.layer_norm(), LayerNorm)
