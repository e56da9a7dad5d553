"""Small random models of families, made of what a model itself says of its tensors, as GGUF files.

A Family names an architecture and its metadata; the tensors are the parameters of the model that rocforge builds of
those, so that another program which reads the file agrees with it on their names and shapes, or refuses the file.
Values depend on the family's name and the seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

from golden.blocks import Source, random_tensor
from golden.models import VOCAB, add_vocabulary
from rocforge.models import build_model

GAINS = {
    "attn_q": 1.4,
    "attn_k": 1.4,
    "attn_qkv": 1.4,
    "attn_output": 1.5,
    "ffn_gate": 1.5,
    "ffn_down": 1.5,
    "output": 3.0,
}
"""Of matrices, over the one that keeps the size of what they multiply; 1 for others."""


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


PROMPT, GREEDY = 48, 16
ROWS = np.array([0, 20, PROMPT - 1, PROMPT + GREEDY - 1])
"""Positions whose logits are stored."""
NO_BIAS = ("bias",)
"""All of them, but those that no model does without."""
HEAD = ("output.bias",)
NEEDED = ("ssm_dt.bias", "ssm_conv1d.bias", "exp_probs_b.bias")
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
PARTIAL = {"rope_freqs.weight": [1.0] * 8 + [1e30] * 24}
WINDOWED_V = ("blk.0.attn_v.weight", "blk.1.attn_v.weight")
SHARED_BIAS = ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias", "output.bias")
SCALES = {"embedding_scale": 9.0, "residual_scale": 0.4, "logit_scale": 3.0}

FAMILIES = {
    "internlm2": Family("internlm2", RMS, NO_BIAS),
    "xverse": Family("xverse", RMS, NO_BIAS),
    "ernie4_5": Family("ernie4_5", RMS, NO_BIAS),
    "exaone": Family("exaone", RMS, NO_BIAS),
    "smollm3": Family("smollm3", {**RMS, "block_count": 4}, NO_BIAS),
    "arcee": Family("arcee", RMS, NO_BIAS),
    "granite": Family("granite", {**RMS, **SCALES, "attention.scale": 0.2}, NO_BIAS),
    "minicpm": Family("minicpm", {**RMS, "logit_scale": 3.0}, NO_BIAS),
    "minicpm-scales": Family("minicpm", {**RMS, **SCALES}, NO_BIAS),
    "exaone4": Family("exaone4", RMS, NO_BIAS),
    "exaone4-window": Family("exaone4", {**RMS, **NARROW, "block_count": 64, "attention.sliding_window": 24}, NO_BIAS),
    "command-r": Family("command-r", {**LAYER, "logit_scale": 0.25}, (*NO_BIAS, "output.weight")),
    "cohere2": Family(
        "cohere2",
        {**LAYER, "logit_scale": 0.25, "block_count": 4, "attention.sliding_window": 24},
        (*NO_BIAS, "output.weight"),
    ),
    "chatglm": Family("chatglm", {**RMS, "rope.dimension_count": 32}, AFTER, QKV),
    "glm4": Family("glm4", {**RMS, "rope.dimension_count": 32}, NO_BIAS),
    "seed_oss": Family("seed_oss", RMS, AFTER),
    "nemotron": Family("nemotron", {**LAYER, "rope.dimension_count": 32}, ("attn_q.bias", "output.bias")),
    "starcoder2": Family("starcoder2", LAYER, HEAD),
    "codeshell": Family("codeshell", LAYER, HEAD, QKV),
    "orion": Family("orion", LAYER, PLAIN),
    "stablelm": Family("stablelm", {**LAYER, "rope.dimension_count": 16}, PLAIN, ("ffn_norm.weight",)),
    "stablelm-parallel": Family("stablelm", {**LAYER, "rope.dimension_count": 16}, PLAIN),
    "olmo": Family("olmo", LAYER, NO_BIAS),
    "gpt2": Family("gpt2", LAYER, HEAD, QKV),
    "starcoder": Family("starcoder", LAYER, ("output.weight", "output.bias"), QKV),
    "gptneox": Family("gptneox", {**LAYER, "use_parallel_residual": True, "rope.dimension_count": 16}, HEAD, QKV),
    "gptneox-serial": Family("gptneox", {**LAYER, "use_parallel_residual": False}, HEAD, QKV),
    "phi2": Family("phi2", {**LAYER, "rope.dimension_count": 32}),
    "falcon": Family("falcon", LAYER, FALCON, QKV),
    "falcon-40b": Family("falcon", LAYER, FALCON, (*QKV, "attn_norm_2.weight")),
    "qwen": Family(
        "qwen",
        {**RMS, "attention.head_count_kv": 6},
        AFTER,
        QKV,
    ),
    "qwen35": Family("qwen35", {**DELTA, "attention.key_length": 48, "attention.value_length": 48}, NO_BIAS),
    "qwen35-interval": Family("qwen35", {**DELTA, "block_count": 6, "full_attention_interval": 2}, NO_BIAS),
    "qwen35moe": Family("qwen35moe", {**DELTA, **EXPERTS, **ONE}, NO_BIAS),
    "qwen3next": Family("qwen3next", {**DELTA, **EXPERTS, **ONE}, NO_BIAS),
    "granitemoe": Family(
        "granitemoe",
        {**RMS, **SCALES, **EXPERTS, "expert_feed_forward_length": 320, **ONE},
        NO_BIAS,
    ),
    "mamba2": Family("mamba2", {**RMS, **MAMBA2}, HEAD),
    "granitehybrid": Family(
        "granitehybrid",
        {**RMS, **SCALES, **MAMBA2, "ssm.inner_size": 384, "attention.head_count_kv": [0, 2, 0]},
        SHARED_BIAS,
    ),
    "nemotron_h": Family("nemotron_h", NEMOTRON_H, ("output.bias",)),
    "falcon-h1": Family("falcon-h1", {**RMS, **MAMBA2}, SHARED_BIAS, ("ssm_norm.weight",)),
    "lfm2": Family("lfm2", {**RMS, "attention.head_count_kv": [0, 2, 0], "shortconv.l_cache": 3}, NO_BIAS),
    "deepseek": Family("deepseek", {**RMS, **MIXTURE}, NO_BIAS),
    "glm4moe": Family("glm4moe", {**RMS, **MIXTURE, "rope.dimension_count": 16, "expert_weights_norm": True}, NO_BIAS),
    "dots1": Family("dots1", {**RMS, **MIXTURE, **SIGMOID, "attention.head_count_kv": 6}, NO_BIAS),
    "bailingmoe2": Family("bailingmoe2", {**RMS, **MIXTURE, **SIGMOID, **GROUPS}, NO_BIAS, QKV),
    "olmoe": Family("olmoe", {**RMS, **FULL, "expert_count": 6, "expert_used_count": 2}, NO_BIAS),
    "ernie4_5-moe": Family("ernie4_5-moe", {**RMS, **EXPERTS, **ONE, "interleave_moe_layer_step": 1, **LEAD}, NO_BIAS),
    "minimax-m2": Family(
        "minimax-m2",
        {**RMS, **SIGMOID, **EXPERTS, "expert_feed_forward_length": 320, "rope.dimension_count": 16},
        NO_BIAS,
    ),
    "qwen2moe": Family("qwen2moe", {**RMS, **EXPERTS, **ONE}, AFTER),
    "lfm2moe": Family(
        "lfm2moe",
        {
            **RMS,
            **EXPERTS,
            **SIGMOID,
            "attention.head_count_kv": [0, 2, 0],
            "shortconv.l_cache": 3,
            "leading_dense_block_count": 1,
        },
        NO_BIAS,
    ),
    "deepseek2": Family("deepseek2", {**LATENT, **SIGMOID, **GROUPS, **LATENT_YARN, **LOG}, NO_BIAS),
    "deepseek2-lite": Family(
        "deepseek2",
        {**LATENT, "attention.q_lora_rank": 0, **LATENT_YARN},
        (*NO_BIAS, "exp_probs_b.bias"),
    ),
    "deepseek2-old": Family(
        "deepseek2",
        {**RMS, **MIXTURE, **OLD, **FULL, "attention.q_lora_rank": 0},
        (*NO_BIAS, "exp_probs_b.bias"),
        ("attn_kv_b.weight",),
    ),
    "mistral4": Family(
        "mistral4",
        {**LATENT, **LATENT_YARN, **LOG, "attention.temperature_scale": 0.3, "attention.temperature_length": 16},
        NO_BIAS,
    ),
    "glm-dsa": Family("glm-dsa", {**LATENT, **INDEXER}, NO_BIAS, unread=UNREAD),
    "deepseek32": Family("deepseek32", {**LATENT, **INDEXER, **SIGMOID, **LATENT_YARN, **LOG}, NO_BIAS, unread=UNREAD),
    "minicpm3": Family("minicpm3", {**RMS, **OLD, "attention.q_lora_rank": 56, **FULL}, NO_BIAS, ("attn_kv_b.weight",)),
    "plm": Family("plm", {**RMS, **OLD, **FULL}, (*NO_BIAS, "output.weight"), ("attn_kv_b.weight", "attn_q.weight")),
    "kimi-linear": Family(
        "kimi-linear",
        {
            **LATENT,
            **SIGMOID,
            "attention.head_count_kv": [0, 1, 0],
            "attention.q_lora_rank": 0,
            "kda.head_dim": 64,
            "ssm.conv_kernel": 4,
        },
        NO_BIAS,
    ),
    "llama4": Family(
        "llama4",
        {**RMS, **EXPERTS, "expert_used_count": 1, "interleave_moe_layer_step": 2, "block_count": 4},
        NO_BIAS,
    ),
    "llama4-128": Family("llama4", {**RMS, **MANY, "interleave_moe_layer_step": 1, "block_count": 4}, NO_BIAS),
    "mistral3": Family("mistral3", {**RMS, **YARN, "attention.temperature_scale": 0.1}, NO_BIAS),
    "hunyuan-dense": Family("hunyuan-dense", RMS, NO_BIAS),
    "hunyuan_vl": Family("hunyuan_vl", {**RMS, "rope.dimension_sections": [6, 5, 5, 0]}, NO_BIAS),
    "hunyuan-moe": Family("hunyuan-moe", {**RMS, **EXPERTS, **ONE, "expert_feed_forward_length": 320}, NO_BIAS),
    "maincoder": Family("maincoder", RMS, NO_BIAS),
    "qwen2vl": Family("qwen2vl", {**NO_EPS, "rope.dimension_sections": [4, 6, 6, 0]}, AFTER),
    "qwen3vl": Family("qwen3vl", {**RMS, "rope.dimension_sections": [6, 5, 5, 0]}, NO_BIAS),
    "qwen3vlmoe": Family("qwen3vlmoe", {**RMS, **EXPERTS, "rope.dimension_sections": [6, 5, 5, 0]}, NO_BIAS),
    "phimoe": Family("phimoe", {**RMS, **EXPERTS, "expert_feed_forward_length": 320}),
    "nemotron_h_moe": Family(
        "nemotron_h_moe",
        {**NEMOTRON_H, **EXPERTS, **ONE, "expert_weights_norm": True, "expert_weights_scale": 2.5},
        ("output.bias",),
    ),
    "nemotron_h_moe-latent": Family(
        "nemotron_h_moe", {**NEMOTRON_H, **EXPERTS, **ONE, "moe_latent_size": 64}, ("output.bias",)
    ),
    "exaone-moe": Family("exaone-moe", {**RMS, **WINDOWS, **MIXTURE, **SIGMOID, "expert_shared_count": 1}, NO_BIAS),
    "afmoe": Family("afmoe", {**RMS, **WINDOWS, **MIXTURE, **SIGMOID}, NO_BIAS),
    "mellum": Family("mellum", {**RMS, **WINDOWS, **EXPERTS, **YARN16}, NO_BIAS),
    "cohere2moe": Family(
        "cohere2moe",
        {**LAYER, **WINDOWS, **MIXTURE, "logit_scale": 0.25, "block_count": 5},
        (*NO_BIAS, "output.weight"),
    ),
    "cohere2moe-plain": Family(
        "cohere2moe", {**RMS, **WINDOWS, **EXPERTS, "leading_dense_block_count": 0, "logit_scale": 0.25}, NO_BIAS
    ),
    "bailingmoe": Family("bailingmoe", {**RMS, **MIXTURE, "expert_weights_norm": True}, NO_BIAS),
    "hy_v3": Family(
        "hy_v3", {**RMS, **MIXTURE, **SIGMOID, "expert_shared_count": 1}, NO_BIAS, ("ffn_gate_up_exps.weight",)
    ),
    "pangu-embedded": Family("pangu-embedded", RMS, (*HEAD, "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias")),
    "paddleocr": Family("paddleocr", {**RMS, "rope.dimension_sections": [4, 6, 6, 0]}, NO_BIAS),
    "baichuan": Family("baichuan", {**RMS, **NARROW, "block_count": 32}, NO_BIAS),
    "plamo": Family("plamo", RMS, NO_BIAS),
    "openelm": Family("openelm", {**RMS, **OPENELM}, (*NO_BIAS, "output.weight"), QKV),
    "apertus": Family("apertus", {**RMS, **XIELU}, NO_BIAS),
    "jais2": Family("jais2", LAYER, HEAD),
    "dbrx": Family(
        "dbrx",
        {**LAYER, **EXPERTS, "expert_feed_forward_length": 320, "attention.clamp_kqv": 0.6},
        NO_BIAS,
        QKV,
    ),
    "olmo-clip": Family("olmo", {**LAYER, "attention.clamp_kqv": 0.6}, NO_BIAS),
    "grok": Family("grok", {**RMS, **EXPERTS, "embedding_scale": 9.0, "final_logit_softcapping": 9.0}, NO_BIAS),
    "grok-1": Family(
        "grok",
        {**RMS, **EXPERTS, "embedding_scale": 9.0, "attn_logit_softcapping": 2.0, "attention.output_scale": 0.3},
        NO_BIAS,
        ("ffn_up.weight", "layer_output_norm.weight"),
    ),
    "deci": Family("deci", {**RMS, **DECI}, NO_BIAS),
    "arctic": Family("arctic", {**RMS, **EXPERTS, "expert_feed_forward_length": 320}, NO_BIAS),
    "plamo3": Family("plamo3", {**RMS, **WINDOWS, "block_count": 8, "attention.sliding_window": 8}, NO_BIAS, QKV),
    "glm4-sections": Family("glm4", {**RMS, "rope.dimension_sections": [4, 6, 6, 0]}, NO_BIAS),
    "mamba": Family("mamba", {**RMS, **MAMBA1}, HEAD),
    "mamba-falcon": Family("mamba", {**RMS, **MAMBA1, "ssm.dt_b_c_rms": True}, HEAD),
    "jamba": Family("jamba", {**RMS, **MAMBA1, "attention.head_count_kv": [0, 2, 0]}, (*NO_BIAS, "output.weight")),
    "jamba-moe": Family(
        "jamba",
        {**RMS, **MAMBA1, **EXPERTS, "expert_feed_forward_length": 320, "attention.head_count_kv": [0, 2, 0]},
        NO_BIAS,
        ("ffn_gate_inp.weight",),
    ),
    "laguna": Family(
        "laguna",
        {**RMS, **WINDOWS, **MIXTURE, **SIGMOID, **YARN16, **LAGUNA, "expert_shared_count": 1},
        NO_BIAS,
    ),
    "mimo2": Family("mimo2", {**RMS, **MIMO2, **EXPERTS}, NO_BIAS, ("attn_sinks.weight", "ffn_gate_inp.weight")),
    "mimo2-dense": Family("mimo2", {**RMS, **MIMO2, **EXPERTS, "attention.value_scale": 1.0}, NO_BIAS, QKV),
    "smallthinker": Family(
        "smallthinker",
        {**RMS, **EXPERTS, "expert_gating_func": 2, "attention.sliding_window": 4096, "block_count": 5},
        NO_BIAS,
    ),
    "smallthinker-plain": Family("smallthinker", {**RMS, **EXPERTS, "expert_gating_func": 1}, NO_BIAS),
    "spark2_5": Family("spark2_5", {**RMS, **LAGUNA, **HEAD_DIM, **TWO}, NO_BIAS),
    "granite_swa": Family("granite_swa", {**RMS, **SCALES, **SPARK, "attention.rope_pattern": [1, 0, 1]}, NO_BIAS),
    "granite_swa-moe": Family(
        "granite_swa",
        {**RMS, **SCALES, **SPARK, **EXPERTS, **ONE, "expert_feed_forward_length": 320},
        NO_BIAS,
        ("ffn_gate_up_exps.weight",),
    ),
    "step35": Family(
        "step35",
        {**RMS, **HEAD_DIM, **SPARK, **EXPERTS, **ONE, **STEP35, **SIGMOID},
        NO_BIAS,
        ("attn_gate.weight", "attn_q_norm.weight", "ffn_gate_inp.weight"),
    ),
    "step35-dense": Family("step35", {**RMS, **HEAD_DIM, **SPARK, **EXPERTS, **STEP35}, NO_BIAS),
    "gemma": Family("gemma", RMS, (*NO_BIAS, "output.weight")),
    "gemma4": Family("gemma4", GEMMA4, (*NO_BIAS, "output.weight"), WINDOWED_V, PARTIAL, gains=SOFT),
    "gemma4-wide": Family(
        "gemma4",
        {
            **GEMMA4,
            "embedding_length": 96,
            "feed_forward_length": 160,
            "block_count": 2,
            "attention.head_count": 2,
            "attention.head_count_kv": 1,
            "attention.key_length": 512,
            "attention.value_length": 512,
            "attention.key_length_swa": 256,
            "attention.value_length_swa": 256,
            "attention.sliding_window_pattern": [True, False],
            "rope.dimension_count": 512,
            "rope.dimension_count_swa": 256,
        },
        (*NO_BIAS, "output.weight"),
        ("blk.0.attn_v.weight",),
        {"rope_freqs.weight": [1.0] * 64 + [1e30] * 192},
        gains=SOFT,
    ),
    "gemma4-experts": Family(
        "gemma4",
        {**GEMMA4, **EXPERTS},
        (*NO_BIAS, "output.weight"),
        (*WINDOWED_V, "ffn_gate_inp.weight", "ffn_gate_up_exps.weight"),
        PARTIAL,
        gains=SOFT,
    ),
    "gemma4-apart": Family(
        "gemma4",
        {**GEMMA4, **EXPERTS, "expert_feed_forward_length": 320},
        (*NO_BIAS, "layer_output_scale.weight", "ffn_down_exps.scale"),
        ("attn_v.weight", "ffn_gate_inp.weight", "ffn_gate_exps.weight"),
        PARTIAL,
        gains=SOFT,
    ),
    "gemma4-shared": Family(
        "gemma4",
        {
            **GEMMA4,
            "block_count": 5,
            "feed_forward_length": [320, 320, 640, 640, 640],
            "attention.head_count_kv": 1,
            "attention.sliding_window_pattern": [True, False, True, True, False],
            "attention.shared_kv_layers": 3,
            "embedding_length_per_layer_input": 24,
        },
        NO_BIAS,
        ("attn_v.weight",),
        PARTIAL,
        {"blk.3.attn_k.weight": (32, 192), "blk.3.attn_k_norm.weight": (32,)},
        CALM,
    ),
    "gemma3n": Family(
        "gemma3n",
        GEMMA3N,
        NO_BIAS,
        unread={
            f"blk.{layer}.{name}.weight": shape
            for layer in range(20, 23)
            for name, shape in {"attn_k": (64, 96), "attn_v": (64, 96), "attn_k_norm": (32,)}.items()
        },
        gains=CALM,
    ),
    "gemma3n-few": Family(
        "gemma3n",
        {
            **GEMMA3N,
            "block_count": 3,
            "attention.sliding_window_pattern": [True, False, True],
            "attention.shared_kv_layers": 0,
            "activation_sparsity_scale": [1.6448533535003662] * 3,
        },
        (*NO_BIAS, "output.weight"),
        gains=CALM,
    ),
}


class Skeleton(dict[str, Any]):
    """Stands for a file of that metadata while its model is built: the embedding, and the layers' names."""

    def __init__(self, family: Family, keys: dict[str, Any]):
        super().__init__({"token_embd.weight": np.empty((VOCAB, keys["embedding_length"]), np.float32)})
        for layer in range(keys["block_count"]):
            names = ("attn_output.weight", *family.present)
            self.update({name: np.empty(0, np.float32) for name in in_layer(layer, names)})
            if "ffn_up.weight" in family.present:  # with the gate's rows
                size = (2 * keys["feed_forward_length"], keys["embedding_length"])
                self[f"blk.{layer}.ffn_up.weight"] = np.empty(size, np.float32)
        self.update({name: np.array(values, np.float32) for name, values in family.constants.items()})
        named = {full_name(family.arch, key): value for key, value in keys.items()}
        self.metadata = {"general.architecture": family.arch, **named, "tokenizer.ggml.token_type_count": 2}


def in_layer(layer: int, names: Iterable[str]) -> list[str]:
    """Names of a layer's tensors, and whole ones as they are."""
    return [name if name.startswith("blk.") else f"blk.{layer}.{name}" for name in names]


def full_name(arch: str, key: str) -> str:
    """A key as files have it."""
    return key if key in XIELU else f"{arch}.{key}"


def metadata(family: Family) -> dict[str, Any]:
    """Metadata below the architecture's prefix; sizes are odd enough to betray shapes that are swapped."""
    common = {
        "context_length": 128,
        "vocab_size": VOCAB,
        "embedding_length": 192,
        "block_count": 3,
        "feed_forward_length": 320,
        "attention.head_count": 6,
        "attention.head_count_kv": 2,
        "rope.dimension_count": 32,
        "rope.freq_base": 10000.0,
    }
    return {**common, **family.metadata}


def tensors(name: str, of: dict[str, Family] = FAMILIES) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """Yields name, shape, mean and standard deviation of each tensor of a family's model."""
    family = of[name]
    keys = metadata(family)
    model = build_model(Skeleton(family, keys))
    unread = {path for layer in range(keys["block_count"]) for path in in_layer(layer, family.unread)}
    for path in sorted(unread):
        yield path, family.unread.get(path) or family.unread[path.split(".", 2)[2]], 0.0, 0.1
    for path, parameter in model.named_parameters():
        last = ".".join(path.split(".")[-2:])
        if last in family.without or (family.without[:1] == NO_BIAS and path.endswith(".bias") and last not in NEEDED):
            continue
        part = path.split(".")[-2]
        if "attn_kv_b.weight" in family.present and part in ("attn_k_b", "attn_v_b"):  # a file has both in one
            if part == "attn_k_b":
                heads, rank, own = parameter.shape
                rows = heads * (own + keys["attention.value_length"])
                yield path.replace("k_b", "kv_b"), (rows, rank), 0.0, 1 / math.sqrt(rank)
            continue
        gain = family.gains.get(part, 1.0)
        if path.endswith("ssm_a"):
            yield path, parameter.shape, -0.3, 0.1
            continue
        if path.endswith("bias"):
            yield path, parameter.shape, 0.0, 0.3
        elif len(parameter.shape) == 1:
            yield path, parameter.shape, gain, 0.2 * gain
        elif part in ("token_embd", "position_embd", "token_types", "per_layer_token_embd"):
            yield path, parameter.shape, 0.0, 0.25
        else:
            yield path, parameter.shape, 0.0, gain * GAINS.get(part, 1.0) / math.sqrt(parameter.shape[-1])


def build(path, name: str, qtype: T = T.F32, seed: int = 0, of: dict[str, Family] = FAMILIES) -> None:
    """Writes the file of a model of a family; matrices of this type where their rows are whole blocks, else Q8_0."""
    family = of[name]
    w = gguf.GGUFWriter(path, family.arch)
    w.add_name("random weights")
    add = {bool: w.add_bool, int: w.add_uint32, float: w.add_float32, str: w.add_string, list: w.add_array}
    for key, value in metadata(family).items():
        add[type(value)](full_name(family.arch, key), value)
    add_vocabulary(w)
    w.add_token_type_count(2)
    for tensor, shape, mean, std in tensors(name, of):
        kind = _type(qtype, tensor, shape)
        w.add_tensor(tensor, random_tensor(Source(name, tensor, seed=seed), kind, shape, mean, std), raw_dtype=kind)
    for tensor, values in family.constants.items():
        w.add_tensor(tensor, np.array(values, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def _type(qtype: T, name: str, shape: tuple[int, ...]) -> T:
    if len(shape) == 1 or name.startswith(("position_embd", "token_types")) or "ffn_gate_inp" in name or shape[-1] % 32:
        return T.F32
    return qtype if shape[-1] % gguf.GGML_QUANT_SIZES[qtype][0] == 0 else T.Q8_0


def prompt(name: str) -> np.ndarray:
    """The prompt tokens of a family, int32."""
    return (Source(name, "prompt").uniform(PROMPT) * VOCAB).astype(np.int32)


def load(name: str) -> dict[str, np.ndarray]:
    """llama.cpp's results: `tokens` int32, the prompt and those chosen greedily; `logits` float32 (ROWS, VOCAB)."""
    with np.load(Path(__file__).parent / "families.npz") as f:
        return {key: f[f"{name}/{key}"] for key in ("tokens", "logits")}
