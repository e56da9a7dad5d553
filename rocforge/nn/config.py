"""Config: a model's sizes and constants, read from GGUF metadata.

Source of the keys: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from rocforge.errors import GGUFError, UnsupportedModelError
from rocforge.gguf.metadata import MOST, REQUIRED, Metadata
from rocforge.ops.rope import RopeFrequencies, rope_frequencies

ROPE_TENSORS = {
    "factors": "rope_freqs.weight",
    "long": "rope_factors_long.weight",
    "short": "rope_factors_short.weight",
}
"""Tensors that say how to compute, not what to multiply with; read into the Config."""
EMBEDDING = "token_embd.weight"
SCALINGS = ("none", "linear", "yarn", "longrope")
"""Known values of rope.scaling.type; longrope's scaling is in its factors."""
MOST_LAYERS, MOST_HEAD_DIM = 1024, 1 << 16
LEAST, LARGEST = 1e-12, 1e12
"""Bounds of constants that are positive."""
BASES = (1.001, LARGEST)
"""Bounds of a rope base; YaRN divides by its logarithm."""


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
    def of(cls, file: Any, context: int | None = None, defaults: Mapping[str, Any] = MappingProxyType({})) -> Config:
        """The configuration of an open GGUF file. Every value is in its range and agrees with the others.

        Args:
            file: a mapping of tensors with a `metadata` dict, as rf.open_gguf gives.
            context: the longest sequence to serve, in tokens; None for what the model was made for. LongRoPE picks its
                factors by it.
            defaults: values of the architecture's keys that old files lack.

        Raises:
            GGUFError: a key is missing, or its value makes no sense; or the embedding is missing or no matrix.
            UnsupportedModelError: layers, or keys and values, differ in size.
        """
        architecture = Metadata(file.metadata).string("general.architecture")
        known = {f"{architecture}.{key}": value for key, value in defaults.items()}
        read = Metadata({**known, **file.metadata}, f"{architecture}.")
        rows = _embedding_rows(file)
        dim = read.integer("embedding_length", 1, MOST)
        heads = read.integer("attention.head_count", 1, dim)
        kv_heads = read.integer("attention.head_count_kv", 1, heads, default=heads)
        if heads % kv_heads:
            raise read.error("attention.head_count_kv", f"divisors of the {heads} heads")
        head_dim = read.integer("attention.key_length", 1, MOST_HEAD_DIM, default=dim // heads)
        if read.integer("attention.value_length", 1, MOST_HEAD_DIM, default=head_dim) != head_dim:
            raise UnsupportedModelError("keys and values of different lengths are not supported")
        experts = read.integer("expert_count", 0, MOST, default=0)
        ffn = read.integer("feed_forward_length", 0 if experts else 1, MOST, default=0 if experts else REQUIRED)
        context = context or read.integer("context_length", 1, MOST)
        return cls(
            architecture=architecture,
            layers=read.integer("block_count", 1, min(_blocks(file), MOST_LAYERS)),
            dim=dim,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=ffn,
            vocabulary=rows,
            context=context,
            norm_eps=read.number("attention.layer_norm_rms_epsilon", LEAST, 1.0),
            rope=_rope(read, file, head_dim, context),
            window=read.integer("attention.sliding_window", 0, MOST, default=0),
            window_pattern=read.integer("attention.sliding_window_pattern", 0, MOST, default=None),
            window_rope_base=read.number("rope.freq_base_swa", *BASES, default=None),
            attention_softcap=read.number("attn_logit_softcapping", 0.0, LARGEST, default=0.0),
            final_softcap=read.number("final_logit_softcapping", 0.0, LARGEST, default=0.0),
            experts=experts,
            experts_used=read.integer("expert_used_count", 1, experts) if experts else 0,
            expert_ffn=read.integer("expert_feed_forward_length", 1, MOST, default=_expert_ffn(file, ffn)),
            expert_scale=read.number("expert_weights_scale", 0.0, LARGEST, default=0.0) or 1.0,
        )


def _embedding_rows(file: Mapping[str, Any]) -> int:
    """The vocabulary, as the embedding has it."""
    if EMBEDDING not in file:
        raise GGUFError(f"tensor {EMBEDDING} is missing")
    shape = file[EMBEDDING].shape
    if len(shape) != 2 or 0 in shape:
        raise GGUFError(f"tensor {EMBEDDING} has shape {shape}; allowed is (vocabulary, embedding_length)")
    return shape[0]


def _blocks(file: Mapping[str, Any]) -> int:
    """How many blocks have tensors."""
    return len({name.split(".", 2)[1] for name in file if name.startswith("blk.")})


def _expert_ffn(file: Mapping[str, Any], ffn: int) -> int:
    """What the first block's experts have, which not all files say; without experts there, that of the model."""
    name = "blk.0.ffn_gate_exps.weight"
    return file[name].shape[-2] if name in file and len(file[name].shape) > 1 else ffn


def _rope(read: Metadata, file: Mapping[str, Any], head_dim: int, context: int) -> Rope:
    trained = read.integer("context_length", 1, MOST, default=context)
    original = read.integer("rope.scaling.original_context_length", 1, MOST, default=trained)
    older = read.number("rope.scale_linear", 0.0, LARGEST, default=0.0)
    scale = read.number("rope.scaling.factor", 0.0, LARGEST, default=older) or 1.0
    scaling = read.string("rope.scaling.type", default="linear")
    if scaling not in SCALINGS:
        raise read.error("rope.scaling.type", ", ".join(SCALINGS))
    dimensions = read.integer("rope.dimension_count", 2, head_dim, default=head_dim)
    if dimensions % 2:
        raise read.error("rope.dimension_count", f"even numbers to {head_dim}")
    which = "factors" if ROPE_TENSORS["factors"] in file else "long" if context > original else "short"
    return Rope(
        dimensions=dimensions,
        base=read.number("rope.freq_base", *BASES, default=10000.0),
        scaling=scaling if scaling in ("linear", "yarn") and scale != 1.0 else "none",
        scale=scale,
        original_context=original,
        magnitude=read.number("rope.scaling.attn_factor", LEAST, LARGEST, default=1.0),
        beta_fast=read.number("rope.scaling.yarn_beta_fast", LEAST, LARGEST, default=32.0),
        beta_slow=read.number("rope.scaling.yarn_beta_slow", LEAST, LARGEST, default=1.0),
        factors=_factors(file, ROPE_TENSORS[which], dimensions // 2),
    )


def _factors(file: Mapping[str, Any], name: str, count: int) -> np.ndarray | None:
    if name not in file:
        return None
    factors = np.asarray(file[name], np.float32)
    if factors.shape != (count,) or not (factors > 0).all():
        found = f"of shape {factors.shape}, from {factors.min(initial=np.inf):g}"
        raise GGUFError(f"tensor {name} is {found}; allowed are {count} numbers over 0")
    return factors
