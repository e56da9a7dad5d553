"""Adapters in folders of PEFT's."""

import json

import numpy as np
import pytest
from adapters import write_peft

from rocforge.errors import CheckpointError, UnsupportedModelError
from rocforge.lora.peft import read_peft

RNG = np.random.default_rng(0)
LAYER = "base_model.model.model.layers.3"
Q = f"{LAYER}.self_attn.q_proj"


def pair(module, rank=4, columns=8, rows=16):
    a, b = RNG.standard_normal((rank, columns)), RNG.standard_normal((rows, rank))
    return {f"{module}.lora_A.weight": a.astype(np.float32), f"{module}.lora_B.weight": b.astype(np.float32)}


def test_names(tmp_path):
    """Hugging Face's modules are GGUF's; PEFT's embeddings lie as the others do."""
    tensors = {**pair(Q), **pair(f"{LAYER}.mlp.down_proj"), **pair("base_model.model.lm_head")}
    a, b = np.ones((4, 30), np.float32), np.ones((8, 4), np.float32)
    embedding = "base_model.model.model.embed_tokens"
    tensors |= {f"{embedding}.lora_embedding_A": a, f"{embedding}.lora_embedding_B": b}
    lora = read_peft(write_peft(tmp_path, tensors, lora_alpha=8), "llama", {})
    assert sorted(lora) == ["blk.3.attn_q", "blk.3.ffn_down", "output", "token_embd"]
    assert lora["token_embd"].a.shape == (4, 30) and lora["blk.3.ffn_down"].scale == 2
    np.testing.assert_array_equal(lora["blk.3.attn_q"].b, tensors[f"{Q}.lora_B.weight"])


def test_rows_of_heads(tmp_path):
    """Row i of the first half of a head becomes its row 2 i, that of the second half row 2 i + 1."""
    tensors = pair(Q)
    lora = read_peft(write_peft(tmp_path, tensors), "llama", {"blk.3.attn_q": 2})
    order = [8 * head + 4 * half + i for head in range(2) for i in range(4) for half in range(2)]
    np.testing.assert_array_equal(lora["blk.3.attn_q"].b, tensors[f"{Q}.lora_B.weight"][order])


@pytest.mark.parametrize(
    ("config", "scale"),
    [({}, 4.0), ({"use_rslora": True}, 8.0), ({"alpha_pattern": {"q_proj": 1}}, 0.25)],
)
def test_scales(tmp_path, config, scale):
    """Alpha over the rank of each matrix, or its root; of modules that a pattern names, its alpha."""
    assert read_peft(write_peft(tmp_path, pair(Q), lora_alpha=16, **config), "llama", {})["blk.3.attn_q"].scale == scale


def test_bfloat16(tmp_path):
    """Which NumPy lacks."""
    values = RNG.standard_normal((4, 4)).astype(np.float32).view(np.uint32) & 0xFFFF0000
    half = {"dtype": "BF16", "shape": [4, 4], "data_offsets": [0, 32]}
    header = {f"{Q}.lora_A.weight": half, f"{Q}.lora_B.weight": {**half, "data_offsets": [32, 64]}}
    text, data = json.dumps(header).encode(), (values >> 16).astype(np.uint16).tobytes()
    write_peft(tmp_path, {})
    (tmp_path / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + 2 * data)
    np.testing.assert_array_equal(read_peft(tmp_path, "llama", {})["blk.3.attn_q"].a, values.view(np.float32))


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (pair(Q), {"peft_type": "IA3"}, "peft_type is 'IA3'; supported is 'LORA'"),
        (pair(Q), {"use_dora": True}, "use_dora is True"),
        (pair(Q), {"lora_alpha": None}, "lora_alpha is None; it should be a number"),
        ({**pair(Q), f"{Q}.lora_magnitude_vector": np.ones(16, np.float32)}, {}, "neither lora_A nor lora_B"),
        ({f"{Q}.lora_A.weight": np.ones((4, 8), np.float32)}, {}, "has lora_A alone"),
        (pair(f"{LAYER}.mlp.experts.2.up_proj"), {}, "matrices of experts are not supported"),
        (pair(f"{LAYER}.self_attn.rotary"), {}, "that module is not supported"),
    ],
)
def test_what_is_not_supported(tmp_path, tensors, config, message):
    """Nothing of a folder is left out in silence."""
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        read_peft(write_peft(tmp_path, tensors, **config), "llama", {})


def test_damaged(tmp_path):
    """Files that are cut, or are not there."""
    folder = write_peft(tmp_path, pair(Q))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_peft(folder, "llama", {})
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no JSON"):
        read_peft(folder, "llama", {})
    with pytest.raises(FileNotFoundError):
        read_peft(tmp_path / "other", "llama", {})
