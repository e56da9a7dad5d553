"""What the families' models are put together of: a Family, and pieces of metadata that several have."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """A small model.

    Attributes:
        arch: general.architecture.
        metadata: below the architecture's prefix, beside and above the common ones.
        without: tensors of optional parameters that it has not, by their last names.
        present: tensors that the family looks for to know the model's kind, by their last names or whole ones.
        constants: tensors that say how to compute, which are no parameters, by their values.
        unread: shapes of tensors that are in a file, and not read, by their names in all layers or whole ones.
        gains: of tensors by their last names, over those of other families.
    """

    arch: str
    metadata: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    constants: dict[str, list[float]] = field(default_factory=dict)
    unread: dict[str, tuple[int, ...]] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)


NO_BIAS = ("bias",)
"""All of them, but those that no model does without."""
HEAD = ("output.bias",)
NEEDED = ("ssm_dt.bias", "ssm_conv1d.bias", "exp_probs_b.bias", "time_mix_ln.bias")
QKV = ("attn_qkv.weight",)
RMS = {"attention.layer_norm_rms_epsilon": 1e-5}
NO_EPS = {"attention.layer_norm_rms_epsilon": 1e-9}
"""Of qwen2vl, where llama.cpp leaves it out."""
LAYER = {"attention.layer_norm_epsilon": 1e-5}
AFTER = ("attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias", "output.bias")
PLAIN = ("attn_q.bias", "attn_k.bias", "attn_v.bias", *AFTER)
FALCON = (*PLAIN, "attn_qkv.bias")
DELTA = {
    "attention.layer_norm_rms_epsilon": 1e-5,
    "block_count": 4,
    "rope.dimension_sections": [3, 3, 2, 0],
    "rope.dimension_count": 16,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 64,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 6,
    "ssm.inner_size": 6 * 64,
}
EXPERTS = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 96}
MANY = {"expert_count": 128, "expert_used_count": 1, "expert_feed_forward_length": 32}
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 8.0,
    "rope.scaling.original_context_length": 16,
    "rope.scaling.yarn_log_multiplier": 1.0,
}
YARN16 = {**YARN, "rope.scaling.yarn_log_multiplier": 0.0}
MIXTURE = {**EXPERTS, "expert_shared_count": 2, "leading_dense_block_count": 1, "expert_weights_scale": 1.5}
SIGMOID = {"expert_gating_func": 2, "expert_weights_norm": True}
GROUPS = {"expert_group_count": 3, "expert_group_used_count": 2}
FULL, LEAD = {"attention.head_count_kv": 6}, {"leading_dense_block_count": 1}
NARROW = {"embedding_length": 96, "feed_forward_length": 96, "attention.head_count": 3, "attention.head_count_kv": 1}
ONE = {"expert_shared_feed_forward_length": 48}
HEAD_DIM = {"attention.key_length": 32, "attention.value_length": 32}
MAMBA2 = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 128,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 6,
    "ssm.inner_size": 6 * 32,
}
LATENT = {
    **RMS,
    **MIXTURE,
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": 56,
    "attention.kv_lora_rank": 80,
    "attention.key_length": 96,
    "attention.value_length": 80,
    "attention.key_length_mla": 48,
    "attention.value_length_mla": 40,
    "rope.dimension_count": 16,
}
OLD = {
    "attention.kv_lora_rank": 80,
    "attention.key_length": 48,
    "attention.value_length": 40,
    "rope.dimension_count": 16,
}
INDEXER = {
    "attention.indexer.head_count": 4,
    "attention.indexer.key_length": 64,
    "attention.indexer.top_k": 128,
}
UNREAD = {
    "indexer.k_norm.weight": (64,),
    "indexer.k_norm.bias": (64,),
    "indexer.proj.weight": (4, 192),
    "indexer.attn_k.weight": (64, 192),
    "indexer.attn_q_b.weight": (4 * 64, 56),
}
VISION = {
    "vis_attn_qkv.weight": (576, 192),
    "vis_attn_output.weight": (192, 192),
    "vis_gate.weight": (320, 192),
    "vis_up.weight": (320, 192),
    "vis_down.weight": (192, 320),
}
LOG = {"rope.scaling.yarn_log_multiplier": 0.07}
LATENT_YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
MAMBA1 = {"ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.time_step_rank": 12, "ssm.inner_size": 384}
LAGUNA = {"rope.freq_base_swa": 5000.0, "rope.dimension_count_swa": 16}
SPARK = {"attention.sliding_window": 24, "attention.sliding_window_pattern": [True, True, False]}
TWO = {
    "block_count": 2,
    "attention.head_count": [6, 8],
    "attention.sliding_window": 24,
    "attention.sliding_window_pattern": [True, False],
}
"""Of spark2_5, whose GELU llama.cpp rounds to float16."""
STEP35 = {
    "attention.head_count": [4, 4, 6],
    "rope.freq_base_swa": 5000.0,
    "swiglu_clamp_exp": [0.0, 0.6, 0.4],
    "swiglu_clamp_shexp": [0.0, 0.0, 0.3],
}
MIMO2 = {
    **SPARK,
    "attention.head_count_kv": [3, 3, 2],
    "attention.key_length": 32,
    "attention.value_length": 16,
    "attention.value_scale": 0.7,
    "rope.dimension_count": 16,
    "rope.freq_base_swa": 5000.0,
}
NEMOTRON_H = {
    **LAYER,
    **MAMBA2,
    "block_count": 5,
    "attention.head_count_kv": [0, 0, 2, 0, 0],
    "feed_forward_length": [0, 320, 0, 320, 0],
    **HEAD_DIM,
}
OPENELM = {
    "attention.head_count": [6, 4, 8],
    "attention.head_count_kv": [2, 1, 4],
    "feed_forward_length": [320, 256, 384],
    **HEAD_DIM,
}
XIELU = {
    "xielu.alpha_n": [0.3, 0.8, -0.5],
    "xielu.alpha_p": [0.5, 0.2, 1.1],
    "xielu.beta": [0.5, 0.4, 0.6],
    "xielu.eps": [-1e-6, -1e-6, -0.1],
}
"""Keys that have no prefix."""
DECI = {
    "block_count": 5,
    "attention.head_count": [6, 0, 6, 0, 6],
    "attention.head_count_kv": [2, 0, 0, 0, 3],
    "feed_forward_length": [320, 256, 320, 0, 128],
    **HEAD_DIM,
}
WINDOWS = {"attention.sliding_window": 24, "block_count": 4}
GEMMA4 = {
    **RMS,
    "attention.head_count": 4,
    "attention.head_count_kv": [2, 2, 1],
    "attention.key_length": 64,
    "attention.value_length": 64,
    "attention.key_length_swa": 32,
    "attention.value_length_swa": 32,
    "attention.sliding_window": 24,
    "attention.sliding_window_pattern": [True, True, False],
    "rope.dimension_count": 64,
    "rope.dimension_count_swa": 32,
    "rope.freq_base": 1000000.0,
    "rope.freq_base_swa": 10000.0,
    "embedding_length_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
}
GEMMA3N = {
    **RMS,
    "block_count": 23,
    "embedding_length": 96,
    "feed_forward_length": 160,
    "attention.head_count": 4,
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.sliding_window": 24,
    "attention.sliding_window_pattern": [layer % 5 != 4 for layer in range(21)] + [False, True],
    "attention.shared_kv_layers": 3,
    "activation_sparsity_scale": [1.6448533535003662] * 10 + [-math.inf] * 13,
    "embedding_length_per_layer_input": 256,
    "altup.active_idx": 0,
    "altup.num_inputs": 4,
    "rope.freq_base": 1000000.0,
    "rope.freq_base_swa": 10000.0,
}
SOFT = {"attn_q_norm": 0.4, "attn_k_norm": 0.4}
"""Scores that are not scaled would else differ so much that small errors grow."""
CALM = {
    **SOFT,
    **dict.fromkeys(("altup_predict_coef", "altup_correct_coef"), 0.1),
    **dict.fromkeys(("post_norm", "laurel_post_norm", "post_attention_norm", "post_ffw_norm"), 0.2),
}
"""For many layers."""
PLAMO2 = {
    **HEAD_DIM,
    "attention.head_count_kv": [0, 2, 0],
    "ssm.conv_kernel": 4,
    "ssm.state_size": 64,
    "ssm.group_count": 0,
    "ssm.time_step_rank": 6,
    "ssm.inner_size": 6 * 32,
}
RWKV = {"attention.head_count": 0, "attention.head_count_kv": 0, "wkv.head_size": 64}
RWKV6 = {**RWKV, "time_mix_extra_dim": 32, "time_decay_extra_dim": 64}
RWKV7 = {
    **RWKV,
    "attention.decay_lora_rank": 32,
    "attention.iclr_lora_rank": 64,
    "attention.value_residual_mix_lora_rank": 32,
    "attention.gate_lora_rank": 96,
}
UNREAD_VALUES = {
    "blk.0.time_mix_v0.weight": (192,),
    "blk.0.time_mix_v1.weight": (64, 192),
    "blk.0.time_mix_v2.weight": (192, 64),
}
SHIFTS = {
    "time_mix_lerp_fused": 6.0,
    "time_mix_r_k": 0.3,
    "time_mix_w0": 0.4,
    "time_mix_decay": -1.0,
    **dict.fromkeys((f"time_mix_lerp_{i}" for i in "xwkvrg"), 0.5),
    **dict.fromkeys((f"channel_mix_lerp_{i}" for i in "kr"), 0.5),
}
"""Of RWKV: tokens before that count for some, and a memory of more than a token."""
PARTIAL = {"rope_freqs.weight": [1.0] * 8 + [1e30] * 24}
WINDOWED_V = ("blk.0.attn_v.weight", "blk.1.attn_v.weight")
SHARED_BIAS = ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias", "output.bias")
SCALES = {"embedding_scale": 9.0, "residual_scale": 0.4, "logit_scale": 3.0}
