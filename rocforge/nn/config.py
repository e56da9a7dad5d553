"""Config: a model's sizes and constants, read from GGUF metadata.

Source of the keys: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rocforge.errors import GGUFError, UnsupportedModelError
from rocforge.ops.rope import RopeFrequencies, rope_frequencies

ROPE_TENSORS = {
    "factors": "rope_freqs.weight",
    "long": "rope_factors_long.weight",
    "short": "rope_factors_short.weight",
}
"""Tensors that say how to compute, not what to multiply with; read into the Config."""


@dataclass(frozen=True)
class Rope:
    """The metadata of a rotary embedding; see rocforge.ops.rope.rope_frequencies for what each means."""

    dimensions: int
    base: float
    scaling: str
    scale: float
    original_context: int
    magnitude: float
    beta_fast: float
    beta_slow: float
    factors: np.ndarray | None

    def frequencies(self, neox: bool) -> RopeFrequencies:
        """Frequencies of the scaled embedding; neox as in RopeFrequencies."""
        return rope_frequencies(
            self.dimensions,
            self.base,
            neox=neox,
            factors=self.factors,
            scaling=self.scaling,
            scale=self.scale,
            original_context=self.original_context,
            magnitude=self.magnitude,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
        )


@dataclass(frozen=True)
class Config:
    """Sizes and constants of a model; counts are in elements, contexts in tokens.

    Attributes:
        architecture: general.architecture.
        layers, dim, heads, kv_heads, head_dim, ffn, vocabulary: sizes; ffn is the feed-forward length.
        context: how many tokens a sequence may have.
        norm_eps: the epsilon of the normalizations.
        rope: of the layers that see everything.
        window, window_pattern, window_rope_base: the sliding window in tokens (0: none), every how many layers one sees
            everything, and the rope base of the others.
        attention_softcap, final_softcap: caps on scores and logits; 0 for none.
        experts, experts_used, expert_ffn, expert_scale: the mixture of experts; 0 experts for none.
    """

    architecture: str
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    context: int
    norm_eps: float
    rope: Rope
    window: int
    window_pattern: int | None
    window_rope_base: float | None
    attention_softcap: float
    final_softcap: float
    experts: int
    experts_used: int
    expert_ffn: int
    expert_scale: float

    @property
    def attention_scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)

    @classmethod
    def of(cls, file: Any, context: int | None = None) -> Config:
        """The configuration of an open GGUF file.

        Args:
            file: a mapping of tensors with a `metadata` dict, as rf.open_gguf gives.
            context: the longest sequence to serve, in tokens; None for what the model was made for. LongRoPE picks its
                factors by it.

        Raises:
            GGUFError: a key is missing, or its value makes no sense.
        """
        read = _Reader(file.metadata)
        dim, heads = read("embedding_length"), read("attention.head_count")
        head_dim = read("attention.key_length", dim // heads)
        if read("attention.value_length", head_dim) != head_dim:
            raise UnsupportedModelError("keys and values of different lengths are not supported")
        if "token_embd.weight" not in file:
            raise GGUFError("tensor token_embd.weight is missing")
        context = context or read("context_length")
        experts = read("expert_count", 0)
        ffn = read("feed_forward_length", 0)
        return cls(
            architecture=read.architecture,
            layers=read("block_count"),
            dim=dim,
            heads=heads,
            kv_heads=read("attention.head_count_kv", heads),
            head_dim=head_dim,
            ffn=ffn,
            vocabulary=file["token_embd.weight"].shape[0],
            context=context,
            norm_eps=read("attention.layer_norm_rms_epsilon"),
            rope=_rope(read, file, head_dim, context),
            window=read("attention.sliding_window", 0),
            window_pattern=read("attention.sliding_window_pattern", None),
            window_rope_base=read("rope.freq_base_swa", None),
            attention_softcap=read("attn_logit_softcapping", 0.0),
            final_softcap=read("final_logit_softcapping", 0.0),
            experts=experts,
            experts_used=read("expert_used_count", 0),
            expert_ffn=read("expert_feed_forward_length", ffn),
            expert_scale=read("expert_weights_scale", 0.0) or 1.0,
        )


_REQUIRED = object()


class _Reader:
    """Reads the keys of one architecture: numbers, and arrays of one repeated number."""

    def __init__(self, metadata: Mapping[str, Any]):
        self.metadata = metadata
        if "general.architecture" not in metadata:
            raise GGUFError("metadata general.architecture is missing")
        self.architecture = metadata["general.architecture"]

    def __call__(self, key: str, default: Any = _REQUIRED) -> Any:
        key = f"{self.architecture}.{key}"
        value = self.metadata.get(key, default)
        if value is _REQUIRED:
            raise GGUFError(f"metadata {key} is missing")
        if isinstance(value, (np.ndarray, list)):
            if len(set(value)) != 1:
                raise UnsupportedModelError(f"metadata {key} differs between layers, which is not supported: {value}")
            value = value[0].item() if isinstance(value, np.ndarray) else value[0]
        if default is _REQUIRED and not value > 0:
            raise GGUFError(f"metadata {key} is {value}; it must be positive")
        return value


def _rope(read: _Reader, file: Mapping[str, Any], head_dim: int, context: int) -> Rope:
    original = read("rope.scaling.original_context_length", read("context_length"))
    scale = read("rope.scaling.factor", read("rope.scale_linear", 0.0)) or 1.0
    scaling = read("rope.scaling.type", "linear")
    which = "factors" if ROPE_TENSORS["factors"] in file else "long" if context > original else "short"
    factors = np.asarray(file[ROPE_TENSORS[which]]) if ROPE_TENSORS[which] in file else None
    return Rope(
        dimensions=read("rope.dimension_count", head_dim),
        base=read("rope.freq_base", 10000.0),
        scaling=scaling if scaling in ("linear", "yarn") and scale != 1.0 else "none",
        scale=scale,
        original_context=original,
        magnitude=read("rope.scaling.attn_factor", 1.0),
        beta_fast=read("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=read("rope.scaling.yarn_beta_slow", 1.0),
        factors=factors,
    )
