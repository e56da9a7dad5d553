"""Float16 values kept beside packed weights: the setting, and that logits stay what they were."""

import itertools

import cupy as cp
import numpy as np
import pytest
from golden import relative_error

import rocforge as rf
from rocforge.device import tuning
from rocforge.device.kernels import launches_recorded
from rocforge.engine.capacity import CacheSizes
from rocforge.load import load_model
from rocforge.nn.state import states_of
from rocforge.ops.device import gemm
from rocforge.ops.device.plan import MAX_TILE_TOKENS
from rocforge.ops.linear import linears

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]


@pytest.fixture(scope="module")
def file(path):
    with rf.open_gguf(path) as file:
        yield file


def matrices_of(model):
    """What the model multiplies with; its output has a weight of its own."""
    return {p: w for p, w in model.named_parameters() if len(w.shape) == 2 and p != "token_embd.weight"}


def kept(model):
    weights = dict(model.named_parameters())
    return {path for path, weight in weights.items() if getattr(weight, "fp16", None) is not None}


def test_logits_stay(file, rng):
    """The same products, of whole matrices instead of tiles."""
    with_fp16, without = (load_model(file, "gpu", fp16_weights=fp16_weights) for fp16_weights in (True, False))
    assert not kept(without) and kept(with_fp16) == set(matrices_of(without))
    tokens = rng.integers(0, without.config.vocabulary, MAX_TILE_TOKENS + 6)
    with tuning.trying(tile_tokens=MAX_TILE_TOKENS, tile_tokens_alone=MAX_TILE_TOKENS, wide_from=tuning.ANY):
        assert relative_error(rf.asnumpy(with_fp16(tokens)), rf.asnumpy(without(tokens))) < 1e-5


def test_neighbours_are_multiplied_as_one(file, rng, monkeypatch):
    """q, k and v, and gate and up, lie one below the other; a product of theirs is what each gives alone."""
    model, calls = load_model(file, "gpu", fp16_weights=True), []
    attn, mlp, multiply = model.blk[0].attn, model.blk[0].ffn, gemm.gemm
    monkeypatch.setattr(gemm, "gemm", lambda *args: calls.append(len(args[1])) or multiply(*args))
    for layers in ([attn.attn_q, attn.attn_k, attn.attn_v], [mlp.ffn_gate, mlp.ffn_up]):
        weights, calls[:] = [layer.weight for layer in layers], []
        x = cp.asarray(rng.standard_normal((MAX_TILE_TOKENS + 1, weights[0].shape[1])).astype(np.float16))
        ys = linears(x, weights)
        assert calls == [sum(map(len, weights))]
        for y, weight in zip(ys, weights, strict=True):
            assert relative_error(y.get(), x.get().astype(np.float64) @ weight.fp16.get().T.astype(np.float64)) < 1e-5


def test_rows_keep_them(file, rng):
    """Of a run of rows they are that part; of rows here and there, which would be copies, there are none."""
    weight = load_model(file, "gpu", fp16_weights=True).blk[0].ffn.ffn_up.weight
    part = weight[8:40]
    assert part.fp16.data.ptr == weight.fp16[8:].data.ptr and part.fp16.shape == part.shape
    assert weight[::2].fp16 is None and weight[[1, 2]].fp16 is None


def test_launches_of_a_prompt(file, monkeypatch):
    """Nine a layer, four of them the BLAS library's, which adds to the residual, but to the embeddings, that others may
    have; attention and units write float16."""
    model, names = load_model(file, "gpu", fp16_weights=True), []
    monkeypatch.setattr(gemm, "gemm", lambda *args, add=False: names.append("added product" if add else "product"))
    with launches_recorded(lambda kernel: names.append(kernel.name)):
        model(np.zeros(MAX_TILE_TOKENS + 1, np.int32))
    before = ["product", "rope_store", "attention_prefill"]
    after = ["product", "swiglu_of_fp16", "added product", "rms_norm"]
    first = [*before, "product", "rms_norm_of_sum", *after]
    others = [*before, "added product", "rms_norm", *after] * (model.config.layers - 1)
    assert names == ["rope_angles", "dequantize_float32", "rms_norm", *first, *others, "product"]


def test_by_itself(file, monkeypatch):
    """Kept where they take at most half of what a cache of the model's context leaves, on a card where that pays."""
    model = load_model(file, "gpu", fp16_weights=False)
    size = sum(2 * w.size for w in matrices_of(model).values())
    cache = CacheSizes(states_of(model).values(), "gpu:0").nbytes(model.config.context)
    for free, pays in itertools.product((2 * size, 2 * size - 2), (True, False)):
        monkeypatch.setattr("rocforge.loading.fp16_weights.available_memory", lambda device, free=free: cache + free)
        with tuning.trying(fp16_copies=pays):
            assert bool(kept(load_model(file, "gpu"))) == (pays and free == 2 * size)
    assert kept(load_model(file, "gpu", fp16_weights=True))
