"""Checkpoints of Hugging Face's: each family gives transformers' logits, and what is malformed is named."""

import json

import numpy as np
import pytest
from checkpoint_files import CONFIGS, DIM, PROMPT, bits, config, shapes, write, write_safetensors
from golden import FOLDER, relative_error

import rocforge as rf
from rocforge.checkpoints.checkpoint import Checkpoint
from rocforge.errors import CheckpointError, RocforgeError, UnsupportedModelError

LOGITS = np.load(FOLDER / "checkpoints.npz")
WRONG = ("x", 0, -3, [])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_logits_of_transformers(tmp_path, name):
    """Names, rotated rows, offsets of norms, stacked experts, scaled rotations, windows and caps are as they should."""
    model, _ = rf.load(write(tmp_path / name, name), "cpu", context=128)
    assert relative_error(model(PROMPT)[::4], LOGITS[name]) < 2e-6


def test_saved_and_loaded_again(tmp_path):
    """A model from a checkpoint is saved as a GGUF file, of the same logits, tokens and chat template."""
    model, tokenizer = rf.load(write(tmp_path / "oss", "gpt-oss"), "cpu")
    model.save(tmp_path / "oss.gguf")
    again, same = rf.load(tmp_path / "oss.gguf", "cpu")
    text = "the band <tool> and<|end|> Ünter 123"
    assert (again(PROMPT) == model(PROMPT)).all() and same.encode(text) == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_quantized_on_the_way(tmp_path):
    """Matrices are in the mix's types, vectors and routers in float32, and logits near those of the whole weights."""
    folder = write(tmp_path / "moe", "qwen3moe")
    whole, packed = rf.load(folder, "cpu")[0], rf.load(folder, "cpu", quantize="Q8_0")[0]
    layer = packed.blk[0]
    assert layer.ffn_up_exps.weight.qtype.name == layer.attn_q.weight.qtype.name == "Q8_0"
    assert layer.ffn_gate_inp.weight.dtype == layer.attn_norm.weight.dtype == np.float32
    assert 0 < relative_error(packed(PROMPT), whole(PROMPT)) < 0.05
    assert packed.metadata["general.file_type"] == 7
    with pytest.raises(ValueError, match="type 'Q9' is unknown"):
        rf.load(folder, "cpu", quantize="Q9")


def test_parts_and_their_index(tmp_path):
    """Tensors in several files, which the index names; a file that is missing is named, and so is a bad index."""
    folder = write(tmp_path / "llama", "llama")
    whole = Checkpoint(folder)
    tensors = {name: ("BF16", bits("llama", name, shape)) for name, shape in shapes("llama").items()}
    places = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for part in sorted(set(places.values())):
        write_safetensors(folder / part, {name: tensors[name] for name in tensors if places[name] == part})
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    parts = Checkpoint(folder)
    assert len(parts.paths) == 3 and set(parts) == set(whole)
    assert all(np.asarray(parts[name]).tobytes() == np.asarray(whole[name]).tobytes() for name in whole)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json names 'part-1\.safetensors', which is not in the folder"):
        Checkpoint(folder)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match=r"is no index of safetensors"):
        Checkpoint(folder)


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_other_types(tmp_path, dtype):
    """Weights in float16 and float32 stay so; vectors are float32."""
    folder = write(tmp_path / "llama", "llama")
    kind = {"F16": np.float16, "F32": np.float32}[dtype]
    values = {
        name: (bits("llama", name, s).astype(np.uint32) << 16).view(np.float32) for name, s in shapes("llama").items()
    }
    write_safetensors(
        folder / "model.safetensors", {name: (dtype, array.astype(kind)) for name, array in values.items()}
    )
    checkpoint = Checkpoint(folder)
    assert checkpoint["output.weight"].dtype == kind and checkpoint["output_norm.weight"].dtype == np.float32
    assert checkpoint.tensor_info("output.weight").qtype.name == checkpoint.float_type == dtype
    assert relative_error(rf.load(folder, "cpu", context=128)[0](PROMPT)[::4], LOGITS["llama"]) < 1e-2


def test_experts_in_mxfp4(tmp_path):
    """gpt-oss's packed experts become GGUF's blocks: gate and up in turns, neighbours in a byte, the exponent first."""
    folder, rng = write(tmp_path / "oss", "gpt-oss"), np.random.default_rng(0)
    tensors = {name: ("BF16", bits("gpt-oss", name, shape)) for name, shape in shapes("gpt-oss").items()}
    at = "model.layers.1.mlp.experts."
    for part, rows in (("gate_up_proj", 2 * DIM), ("down_proj", DIM)):
        del tensors[at + part]
        tensors[f"{at}{part}_blocks"] = "U8", rng.integers(0, 256, (4, rows, 2, 16), np.uint8)
        tensors[f"{at}{part}_scales"] = "U8", rng.integers(120, 130, (4, rows, 2), np.uint8)
    write_safetensors(folder / "model.safetensors", tensors)
    checkpoint = Checkpoint(folder)
    codes, scales = (tensors[f"{at}gate_up_proj_{kind}"][1][:, 1::2] for kind in ("blocks", "scales"))
    points = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    values = points[np.stack([codes & 15, codes >> 4], axis=-1)].reshape(4, DIM, 2, 32)
    expected = np.ldexp(values, scales.astype(int)[..., None] - 127).reshape(4, DIM, 64)
    up = checkpoint["blk.1.ffn_up_exps.weight"]
    assert up.qtype.name == "MXFP4" and (up.dequantize() == expected).all()
    assert checkpoint.metadata["general.file_type"] == 38 and checkpoint.float_type == "BF16"


def change_config(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_a_multimodal_checkpoint(tmp_path):
    """Settings of the language model in a part of their own, names with another prefix; the rest is left out."""
    folder = write(tmp_path / "gemma3", "gemma3")
    settings = config("gemma3")
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": settings})
    )
    tensors = {f"language_model.{n}": ("BF16", bits("gemma3", n, s)) for n, s in shapes("gemma3").items()}
    tensors["vision_tower.a.weight"] = tensors["multi_modal_projector.b"] = "F32", np.zeros(3, np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    model, _ = rf.load(folder, "cpu", context=128)
    assert relative_error(model(PROMPT)[::4], LOGITS["gemma3"]) < 2e-6


def test_rope_as_newer_configs_have_it(tmp_path):
    """All settings in rope_parameters, by kind of layer where they differ."""
    folder = write(tmp_path / "gemma3", "gemma3")
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}
    sliding = {"rope_type": "default", "rope_theta": 5000.0}
    change_config(folder, rope_scaling=None, rope_theta=None, rope_local_base_freq=None)
    change_config(folder, rope_parameters={"full_attention": full, "sliding_attention": sliding})
    model, _ = rf.load(folder, "cpu", context=128)
    assert relative_error(model(PROMPT)[::4], LOGITS["gemma3"]) < 2e-6


def test_what_cannot_be_loaded(tmp_path):
    """Architectures, tensors, quantizations and settings that are unknown or missing are named."""
    folder = write(tmp_path / "llama", "llama")
    change_config(folder, architectures=["T5Model"])
    with pytest.raises(UnsupportedModelError, match=r"checkpoints of T5Model are not supported; .*LlamaForCausalLM"):
        Checkpoint(folder)
    change_config(folder, architectures=["LlamaForCausalLM"], quantization_config={"quant_method": "gptq"})
    with pytest.raises(UnsupportedModelError, match="weights quantized by gptq are not supported"):
        Checkpoint(folder)
    change_config(folder, quantization_config=None, hidden_size=None)
    with pytest.raises(CheckpointError, match=r"config\.json has no hidden_size"):
        Checkpoint(folder)
    change_config(folder, hidden_size="wide")
    with pytest.raises(CheckpointError, match=r"hidden_size is 'wide'; it should be an integer"):
        Checkpoint(folder)
    change_config(folder, hidden_size=DIM, rope_scaling={"rope_type": "spiral"})
    with pytest.raises(CheckpointError, match="rope type 'spiral' is unknown"):
        Checkpoint(folder)
    tensors = {name: ("BF16", bits("llama", name, shape)) for name, shape in shapes("llama").items()}
    write_safetensors(
        folder / "model.safetensors", {**tensors, "model.layers.0.mlp.c_fc.weight": ("U8", np.zeros(2, np.uint8))}
    )
    with pytest.raises(UnsupportedModelError, match=r"tensors of no known name: model\.layers\.0\.mlp\.c_fc\.weight"):
        Checkpoint(folder)


def test_an_expert_is_missing(tmp_path):
    """The error names the tensor that the experts make up."""
    folder = write(tmp_path / "mixtral", "mixtral")
    tensors = {name: ("BF16", bits("mixtral", name, shape)) for name, shape in shapes("mixtral").items()}
    del tensors["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_gate_exps\.weight: experts \[0, 1, 3\]"):
        Checkpoint(folder)


def test_folders_that_are_no_checkpoint(tmp_path):
    """What is missing is named."""
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        rf.load(tmp_path)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(CheckpointError, match=r"of its GGUF files name one: model\.gguf"):
        rf.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config("llama")))
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors and no model\.safetensors\.index\.json"):
        rf.load(tmp_path)
    folder = write(tmp_path / "llama", "llama")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json and no tokenizer\.model"):
        rf.load(folder)


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_settings_that_make_no_sense(tmp_path, name):
    """Whatever a setting is, the checkpoint loads, or an error of ours says why not."""
    folder = write(tmp_path / name, name)
    settings, errors = config(name), 0
    scaling = settings["rope_scaling"]
    cases = [{key: value} for key in (*settings, "text_config", "quantization_config") for value in WRONG]
    cases += [{"rope_scaling": {**scaling, key: value}} for key in scaling for value in WRONG]
    for case in cases:
        (folder / "config.json").write_text(json.dumps({**settings, **case}))
        try:
            rf.load(folder, "cpu")
        except RocforgeError as error:
            errors += 1
            assert str(error)
    assert errors > len(cases) / 4
