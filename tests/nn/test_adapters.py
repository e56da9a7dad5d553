"""model.adapters: against merging into the weights, on the CPU; and what does not fit."""

import numpy as np
import pytest
from adapters import merge, random_lora, write_gguf, write_peft
from golden import build, families, relative_error

import rocforge as rf
from rocforge.errors import UnsupportedModelError
from rocforge.load import load_model
from rocforge.nn import Linear
from rocforge.nn.batch import Batch, Chunk

EVERY = ["attn_q", "attn_q_b", "attn_k", "attn_v", "attn_qkv", "attn_output"]
EVERY += ["ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp"]
EVERY += ["token_embd", "output"]
TOKENS = np.array([5, 40, 7, 123, 9], np.int32)
SAME = 1e-5
"""Relative error of float32."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small random models, as files."""
    folder = tmp_path_factory.mktemp("models")
    paths = {variant: folder / f"{variant}.gguf" for variant in ("llama-linear", "qwen3moe", "phi3")}
    for variant, path in paths.items():
        build(path, variant, "F32")
    for family in ("gemma4-experts", "gemma4-shared", "minicpm3"):
        paths[family] = folder / f"{family}.gguf"
        families.build(paths[family], family)
    return paths


def fresh(files, variant="llama-linear"):
    return load_model(rf.open_gguf(files[variant]), "cpu")


@pytest.fixture
def model(files):
    return fresh(files)


@pytest.mark.parametrize("variant", ["llama-linear", "qwen3moe", "phi3", "gemma4-experts", "gemma4-shared", "minicpm3"])
def test_as_if_merged(files, rng, variant):
    """Each kind of module; what runs without an adapter is as it was, bit for bit."""
    model = fresh(files, variant)
    plain, hidden = model(TOKENS), model.hidden(TOKENS)
    # a router with a norm takes no update, nor does a merged one of the embedding leave an output of the same weight
    which = EVERY if variant != "gemma4-experts" else EVERY[:-3]
    model.adapters["x"] = lora = random_lora(rng, model, which)
    merged = merge(fresh(files, variant), lora)
    assert relative_error(model(TOKENS, lora="x"), merged(TOKENS)) < SAME < relative_error(plain, merged(TOKENS)) / 100
    assert relative_error(model.hidden(TOKENS, lora="x"), merged.hidden(TOKENS)) < SAME
    assert relative_error(model.logits(hidden, lora="x"), merged.logits(hidden)) < SAME
    np.testing.assert_array_equal(model(TOKENS), plain)
    np.testing.assert_array_equal(model.hidden(TOKENS), hidden)


def test_a_batch_of_several(model, rng):
    """Sequences with adapters of different ranks and of different modules, and without; logits of last tokens."""
    model.adapters["a"], model.adapters["b"] = (
        random_lora(rng, model, EVERY, 3),
        random_lora(rng, model, ["attn_q"], 40),
    )
    names, cache = ["b", None, "a", "b"], model.new_cache(4)
    loras = [None if name is None else model.adapters.placed(name) for name in names]
    chunks = [Chunk(0, 5, [i], lora=lora) for i, lora in enumerate(loras)]
    logits = model(np.tile(TOKENS, 4), Batch.of(cache, chunks))
    for row, name in zip(logits, names, strict=True):
        assert relative_error(row, model(TOKENS, lora=name)[-1]) < SAME


def test_seen_and_edited(model, rng):
    """Observers see a module's output with the update; edits are of that."""
    model.adapters["x"] = lora = random_lora(rng, model, ["attn_q"])
    with model.capture("blk.1.attn_q", "blk.1.attn_norm") as seen:
        model(TOKENS, lora="x")
    a, b, scale = lora["blk.1.attn_q"]
    x, weight = (seen["blk.1.attn_norm"].astype(np.float64), rf.asnumpy(model.blk[1].attn_q.weight))
    assert relative_error(seen["blk.1.attn_q"], x @ (weight + scale * (b @ a)).T) < SAME
    expected = model(TOKENS, lora="x")
    with model.edit({"blk.1.attn_q": lambda y: 1.0 * y}):
        assert relative_error(model(TOKENS, lora="x"), expected) < SAME


def test_mapping(model, rng):
    """Names as of a dict; an adapter again under its own name is the new one."""
    adapters, lora = model.adapters, random_lora(rng, model, ["attn_q"])
    assert len(adapters) == 0 and repr(adapters) == "Adapters()"
    adapters["x"] = adapters["y"] = lora
    assert list(model.adapters) == ["x", "y"] and model.adapters["x"] is lora and "z" not in model.adapters
    assert repr(adapters).startswith("Adapters('x': LoRA(2 matrices, rank 8), ")
    before = model(TOKENS, lora="x")
    adapters["x"] = -1 * lora
    assert relative_error(model(TOKENS, lora="x"), before) > SAME
    np.testing.assert_array_equal(model(TOKENS, lora="y"), before)
    del adapters["x"]
    with pytest.raises(KeyError):
        del adapters["x"]
    with pytest.raises(ValueError, match="lora is 'x'; the model's adapters are 'y'"):
        model(TOKENS, lora="x")


def test_many(model, rng):
    """More than a table has room for at first."""
    loras = [random_lora(rng, model, ["attn_q"], rank=rank) for rank in range(1, 20)]
    for i, lora in enumerate(loras):
        model.adapters[str(i)] = lora
    one, last = model(TOKENS, lora="0"), model(TOKENS, lora="18")
    model.adapters.clear()
    model.adapters["one"], model.adapters["last"] = loras[0], loras[18]
    np.testing.assert_array_equal(model(TOKENS, lora="one"), one)
    np.testing.assert_array_equal(model(TOKENS, lora="last"), last)


def test_what_does_not_fit(model, rng):
    """All faults are named, and nothing has changed."""
    a, b = np.zeros((2, 5), np.float32), np.zeros((7, 2), np.float32)
    with pytest.raises(UnsupportedModelError, match=r"blk\.9\.attn_q is no module.*; blk\.0\.attn_q is \(7, 5\) and"):
        model.adapters["x"] = rf.LoRA({"blk.9.attn_q": (a, b), "blk.0.attn_q": (a, b)})
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_norm is a RMSNorm, not a Linear"):
        model.adapters["x"] = rf.LoRA({"blk.0.attn_norm": (a, b)})
    with pytest.raises(TypeError, match=r"is str; allowed is rf\.LoRA; adapters\.load"):
        model.adapters["x"] = "adapter.gguf"
    with pytest.raises(TypeError, match="a name is ''"):
        model.adapters[""] = random_lora(rng, model, ["attn_q"])
    with pytest.raises(ValueError, match="beside a batch"):
        model(TOKENS, model.trivial_batch(5), lora="x")
    assert not model.adapters


def test_experts_are_refused(files):
    model = fresh(files, "qwen3moe")
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.ffn_up_exps is a Experts, not a Linear"):
        model.adapters["x"] = rf.LoRA({"blk.0.ffn_up_exps": (np.zeros((2, 4)), np.zeros((4, 2)))})


def test_files(model, rng, tmp_path):
    """A GGUF file and PEFT's folder of one adapter do the same, though rows of q and k lie otherwise in them."""
    lora = random_lora(rng, model, ["attn_q", "attn_k", "ffn_down"])
    path = write_gguf(tmp_path / "a.gguf", lora, "llama", alpha=4.0)
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "ffn_down": "mlp.down_proj"}
    heads, tensors = {"attn_q": model.blk[0].attn.heads, "attn_k": model.blk[0].attn.kv_heads}, {}
    for key, (a, b, _) in lora.items():
        _, layer, name = key.split(".")
        if name in heads:  # pairs that rope turns: neighbours in GGUF, half a head apart there
            b = b.reshape(heads[name], -1, 2, b.shape[1]).swapaxes(1, 2).reshape(b.shape)
        prefix = f"base_model.model.model.layers.{layer}.{names[name]}"
        tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": np.ascontiguousarray(b)}
    folder = write_peft(tmp_path / "peft", tensors, lora_alpha=4.0)
    model.adapters.load("gguf", path)
    model.adapters.load("peft", folder)
    model.adapters.load("half", path, scale=0.5)
    model.adapters["own"] = 2 * lora * 0.5  # 0.5, and so is 4 / 8
    outputs = [model(TOKENS, lora=name) for name in ("gguf", "peft", "own", "half")]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert relative_error(outputs[0], outputs[3]) > SAME
    with pytest.raises(FileNotFoundError):
        model.adapters.load("x", tmp_path / "none.gguf")


def test_a_shared_module_is_another_models(files, rng):
    """A module of one model that another one runs too has the first one's adapters there alone."""
    one, other = fresh(files), fresh(files)
    one.adapters["x"] = random_lora(rng, one, ["attn_q"])
    other.blk[0].attn_q = one.blk[0].attn_q
    other.adapters["y"] = random_lora(rng, other, ["output"])
    plain = fresh(files)
    plain.adapters["y"] = other.adapters["y"]
    np.testing.assert_array_equal(other(TOKENS, lora="y"), plain(TOKENS, lora="y"))


def test_a_replaced_module_takes_its_update_with_it(model, rng):
    """Whatever stands in its place has none."""
    model.adapters["x"] = random_lora(rng, model, ["output"])
    plain, other = model(TOKENS), Linear(*reversed(model.output.weight.shape))
    other.weight = model.output.weight
    model.output = other
    np.testing.assert_array_equal(model(TOKENS, lora="x"), plain)
