"""Fusion changes nothing that is computed, and nothing that a user puts in the tree goes uncalled."""

import numpy as np
import pytest
from golden import build, families, relative_error
from meddling import Wrapped, modules_of, replace, waves

import rocforge as rf
from rocforge.load import load_model
from rocforge.nn import Transformer
from rocforge.nn.batch import Batch, Chunk

VARIANTS = ["gemma2", "gemma3", "gpt-oss", "llama3", "mixtral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3moe"]
FAMILIES = ["gemma4-experts", "gemma4-shared"]
"""One of each architecture; and those whose layers are more than attention and a feed-forward."""
SAME, MOVED = 2e-6, 1e-4
"""Relative errors: of sums in another order; and what `waves` moves logits by at least."""


@pytest.fixture(scope="module", params=VARIANTS + FAMILIES)
def model(request, tmp_path_factory) -> Transformer:
    """A small random model of each architecture, float32, on the CPU."""
    path = tmp_path_factory.mktemp("models") / "model.gguf"
    if request.param in VARIANTS:
        build(path, request.param, "F32")
    else:
        families.build(path, request.param)
    return load_model(rf.open_gguf(path), device="cpu")


TOKENS = np.arange(3, 32)


def test_modules_mean_what_they_say(model):
    """With every module replaced by one that calls it, so that nothing is fused, the logits are the same."""
    fused = model(TOKENS)
    originals = dict(model.named_modules())
    wrapped = {path: Wrapped(module) for path, module in originals.items()}
    for path in sorted(wrapped, key=lambda path: -path.count(".") if path.count(".") > 2 else 0):
        replace(model, path, wrapped[path]) if not originals[path].inline and path.count(".") != 1 else None
    try:
        assert relative_error(model(TOKENS), fused) < SAME
        leaves = [w for path, w in wrapped.items() if not originals[path].inline and path.count(".") != 1]
        assert all(w.calls == 1 for w in leaves)
    finally:
        for path, module in originals.items():
            if not module.inline and path.count(".") != 1:
                replace(model, path, module)
    np.testing.assert_array_equal(model(TOKENS), fused)


def test_every_module_is_called(model):
    """Each module, but those of layers between, replaced, observed and edited: it is called, and what it gives goes on.

    Observing and passing on change nothing. A module that gives other values moves the logits, as an edit that does
    the same moves them. Taking it back gives the same logits again, bit for bit.
    """
    fused, ends = model(TOKENS), ("0", str(len(model.blk) - 1))
    for path in modules_of(model):
        if path.startswith("blk.") and path.split(".")[1] not in ends:
            continue  # as those of the first and the last layer
        module, seen = dict(model.named_modules())[path], []
        with module.observe(seen.append):
            assert relative_error(model(TOKENS), fused) < SAME, path
        assert len(seen) == 1, path
        wrapped = Wrapped(module)
        replace(model, path, wrapped)
        assert relative_error(model(TOKENS), fused) < SAME, path
        assert wrapped.calls == 1, path
        wrapped.change = waves
        moved = model(TOKENS)
        assert relative_error(moved, fused) > MOVED, path
        replace(model, path, module)
        with model.edit({path: waves}):
            assert relative_error(model(TOKENS), moved) < SAME, path
        np.testing.assert_array_equal(model(TOKENS), fused, err_msg=path)


def test_observed_is_what_the_module_gives(model):
    """What observers see of a block and of its parts is what these give for what others give."""
    paths = [path for path in modules_of(model) if path.startswith("blk.1")]
    inputs = [path for path, _ in model.named_modules() if path == "layer_inputs"]
    with model.capture("blk.0", *paths, *inputs) as seen:
        model(TOKENS)
    block = model.blk[1]
    batch = model.trivial_batch(len(TOKENS))
    batch.layer_inputs = seen.get("layer_inputs")
    assert relative_error(block(seen["blk.0"], batch), seen["blk.1"]) < SAME
    if "blk.1.ffn_down_exps" not in seen:
        np.testing.assert_array_equal(seen["blk.1.ffn"], seen["blk.1.ffn_down"])
    np.testing.assert_array_equal(seen["blk.1.attn"], seen["blk.1.attn_output"])


def test_one_layer_costs_its_own_fusion(model):
    """The steps of other layers, and of other models, are the ones they were."""
    before = model.fused
    with model.blk[1].attn_output.observe(lambda y: None):
        during = model.fused
        assert during is not before and model.fused is during
        kinds = [[type(step) for step in fused._steps] for fused in (before, during)]
        assert kinds[0] == kinds[1]
        adds = [[getattr(step, "adds", None) for step in fused._steps] for fused in (before, during)]
        assert [i for i, (a, b) in enumerate(zip(*adds, strict=True)) if a != b] in ([2], [])
    assert model.fused is not during


def test_hidden_states(model, rng):
    """They are what the output is multiplied with, of the rows that are wanted, of any number of sequences."""
    hidden = model.hidden(TOKENS)
    assert hidden.shape == (len(TOKENS), model.config.dim) and hidden.dtype == np.float32
    logits = model.output(hidden)
    logits = rf.softcap(logits, model.softcap) if model.softcap else logits
    assert relative_error(logits, model(TOKENS)) < SAME
    chunks = [Chunk(0, 9, [0]), Chunk(0, len(TOKENS), [1])]
    both = model.hidden(np.concatenate([TOKENS[:9], TOKENS]), Batch.of(model.new_cache(2), chunks))
    assert relative_error(both, hidden[[8, -1]]) < 1e-5
