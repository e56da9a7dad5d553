"""Families of checkpoints: the architecture that GGUF has for each, names of tensors, and what is done to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rocforge.checkpoints import config
from rocforge.checkpoints.config import Extra
from rocforge.errors import UnsupportedModelError

TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
"""Modules outside the layers, by GGUF's names."""
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "self_attn.sinks": "attn_sinks.weight",
}
"""Modules of a layer, or whole names. A family adds to them, or has another meaning for some."""
BERT_TOP = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
BERT_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_NORMS_BEHIND = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
EXPERTS = {
    **{name: "gate" for name in ("gate_proj", "w1")},
    **{name: "up" for name in ("up_proj", "w3")},
    **{name: "down" for name in ("down_proj", "w2")},
}
"""Matrices of an expert."""


@dataclass(frozen=True)
class Family:
    """What a checkpoint of an architecture holds.

    Attributes:
        architecture: GGUF's general.architecture.
        layer: modules of a layer beside LAYER's.
        top: modules outside the layers beside TOP's.
        unused: how names begin of what GGUF has no place for.
        defaults: settings that config.json leaves out.
        extra: gives keys beside those that all families have.
        rotated_pairs: rows of q and k are put in the order in which GGUF's llama rotates neighbours.
        norm_offset: what norms multiply by is their weight and this.
        tied: an output in the checkpoint is the embedding, and left out.
    """

    architecture: str
    layer: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    extra: Extra = lambda config: {}
    rotated_pairs: bool = False
    norm_offset: float = 0.0
    tied: bool = False
    top: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


_LLAMA = Family("llama", extra=config.llama, rotated_pairs=True)
_MIXTRAL = Family("llama", {"block_sparse_moe.gate": "ffn_gate_inp"}, extra=config.llama, rotated_pairs=True)
_GEMMA = {**_NORMS_BEHIND, "pre_feedforward_layernorm": "ffn_norm"}
_GEMMA3 = Family(
    "gemma3",
    _GEMMA,
    {
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
    config.gemma3,
    norm_offset=1.0,
)
_GPT_OSS = {
    "post_attention_layernorm": "post_attention_norm",
    "mlp.router": "ffn_gate_inp",
}

_CLASSIFIER = {"pooler.dense": "cls", "classifier": "cls.output"}

FAMILIES = {
    "BertModel": Family(
        "bert", BERT_LAYER, extra=config.bert, top=BERT_TOP, unused=("embeddings.position_ids", "pooler.", "cls.")
    ),
    "BertForSequenceClassification": Family(
        "bert",
        BERT_LAYER,
        extra=config.bert_ranks,
        top={**BERT_TOP, **_CLASSIFIER},
        unused=("embeddings.position_ids",),
    ),
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": _MIXTRAL,
    "Qwen2ForCausalLM": Family("qwen2"),
    "Qwen3ForCausalLM": Family("qwen3"),
    "Qwen3MoeForCausalLM": Family("qwen3moe", extra=config.qwen3moe),
    "Gemma2ForCausalLM": Family("gemma2", _GEMMA, extra=config.gemma2, norm_offset=1.0, tied=True),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "Phi3ForCausalLM": Family(
        "phi3", {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}, extra=config.phi3
    ),
    "GptOssForCausalLM": Family("gpt-oss", _GPT_OSS, extra=config.gpt_oss),
    "Olmo2ForCausalLM": Family("olmo2", _NORMS_BEHIND),
}
"""The architectures of checkpoints, as config.json names them."""


def family_of(settings: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        UnsupportedModelError: it is unknown; the message lists those that are known.
    """
    names = settings.get("architectures") or ["?"]
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    raise UnsupportedModelError(f"checkpoints of {names[0]} are not supported; supported are {', '.join(FAMILIES)}")
