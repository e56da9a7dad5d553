"""config.json as GGUF's metadata: a table of keys that all families share, their rope, and a few of each family's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rocforge.errors import CheckpointError, UnsupportedModelError

Config = Mapping[str, Any]

INTEGERS = {
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",),
}
"""GGUF's key, below the architecture's prefix -> the names that config.json has for it."""
FLOATS = {
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps",),
}
REQUIRED = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")


def text_config(config: Config, defaults: Config) -> dict[str, Any]:
    """The settings of the language model, which a multimodal config has in a part of its own; None counts as absent."""
    part = config.get("text_config")
    merged = {**config, **(part if isinstance(part, dict) else {})}
    return {**defaults, **{key: value for key, value in merged.items() if value is not None}}


def hyperparameters(config: Config) -> dict[str, Any]:
    """What all families have, by GGUF's keys below the prefix.

    Raises:
        CheckpointError: a setting is missing, or no number.
    """
    found: dict[str, Any] = {}
    for kind, table in ((int, INTEGERS), (float, FLOATS)):
        for key, names in table.items():
            name = next((name for name in names if name in config), None)
            if name is not None:
                found[key] = number(config, name, kind)
            elif key in REQUIRED:
                raise CheckpointError(f"config.json has no {names[0]}")
    return {**found, **rope(config)}


def number(config: Config, name: str, kind: type) -> Any:
    """A setting as an int or a float. Raises CheckpointError where it is missing, or no such number."""
    if name not in config:
        raise CheckpointError(f"config.json has no {name}")
    value = config[name]
    if type(value) not in (int, kind) or isinstance(value, bool):
        raise CheckpointError(
            f"config.json: {name} is {value!r}; it should be {'an integer' if kind is int else 'a number'}"
        )
    return kind(value)


def rope_settings(config: Config, layers: str = "full_attention") -> dict[str, Any]:
    """The settings of the rotary embedding of layers that see everything, or of "sliding_attention": in whichever way
    they are written, of which there have been three."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if "full_attention" in given or "sliding_attention" in given:
        return dict(given.get(layers) or {})
    if layers == "sliding_attention":
        base = config.get("rope_local_base_freq")
        return {} if base is None else {"rope_theta": base}
    outside = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    settings = {name: config[name] for name in outside if name in config} | dict(given)
    return {"rope_type": settings.get("type"), **settings}


def rope(config: Config) -> dict[str, Any]:
    """The rotary embedding's keys."""
    settings, found = rope_settings(config), dict[str, Any]()
    if "rope_theta" in settings:
        found["rope.freq_base"] = number(settings, "rope_theta", float)
    if local := rope_settings(config, "sliding_attention"):
        found["rope.freq_base_swa"] = number(local, "rope_theta", float)
    kind = settings.get("rope_type") or "default"
    if kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": number(settings, "factor", float)}
    elif kind not in ("default", "llama3", "longrope", "su"):  # the last three's scaling is in their factors
        raise CheckpointError(
            f"config.json: rope type {kind!r} is unknown; known are linear, yarn, longrope and llama3"
        )
    if kind == "yarn":
        found["rope.scaling.original_context_length"] = number(settings, "original_max_position_embeddings", int)
        for key, name in _YARN.items():
            if settings.get(name) is not None:
                found[f"rope.scaling.{key}"] = number(settings, name, float)
    return found


_YARN = {
    "yarn_ext_factor": "extrapolation_factor",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def head_dim(config: Config) -> int:
    """Elements of a head."""
    return int(
        config.get("head_dim") or number(config, "hidden_size", int) // number(config, "num_attention_heads", int)
    )


def llama(config: Config) -> dict[str, Any]:
    """The vocabulary, and how many elements of a head are rotated."""
    return {"vocab_size": number(config, "vocab_size", int), "rope.dimension_count": head_dim(config)}


def gemma2(config: Config) -> dict[str, Any]:
    """The caps, and the window."""
    caps = {name: number(config, name, float) for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    return {**caps, **window(config)}


def gemma3(config: Config) -> dict[str, Any]:
    """The window, which is not in every layer."""
    return window(config) if config.get("sliding_window_pattern") != 1 else {}


def window(config: Config) -> dict[str, Any]:
    """The sliding window."""
    return {"attention.sliding_window": number(config, "sliding_window", int)}


def gpt_oss(config: Config) -> dict[str, Any]:
    """The window, and the experts' width."""
    return {**window(config), "expert_feed_forward_length": number(config, "intermediate_size", int)}


def qwen3moe(config: Config) -> dict[str, Any]:
    """The experts' width."""
    return {"expert_feed_forward_length": number(config, "moe_intermediate_size", int)}


def phi3(config: Config) -> dict[str, Any]:
    """The share of a head that is rotated, LongRoPE's context and magnitude, and the window, which is not applied."""
    settings = rope_settings(config)
    rotated = settings.get("partial_rotary_factor", 1.0)
    width, heads = number(config, "hidden_size", int), number(config, "num_attention_heads", int)
    original = number(settings, "original_max_position_embeddings", int)
    found = {
        "rope.dimension_count": int(rotated * width) // heads,
        "rope.scaling.original_context_length": original,
        "attention.sliding_window": int(config.get("sliding_window") or 0),
    }
    if settings.get("long_factor"):
        longer = number(config, "max_position_embeddings", int) / original
        magnitude = math.sqrt(1 + math.log(longer) / math.log(original)) if longer > 1 else 1.0
        found["rope.scaling.attn_factor"] = magnitude
    return found


def bert(config: Config) -> dict[str, Any]:
    """That tokens see those after them; what else BERT may be made of is refused."""
    known = {"hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh"), "position_embedding_type": ("absolute",)}
    for name, allowed in known.items():
        if (value := config.get(name, allowed[0])) not in allowed:
            raise UnsupportedModelError(f"config.json: {name} is {value!r}; supported are {', '.join(allowed)}")
    return {"attention.causal": False}


def bert_ranks(config: Config) -> dict[str, Any]:
    """The same, with a classifier's labels."""
    labels = config.get("id2label") or {"0": "LABEL_0"}
    names = [str(labels[key]) for key in sorted(labels, key=int)]
    return {**bert(config), "pooling_type": POOLINGS["rank"], "classifier.output_labels": names}


POOLINGS = {"mean": 1, "cls": 2, "lasttoken": 3, "rank": 4}
"""GGUF's pooling_type by sentence-transformers' names; and of classifiers."""


def pooling(config: Config) -> dict[str, Any]:
    """How sentence-transformers' 1_Pooling/config.json has texts pooled; {} where there is none."""
    modes = [key for key, on in config.items() if key.startswith("pooling_mode") and on is True]
    names = [mode.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for mode in modes]
    if isinstance(config.get("pooling_mode"), str):
        names.append(config["pooling_mode"])
    if len(names) > 1 or any(name not in POOLINGS for name in names):
        raise UnsupportedModelError(f"1_Pooling/config.json asks for {names}; supported is one of mean, cls, lasttoken")
    return {"pooling_type": POOLINGS[names[0]]} if names else {}


def rope_tensors(config: Config) -> dict[str, np.ndarray]:
    """Factors of the rotary embedding's frequencies, which GGUF has as tensors, float32.

    Source of llama3's: https://arxiv.org/abs/2407.21783 as transformers has it; of LongRoPE's: the config.
    """
    settings = rope_settings(config)
    if settings.get("rope_type") == "llama3":
        return {"rope_freqs.weight": _llama3_factors(settings, head_dim(config))}
    if settings.get("long_factor"):
        names = ("long", "short")
        return {f"rope_factors_{n}.weight": np.array(settings[f"{n}_factor"], np.float32) for n in names}
    return {}


def _llama3_factors(settings: Config, dimensions: int) -> np.ndarray:
    """1 for short waves, the factor for long ones, between them what interpolates their inverses."""
    base = number(settings, "rope_theta", float)
    factor, low, high, original = (
        float(settings.get(name, default))
        for name, default in (
            ("factor", 8.0),
            ("low_freq_factor", 1.0),
            ("high_freq_factor", 4.0),
            ("original_max_position_embeddings", 8192),
        )
    )
    powers = np.arange(0, dimensions, 2, dtype=np.float32) / np.float32(dimensions)
    with np.errstate(all="raise"):
        waves = 2 * math.pi * np.power(np.float32(base), powers)
        smooth = np.clip((original / waves - low) / (high - low), 0, 1)
        return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


Extra = Callable[[Config], dict[str, Any]]
