"""Every family in small: against llama.cpp's logits, and the ways of running a model against each other."""

import math
import re
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from golden import families, relative_error
from golden.families import FAMILIES, ROWS
from golden.family_parts import RMS, Family

import rocforge as rf
from rocforge.load import load_model
from rocforge.models import ARCHITECTURES, MISSING, build_model
from rocforge.nn.batch import Batch, Chunk
from rocforge.ops import activation

EXACT, BOUND = 1e-5, 5e-5
GELUS = (
    "bloom",
    "codeshell",
    "falcon",
    "gemma",
    "gemma3n",
    "gemma4",
    "gpt2",
    "gptneox",
    "grok",
    "phi2",
    "starcoder",
    "starcoder2",
)
ROUNDED = dict.fromkeys(GELUS, 3e-4) | {"spark2_5": 5e-4, "mpt": 5e-4}
"""Of architectures with GELU, of which llama.cpp rounds argument and result to float16."""


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """name -> path and model in F32, built once for this module."""
    folder, models = tmp_path_factory.mktemp("families"), {}

    def get(name):
        if name not in models:
            path = folder / f"{name}.gguf"
            families.build(path, name)
            models[name] = path, load_model(rf.open_gguf(path), device="cpu")
        return models[name]

    return get


@pytest.mark.parametrize("name", FAMILIES)
def test_logits(model_of, name):
    """Prompt and 16 greedy tokens, to 5e-5 of llama.cpp; to 5e-4 where it rounds."""
    _, model = model_of(name)
    golden = families.load(name)
    logits = model(golden["tokens"])
    assert relative_error(logits[ROWS], golden["logits"]) < ROUNDED.get(FAMILIES[name].arch, BOUND)
    chosen = logits[families.PROMPT - 1 : -1].argmax(axis=-1)
    np.testing.assert_array_equal(chosen, golden["tokens"][families.PROMPT :])


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith("gemma")])
def test_rounding_is_all_that_differs(model_of, name, monkeypatch):
    """With GELU rounded as llama.cpp rounds it, to 5e-5."""
    exact = activation.gelu

    def rounded(x):
        y = exact(x.astype(np.float16).astype(np.float32)).astype(np.float16).astype(np.float32)
        return np.where(x <= -10, np.float32(0), np.where(x >= 10, x, y))

    monkeypatch.setattr(activation, "gelu", rounded)
    golden = families.load(name)
    assert relative_error(model_of(name)[1](golden["tokens"])[ROWS], golden["logits"]) < BOUND


@pytest.mark.parametrize("name", FAMILIES)
def test_batches_and_chunks(model_of, name):
    """In chunks, token by token, and beside other sequences: the logits of the whole, to 1e-5."""
    _, model = model_of(name)
    tokens, other = families.prompt(name), families.prompt(name)[::-1].copy()
    whole, alone = model(tokens), model(other)
    cache, a, b = model.new_cache(8, slots=2), [7, 0, 2], [1, 4, 3]
    got = []
    for start, stop in ((0, 9), (9, 40), *((i, i + 1) for i in range(40, 48))):
        chunks = [Chunk(start, stop - start, a, slot=0), Chunk(start, stop - start, b, slot=1)]
        flat = np.concatenate([tokens[start:stop], other[start:stop]])
        got.append(model(flat, Batch.of(cache, chunks, all_logits=True)))
    first = np.concatenate([part[: len(part) // 2] for part in got])
    second = np.concatenate([part[len(part) // 2 :] for part in got])
    assert relative_error(first, whole) < EXACT
    assert relative_error(second, alone) < EXACT


@pytest.mark.parametrize("name", FAMILIES)
def test_quantized(tmp_path, name):
    """Packed weights give what their values do, to 1e-5."""
    packed, values = tmp_path / "packed.gguf", tmp_path / "values.gguf"
    families.build(packed, name, T.Q4_0)
    unpack(packed, values)
    logits = [load_model(rf.open_gguf(path), device="cpu")(families.prompt(name)) for path in (packed, values)]
    assert relative_error(*logits) < EXACT


@pytest.mark.parametrize(
    "name",
    ["qwen35", "nemotron_h", "falcon-h1", "lfm2", "jamba", "llama4", "deepseek2", "kimi-linear", "rwkv6", "rwkv7"]
    + ["gemma4-shared", "gemma3n", "bloom"],
)
def test_engine(model_of, name):
    """Requests that share a prefix, in a cache too small for all, which are chunked and preempted: as llama.cpp's."""
    _, model = model_of(name)
    tokens = families.load(name)["tokens"].tolist()
    prompt, expected = tokens[: families.PROMPT], tokens[families.PROMPT :]
    params = rf.SamplingParams(max_tokens=families.GREEDY, temperature=0)
    with rf.Engine(model, cache_tokens=160, max_batch_tokens=20) as engine:
        requests = [engine.add(prompt, params), engine.add(prompt[:40], params), engine.add(prompt, params)]
        while engine.busy:
            engine.step()
        requests.append(engine.add(prompt, params))
        while engine.busy:
            engine.step()
    assert all(requests[i].output == expected for i in (0, 2, 3))


def test_latents_of_an_old_file(model_of, tmp_path):
    """attn_kv_b is taken apart; saved, the model has the form that files have today."""
    path, model = model_of("deepseek2-old")
    model.save(tmp_path / "saved.gguf")
    before, saved = rf.open_gguf(path), rf.open_gguf(tmp_path / "saved.gguf")
    assert "blk.0.attn_kv_b.weight" in before and "blk.0.attn_kv_b.weight" not in saved
    assert saved["blk.0.attn_k_b.weight"].shape == (6, 80, 32) and saved["blk.0.attn_v_b.weight"].shape == (6, 40, 80)
    assert [saved.metadata[f"deepseek2.attention.{key}"] for key in ("key_length", "key_length_mla")] == [96, 48]
    kv_b = before["blk.0.attn_kv_b.weight"]
    assert list(model.arrays_of("blk.0.attn_kv_b.weight", kv_b[1:])) == ["blk.0.attn_kv_b.weight"]  # and is refused
    tokens = families.prompt("deepseek2-old")
    np.testing.assert_array_equal(load_model(saved, device="cpu")(tokens), model(tokens))


def test_axes_of_kimi_linear():
    """Convolutions and decays have as many axes of one as the converter of the day gave them."""
    family = FAMILIES["kimi-linear"]
    model = build_model(families.Skeleton(family, families.metadata(family)))
    for name, axes, shape in (
        ("blk.0.ssm_conv1d_q.weight", (1, 384, 1, 4), (384, 1, 4)),
        ("blk.0.ssm_a", (1, 1, 6, 1), (6, 1)),
    ):
        assert model.arrays_of(name, np.zeros(axes, np.float32))[name].shape == shape


def test_axes_of_rwkv6():
    """Shares and decays of old files have axes of one; the shares of all mixtures are as they are."""
    family = FAMILIES["rwkv6"]
    model = build_model(families.Skeleton(family, families.metadata(family)))
    for name, axes, shape in (
        ("blk.0.time_mix_lerp_x.weight", (1, 1, 192), (192,)),
        ("blk.0.channel_mix_lerp_r.weight", (1, 1, 192), (192,)),
        ("blk.0.time_mix_decay.weight", (1, 1, 192), (192,)),
        ("blk.0.time_mix_lerp_fused.weight", (5, 1, 1, 192), (5, 1, 1, 192)),
        ("blk.0.time_mix_decay_w1.weight", (64, 192), (64, 192)),
    ):
        assert model.arrays_of(name, np.zeros(axes, np.float32))[name].shape == shape


def test_layers_of_plamo2_without_heads():
    """Files say that a layer with a state has no heads; and nothing of how much of a head is rotated, which is all."""
    family = FAMILIES["plamo2"]
    keys = {**families.metadata(family), "attention.head_count": [0, 6, 0]}
    del keys["rope.dimension_count"]
    model, other = (build_model(families.Skeleton(family, each)) for each in (keys, families.metadata(family)))
    assert repr(model) == repr(other)
    assert [len(each.blk[1].attn.rope.frequencies) for each in (model, other)] == [16, 16]


def test_tokens_that_an_indexer_would_choose():
    """Sparse attention is computed as plain attention, which is told where a context is longer than what it chooses."""
    family = FAMILIES["glm-dsa"]
    keys = {**families.metadata(family), "attention.indexer.top_k": 100}
    with pytest.warns(
        UserWarning, match=r"attend to 100 tokens that an indexer chooses, .* of the context's 128 tokens"
    ):
        build_model(families.Skeleton(family, keys))


def unpack(path, to):
    """A copy of a file with all tensors in F32."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    w = gguf.GGUFWriter(to, arch)
    for key, value in rf.open_gguf(path).metadata.items():
        if key != "general.architecture" and not key.startswith("GGUF."):
            field = reader.fields[key]
            w.add_key_value(key, value if not isinstance(value, np.ndarray) else value.tolist(), *field.types[:2])
    for t in reader.tensors:
        w.add_tensor(t.name, gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


def test_every_architecture_has_a_model():
    """Each one that rocforge runs is here, or in the models of test_models.py."""
    from golden.encoders import ENCODERS
    from golden.models import VARIANTS

    shown = {one.arch for models in (FAMILIES, ENCODERS, VARIANTS) for one in models.values()}
    assert shown == set(ARCHITECTURES)


def test_the_list_is_of_today():
    """docs/models-supported.md has every architecture."""
    page = (Path(__file__).parents[1] / "docs" / "models-supported.md").read_text()
    assert re.findall(r"^\| (\S+) \| .+ \| \S.+ \|$", page, re.M)[1:] == sorted(ARCHITECTURES)


@pytest.mark.parametrize(
    "arch, key, value, match",
    [
        ("gemma4", "attention.shared_kv_layers", 2, "shared_kv_layers is 2; allowed are .* of the same window before"),
        ("gemma4", "rope.dimension_count_swa", 33, "dimension_count_swa is 33; allowed are even numbers to 64"),
        ("gemma3n", "activation_sparsity_scale", [math.nan] * 23, "allowed are finite numbers, and minus infinity"),
        ("gemma3n", "embedding_length_per_layer_input", 0, "per_layer_input is 0; allowed are integers from 1"),
        ("gemma3n", "altup.active_idx", 4, "active_idx is 4; allowed are integers from 0 to 3"),
    ],
)
def test_senseless_metadata(arch, key, value, match):
    """It is named, with what is allowed."""
    family = FAMILIES[arch]
    with pytest.raises(rf.GGUFError, match=match):
        build_model(families.Skeleton(family, {**families.metadata(family), key: value}))


def test_what_a_file_lacks_is_named():
    """Gemma 4's factors, without which its rope is another one."""
    family = FAMILIES["gemma4"]
    with pytest.raises(rf.GGUFError, match=r"tensor rope_freqs\.weight is missing"):
        build_model(families.Skeleton(replace(family, constants={}), families.metadata(family)))


@pytest.mark.parametrize("arch", MISSING)
def test_what_an_architecture_would_need(arch):
    """It is said of those that will not run."""
    with pytest.raises(rf.UnsupportedModelError, match=f"'{arch}' is not supported: {MISSING[arch]}"):
        build_model(families.Skeleton(Family(arch, RMS), families.metadata(Family(arch, RMS))))


@pytest.mark.parametrize(
    "arch, key, value, match",
    [
        (
            "baichuan",
            "block_count",
            36,
            "baichuan of 36 layers is not supported; 32 are, with rope, and 40, with ALiBi",
        ),
    ],
)
def test_refused(arch, key, value, match):
    """What a family cannot do is said in a sentence, and nothing is computed without it."""
    family = FAMILIES[arch]
    keys = {**families.metadata(family), key: value}
    with pytest.raises(rf.UnsupportedModelError, match=match):
        build_model(families.Skeleton(family, keys))
