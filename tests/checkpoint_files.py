"""Small random checkpoints of Hugging Face's, a folder each, from nothing but their names."""

import json
import zlib
from pathlib import Path

import numpy as np

VOCAB, DIM, FFN, HEADS, KV_HEADS, LAYERS = 272, 64, 96, 4, 2, 2
PROMPT = np.arange(7, 151, 12)

_BASE = {
    "hidden_size": DIM,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
    "bos_token_id": 262,
    "eos_token_id": 263,
    "pad_token_id": 263,
    "torch_dtype": "bfloat16",
}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
_LONGROPE = {"long_factor": [1 + i for i in range(8)], "short_factor": [1 + i / 8 for i in range(8)]}
_OSS_YARN = {**_YARN, "rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}

CONFIGS = {
    "llama": ("LlamaForCausalLM", "llama", {"rope_scaling": {"rope_type": "llama3", **_LLAMA3}}),
    "mistral": ("MistralForCausalLM", "mistral", {"head_dim": 32, "sliding_window": None}),
    "mixtral": ("MixtralForCausalLM", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", {"head_dim": 32, "rope_scaling": {"rope_type": "yarn", **_YARN}}),
    "qwen3moe": (
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        {
            "head_dim": 32,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        "gemma2",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "tie_word_embeddings": True,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "gemma3_text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "tie_word_embeddings": True,
            "num_hidden_layers": 6,
            "rope_local_base_freq": 5000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "phi3": (
        "Phi3ForCausalLM",
        "phi3",
        {"original_max_position_embeddings": 128, "rope_scaling": {"type": "longrope", **_LONGROPE}},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        "gpt_oss",
        {
            "head_dim": 16,
            "intermediate_size": DIM,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "rope_scaling": _OSS_YARN,
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", "olmo2", {}),
}
"""Name -> architecture and model_type of config.json, and what it has beside the usual."""


def config(name: str) -> dict:
    """What config.json says."""
    architecture, model_type, more = CONFIGS[name]
    return {**_BASE, "architectures": [architecture], "model_type": model_type, **more}


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint."""
    c = config(name)
    head = c.get("head_dim", DIM // HEADS)
    q, kv, ffn, oss, phi = HEADS * head, KV_HEADS * head, c["intermediate_size"], name == "gpt-oss", name == "phi3"
    found = {"model.embed_tokens.weight": (VOCAB, DIM), "model.norm.weight": (DIM,)}
    if not c["tie_word_embeddings"]:
        found["lm_head.weight"] = (VOCAB, DIM)
    projections = {"q_proj": (q, DIM), "k_proj": (kv, DIM), "v_proj": (kv, DIM), "o_proj": (DIM, q)}
    if phi:
        projections = {"qkv_proj": (q + 2 * kv, DIM), "o_proj": (DIM, q)}
    norms = ["post_attention_layernorm"] + ["input_layernorm"] * (name != "olmo2")
    norms += ["post_feedforward_layernorm"] * (name in ("gemma2", "gemma3", "olmo2"))
    norms += ["pre_feedforward_layernorm"] * name.startswith("gemma")
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for part, shape in projections.items():
            found[f"{at}self_attn.{part}.weight"] = shape
            if oss or (name == "qwen2" and part != "o_proj"):
                found[f"{at}self_attn.{part}.bias"] = shape[:1]
        found |= {f"{at}{norm}.weight": (DIM,) for norm in norms}
        if name in ("qwen3", "qwen3moe", "gemma3", "olmo2"):
            whole = name == "olmo2"
            found[f"{at}self_attn.q_norm.weight"] = (q if whole else head,)
            found[f"{at}self_attn.k_norm.weight"] = (kv if whole else head,)
        found |= {f"{at}{part}": shape for part, shape in _feed_forward(name, c, ffn).items()}
        if oss:
            found[f"{at}self_attn.sinks"] = (HEADS,)
    return found


def _feed_forward(name: str, c: dict, ffn: int) -> dict[str, tuple[int, ...]]:
    if name == "phi3":
        return {"mlp.gate_up_proj.weight": (2 * ffn, DIM), "mlp.down_proj.weight": (DIM, ffn)}
    if name == "gpt-oss":
        experts = c["num_local_experts"]
        return {
            "mlp.router.weight": (experts, DIM),
            "mlp.router.bias": (experts,),
            "mlp.experts.gate_up_proj": (experts, DIM, 2 * ffn),
            "mlp.experts.gate_up_proj_bias": (experts, 2 * ffn),
            "mlp.experts.down_proj": (experts, ffn, DIM),
            "mlp.experts.down_proj_bias": (experts, DIM),
        }
    if name == "mixtral":
        parts, prefix, experts = {"w1": (ffn, DIM), "w3": (ffn, DIM), "w2": (DIM, ffn)}, "block_sparse_moe", 4
    elif name == "qwen3moe":
        ffn, prefix, experts = c["moe_intermediate_size"], "mlp", c["num_experts"]
        parts = {"gate_proj": (ffn, DIM), "up_proj": (ffn, DIM), "down_proj": (DIM, ffn)}
    else:
        return {
            "mlp.gate_proj.weight": (ffn, DIM),
            "mlp.up_proj.weight": (ffn, DIM),
            "mlp.down_proj.weight": (DIM, ffn),
        }
    each = {f"{prefix}.experts.{i}.{part}.weight": s for i in range(experts) for part, s in parts.items()}
    return {f"{prefix}.gate.weight": (experts, DIM), **each}


def bits(name: str, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
    """The bits of a tensor in bfloat16: matrices of a gain near one, norms near one."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {tensor}".encode()))
    norm = tensor.endswith("norm.weight") or "layernorm" in tensor
    gain = 0.2 if len(shape) == 1 or tensor.endswith("bias") else 1.5 / np.sqrt(DIM)
    mean = 1.0 if norm and not name.startswith("gemma") else 0.0
    values = (mean + gain * rng.standard_normal(shape)).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """A file of tensors: name -> name of its type, array of its bytes."""
    header, at = {}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    data = b"".join(np.ascontiguousarray(array).tobytes() for _, array in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def tokenizer() -> dict:
    """A tokenizer.json of bytes, some merges and special tokens, which splits words as Qwen's does."""
    from rocforge.text.bpe import byte_of_char
    from rocforge.text.pretokenizers import PRE_TOKENIZERS

    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("a", "n"), ("an", "d")]
    tokens = [*byte_of_char(), *(a + b for a, b in merges), "<|begin|>", "<|end|>", "<tool>"]
    special = {"<|begin|>": True, "<|end|>": True, "<tool>": False}
    vocabulary = {text: i for i, text in enumerate(tokens) if text not in special}
    added = [{"id": tokens.index(t), "content": t, "special": s, "normalized": False} for t, s in special.items()]
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    split = {"type": "Split", "pattern": {"Regex": PRE_TOKENIZERS["qwen2"].regexes[0]}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [each | flags for each in added],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split | {"behavior": "Isolated", "invert": False}, byte_level],
        },
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [list(pair) for pair in merges]},
    }


def write(folder: Path, name: str) -> Path:
    """A checkpoint in a folder, which is made."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(name)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": "{{ messages[0].content }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    tensors = {tensor: ("BF16", bits(name, tensor, shape)) for tensor, shape in shapes(name).items()}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder
