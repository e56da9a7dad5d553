"""Small random models of encoders, and of decoders that give embeddings or rank; made as those of families.py."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T

from golden import families
from golden.family_parts import AFTER, FULL, LAYER, NO_BIAS, QKV, RMS, Family

BERT = {**LAYER, "pooling_type": 1}
RANK = ("norm.weight", "norm.bias")
ENCODERS = {
    "bert": Family("bert", BERT),
    "bert-fused": Family("bert", {**BERT, "pooling_type": 2}, ("token_types.weight",), QKV),
    "bert-ranks": Family("bert", {**BERT, "pooling_type": 4}, RANK),
    "bert-labels": Family(
        "bert",
        {**BERT, "pooling_type": 4, "classifier.output_labels": ["a", "b", "c"]},
        (*RANK, "cls.weight", "cls.bias", "output.bias"),
    ),
    "nomic-bert": Family("nomic-bert", BERT, ("attn_qkv.bias", *AFTER), QKV),
    "nomic-bert-moe": Family(
        "nomic-bert-moe",
        {**BERT, "block_count": 4, "expert_count": 6, "expert_used_count": 2, "moe_every_n_layers": 2},
        ("ffn_gate_inp.bias",),
        QKV,
    ),
    "jina-bert-v2": Family("jina-bert-v2", {**BERT, **FULL}, ("ffn_up.bias", "ffn_gate.bias"), ("ffn_gate.weight",)),
    "jina-bert-v2-code": Family(
        "jina-bert-v2",
        {**BERT, **FULL},
        ("ffn_up.bias",),
        ("attn_q_norm.weight", "attn_k_norm.weight", "attn_norm_2.weight", "ffn_up.weight"),
    ),
    "jina-bert-v3": Family("jina-bert-v3", BERT, (), QKV),
    "modern-bert": Family(
        "modern-bert",
        {
            **LAYER,
            **FULL,
            "block_count": 5,
            "pooling_type": 2,
            "hidden_activation": "silu",
            "attention.sliding_window": 11,
            "rope.freq_base": 80000.0,
            "rope.freq_base_swa": 10000.0,
        },
        NO_BIAS,
        QKV,
    ),
    "modern-bert-ranks": Family(
        "modern-bert",
        {**LAYER, **FULL, "pooling_type": 4},
        ("bias",),
        (*QKV, "attn_norm.weight"),
    ),
    "neo-bert": Family("neo-bert", {**RMS, "pooling_type": 2}, NO_BIAS, QKV),
    "eurobert": Family("eurobert", {**RMS, "pooling_type": 1}, NO_BIAS),
    "llama-embed": Family("llama-embed", {**RMS, "pooling_type": 1, "attention.causal": False}, NO_BIAS),
    "qwen2-encodes": Family("qwen2", {**RMS, "pooling_type": 3, "attention.causal": False}, AFTER),
    "gemma-embedding": Family(
        "gemma-embedding", {**RMS, "block_count": 7, "attention.sliding_window": 12, "pooling_type": 1}, NO_BIAS
    ),
    "gemma-embedding-dense": Family(
        "gemma-embedding",
        {
            **RMS,
            "attention.sliding_window": 9,
            "attention.sliding_window_pattern": 2,
            "pooling_type": 1,
            "dense_2_feat_in": 192,
            "dense_2_feat_out": 256,
            "dense_3_feat_in": 256,
            "dense_3_feat_out": 192,
        },
        NO_BIAS,
    ),
    "qwen3-embeds": Family("qwen3", {**RMS, "pooling_type": 3}, NO_BIAS),
}
"""Models that give embeddings, or rank, pooled as they say."""

TEXTS = (slice(0, 48), slice(7, 8), slice(20, 37))
"""Of a prompt the texts whose embeddings are stored."""
PATH = Path(__file__).parent / "encoders.npz"


def build(path, name: str, qtype: T = T.F32) -> None:
    """Writes a model's file, as families.build does."""
    families.build(path, name, qtype, of=ENCODERS)


def texts(name: str) -> list[np.ndarray]:
    """Token ids of a few texts, int32; one has a single token."""
    return [families.prompt(name)[text] for text in TEXTS]


def load(name: str) -> np.ndarray:
    """llama.cpp's vectors of the texts, pooled as the file says, float32 (texts, dim), or scores (texts, labels)."""
    with np.load(PATH) as f:
        return f[name]
