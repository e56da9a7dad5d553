"""Adapters in GGUF files."""

import gguf
import numpy as np
import pytest
from adapters import write_gguf

import rocforge as rf
from rocforge.errors import UnsupportedModelError
from rocforge.lora.gguf import read_gguf

RNG = np.random.default_rng(0)
LORA = rf.LoRA(
    {
        "blk.0.attn_q": (RNG.standard_normal((4, 8)), RNG.standard_normal((6, 4))),
        "token_embd": (RNG.standard_normal((2, 30)), RNG.standard_normal((8, 2))),
    }
)


@pytest.mark.parametrize(("alpha", "scales"), [(8.0, (2.0, 4.0)), (0.0, (1.0, 1.0))])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_file(tmp_path, dtype, alpha, scales):
    """The arrays, an embedding's first one turned, and alpha over the rank; without alpha the scale is 1."""
    lora = read_gguf(write_gguf(tmp_path / "a.gguf", LORA, "llama", alpha, dtype), "llama")
    assert tuple(update.scale for update in lora.values()) == scales
    for path, (a, b, _) in LORA.items():
        np.testing.assert_array_equal(lora[path].a, a.astype(dtype))
        np.testing.assert_array_equal(lora[path].b, b.astype(dtype))


def written(path, kind="adapter", adapter="lora", **tensors):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(kind)
    writer.add_string("adapter.type", adapter)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


Q, NORM = "blk.0.attn_q.weight", "blk.0.attn_norm.weight"
PAIR = {f"{Q}.lora_a": np.ones((2, 8), np.float32), f"{Q}.lora_b": np.ones((8, 2), np.float32)}
EXPERTS = {name.replace("attn_q", "ffn_up_exps"): np.stack([array] * 2) for name, array in PAIR.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "model", **PAIR}, "no LoRA adapter: general.type is 'model'"),
        ({"adapter": "ia3", **PAIR}, "adapter.type 'ia3'"),
        ({f"{Q}.lora_a": PAIR[f"{Q}.lora_a"]}, f"tensor {Q}.lora_b is missing"),
        ({NORM: np.ones(8, np.float32), **PAIR}, f"{NORM}: only tensors that end in .weight.lora_a"),
        (EXPERTS, "blk.0.ffn_up_exps: adapters of experts are not supported"),
    ],
)
def test_what_is_not_supported(tmp_path, options, message):
    """Nothing of a file is left out in silence."""
    with pytest.raises(UnsupportedModelError, match=message):
        read_gguf(written(tmp_path / "a.gguf", **options), "llama")


def test_another_architecture(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", LORA, "qwen2", 1.0)
    with pytest.raises(UnsupportedModelError, match="architecture 'qwen2'; the model's is 'llama'"):
        read_gguf(path, "llama")
