"""Reader: the hyperparameters of a model file, each checked where a family reads it.

Source of the keys: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from rocforge.errors import GGUFError, UnsupportedModelError
from rocforge.gguf.metadata import MOST, REQUIRED, Metadata
from rocforge.nn.config import Config
from rocforge.nn.layers import LayerNorm, RMSNorm
from rocforge.ops.rope import RopeFrequencies, rope_frequencies

ROPE_TENSORS = {
    "factors": "rope_freqs.weight",
    "long": "rope_factors_long.weight",
    "short": "rope_factors_short.weight",
}
"""Tensors that say how to compute, not what to multiply with; a Reader reads them."""
EMBEDDING = "token_embd.weight"
RANK = 4
"""llama.cpp's pooling_type of models that rank."""
SCALINGS = ("none", "linear", "yarn", "longrope")
"""Known values of rope.scaling.type; longrope's scaling is in its factors."""
ENCODER: Mapping[str, Any] = MappingProxyType({"attention.causal": False})
"""Defaults of encoders."""
MOST_LAYERS, MOST_HEAD_DIM = 1024, 1 << 16
WINDOW_DIMENSIONS = "rope.dimension_count_swa"
"""The key of what is rotated of a head in layers with a window."""
LEAST, LARGEST = 1e-13, 1e12
"""Bounds of constants that are positive."""
BASES = (1.001, LARGEST)
"""Bounds of a rope base; YaRN divides by its logarithm."""


class Reader(Metadata):
    """What a family makes its blocks of: metadata below the architecture's prefix, and shapes of tensors.

    Methods that take a layer give what that layer has: a file may say it once for all layers, or for each.

    Args:
        file: a mapping of tensors with a `metadata` dict, as rf.open_gguf gives.
        context: the longest sequence to serve, in tokens; None for what the model was made for. LongRoPE picks its
            factors by it.
        defaults: values of keys that old files lack.

    Attributes:
        config: what all models have.
        predictors: layers behind those of the model, which predict further tokens. They are not run.

    Raises:
        GGUFError: a key is missing, or its value makes no sense; or the embedding is missing or no matrix. So do the
            methods.
    """

    def __init__(
        self, file: Any, context: int | None = None, defaults: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        architecture = Metadata(file.metadata).string("general.architecture")
        known = {f"{architecture}.{key}": value for key, value in defaults.items()}
        super().__init__({**known, **file.metadata}, f"{architecture}.")
        self.tensors = file
        self._ropes: dict[Any, RopeFrequencies] = {}
        self.predictors = self.integer("nextn_predict_layers", 0, MOST_LAYERS, default=0)
        most = min(_blocks(file) + self.predictors, MOST_LAYERS)
        self.config = Config(
            architecture=architecture,
            layers=self.integer("block_count", 1 + self.predictors, most) - self.predictors,
            dim=self.integer("embedding_length", 1, MOST),
            vocabulary=_embedding_rows(file),
            context=context or self.integer("context_length", 1, MOST),
        )

    @functools.cached_property
    def causal(self) -> bool:
        """Whether a token sees none after it; False of encoders."""
        return self.flag("attention.causal", default=True)

    @property
    def labels(self) -> Sequence[str]:
        """Of a model that ranks, by its pooling_type: what its scores are of. Of others none."""
        ranks = self.integer("pooling_type", default=None) == RANK
        return self.array("classifier.output_labels", str, default=["score"]) if ranks else ()

    def per_layer(self, key: str, default: Any = REQUIRED) -> list[Any]:
        """A value for each layer: the items of an array, or the one value of all.

        Raises:
            GGUFError: an array of another length.
        """
        value, layers = self.value(key, default), self.config.layers
        if not isinstance(value, (list, np.ndarray)):
            return [value] * layers
        if len(value) not in (layers, layers + self.predictors):
            raise self.error(key, f"one value, or arrays of {layers}, one a layer")
        return (value.tolist() if isinstance(value, np.ndarray) else list(value))[:layers]

    def general_number(self, layer: int, key: str) -> float:
        """A number of a layer, of a key without the architecture's prefix: one for all, or an item of an array."""
        value, layers = Metadata(self.tensors.metadata).value(key), self.config.layers
        numbers = np.atleast_1d(np.asarray(value, np.float64))
        if numbers.shape not in ((1,), (layers,)) or not np.isfinite(numbers).all():
            raise GGUFError(f"metadata {key} is {value!r:.80}; allowed are one number, or {layers}, one a layer")
        return float(numbers[min(layer, len(numbers) - 1)])

    def integer_of(self, layer: int, key: str, low: int, high: int, default: Any = REQUIRED) -> int:
        """An integer of a layer, low to high."""
        value = self.per_layer(key, default)[layer]
        if value is default or (type(value) is int and low <= value <= high):
            return value
        raise self.error(key, f"integers from {low} to {high}")

    def number_of(self, layer: int, key: str, low: float, high: float, default: Any = REQUIRED) -> float:
        """A number of a layer, low to high."""
        value = self.per_layer(key, default)[layer]
        if isinstance(value, (int, float)) and low <= value <= high:
            return float(value)
        raise self.error(key, f"numbers from {low:g} to {high:g}")

    @functools.cached_property
    def eps(self) -> float:
        """The epsilon of RMS norms; of layer norms, where a file has no other."""
        if self.value("attention.layer_norm_rms_epsilon", None) is None:
            return self.number("attention.layer_norm_epsilon", LEAST, 1.0)
        return self.number("attention.layer_norm_rms_epsilon", LEAST, 1.0)

    def rms_norm(self) -> RMSNorm:
        """A norm of the residual stream."""
        return RMSNorm(self.config.dim, self.eps)

    def layer_norm(self, affine: bool = True) -> LayerNorm:
        """A norm of the residual stream, with its mean subtracted; affine as in LayerNorm."""
        return LayerNorm(self.config.dim, self.number("attention.layer_norm_epsilon", LEAST, 1.0), affine)

    def attention(self, layer: int, suffix: str = "") -> dict[str, Any]:
        """Sizes of a layer's attention, as `nn.Attention` takes them; suffix as of the keys of its heads' sizes."""
        dim, key = self.config.dim, "attention.head_count"
        heads = self.integer_of(layer, key, 1, dim)
        kv_heads = self.integer_of(layer, f"{key}_kv", 1, heads, default=None) or heads
        if heads % kv_heads:
            raise self.error(f"{key}_kv", f"divisors of the {heads} heads")
        return {
            "dim": dim,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": self.head_dim(layer, f"attention.key_length{suffix}"),
            "value_dim": self.head_dim(layer, f"attention.value_length{suffix}"),
            "eps": self.eps,
            "merged": self.has(layer, "attn_qkv"),
            "causal": self.causal,
        }

    def has(self, layer: int, name: str) -> bool:
        """Whether a layer has a weight of that name."""
        return f"blk.{layer}.{name}.weight" in self.tensors

    def rows(self, layer: int, name: str) -> int:
        """Rows of a layer's weight of that name; 0 where it has none, or where the weight is not known."""
        name = f"blk.{layer}.{name}.weight"
        return self.tensors[name].shape[0] if name in self.tensors else 0

    def head_dim(self, layer: int, key: str = "attention.key_length") -> int:
        """Elements of a head's key, or value."""
        dim, given = self.config.dim, self.integer_of(layer, key, 1, MOST_HEAD_DIM, default=None)
        return given or dim // self.integer_of(layer, "attention.head_count", 1, dim)

    def mlp(self, layer: int) -> dict[str, Any]:
        """Sizes of a layer's feed-forward, as `nn.MLP` takes them."""
        return {"dim": self.config.dim, "ffn": self.integer_of(layer, "feed_forward_length", 1, MOST)}

    @functools.cached_property
    def experts(self) -> int:
        """How many experts there are; 0 for a dense model."""
        return self.integer("expert_count", 0, MOST, default=0)

    def moe(self, layer: int) -> dict[str, Any]:
        """Sizes of a layer's experts, as `nn.MoE` takes them."""
        if not self.experts:
            raise self.error("expert_count", "integers from 1")
        return {
            "dim": self.config.dim,
            "ffn": self.integer_of(layer, "expert_feed_forward_length", 1, MOST, default=self._expert_ffn(layer)),
            "experts": self.experts,
            "used": self.integer_of(layer, "expert_used_count", 1, self.experts),
            "scale": self.number("expert_weights_scale", 0.0, LARGEST, default=0.0) or 1.0,
            "groups": self._expert_groups(),
            "merged": self.has(layer, "ffn_gate_up_exps"),
        }

    def _expert_groups(self) -> tuple[int, int]:
        groups = self.integer("expert_group_count", 0, self.experts, default=0) or 1
        if self.experts % groups:
            raise self.error("expert_group_count", f"divisors of {self.experts} experts")
        return groups, self.integer("expert_group_used_count", 0, groups, default=0) or groups

    def gating(self, default: str) -> dict[str, Any]:
        """How weights come of a router's logits, as `nn.MoE` takes it.

        Args:
            default: "softmax" or "sigmoid", where the file does not say.
        """
        number = self.integer("expert_gating_func", 0, 3, default=0) or {"softmax": 1, "sigmoid": 2}[default]
        normalize = self.flag("expert_weights_norm", default=False)
        return {"sigmoid": number == 2, "softmax_before": number != 3, "normalize": normalize}

    def has_experts(self, layer: int) -> bool:
        """Whether a layer is behind those that have a dense feed-forward."""
        return layer >= self.integer("leading_dense_block_count", 0, self.config.layers, default=0)

    def shared_expert(self, layer: int) -> dict[str, Any] | None:
        """Sizes of a layer's shared expert, as `nn.SharedExpert` takes them; None where it has none."""
        key = "expert_shared_feed_forward_length"
        ffn = self.integer_of(layer, key, 0, MOST, default=0)
        count = self.integer("expert_shared_count", 0, MOST, default=0)
        ffn = ffn * (count or 1) if ffn else self.moe(layer)["ffn"] * count
        return {"dim": self.config.dim, "ffn": ffn} if ffn else None

    def _expert_ffn(self, layer: int) -> int:
        """What the layer's experts have, which not all files say."""
        for name, parts in (("ffn_gate_exps", 1), ("ffn_gate_up_exps", 2)):
            shape: tuple[int, ...] = self.tensors[f"blk.{layer}.{name}.weight"].shape if self.has(layer, name) else ()
            if len(shape) > 1:
                return shape[-2] // parts
        return self.integer_of(layer, "feed_forward_length", 1, MOST)

    def window(
        self, layer: int, every: int | None = None, default: int = 0, *, first: bool = False, around: bool = False
    ) -> int | None:
        """The sliding window of a layer in tokens, or None where it sees everything.

        Args:
            every: of how many layers the last sees everything, where the file does not say; None: all layers have the
                window.
            default: the window, where the file does not say.
            first: of so many layers it is the first that sees everything.
            around: in files of encoders half of the window is before a token, and half after it. It is given as layers
                that are not causal have it.

        Raises:
            UnsupportedModelError: a window of another kind in an encoder.
        """
        window = self.integer("attention.sliding_window", 0, MOST, default=default)
        if not window:
            return None
        if around == self.causal:
            problem = "causal" if around else "not causal"
            raise UnsupportedModelError(f"attention.sliding_window where attention is {problem} is not supported here")
        window = window // 2 + 1 if around else window
        key = "attention.sliding_window_pattern"
        pattern = self.value(key, every)
        if isinstance(pattern, (list, np.ndarray)):  # whether each layer has it
            return window if self.per_layer(key)[layer] else None
        if pattern is not every:
            pattern = self.integer(key, 0, MOST)
        return window if not pattern or (layer if first else layer + 1) % pattern else None

    def factor(self, key: str, default: float | None = None) -> float | None:
        """A factor, or a cap on scores or logits, over 0; None where there is none."""
        return self.number(key, 0.0, LARGEST, default=default) or None

    def recurrent(self, layer: int, every: int) -> bool:
        """Whether a layer has a state of fixed size instead of attention.

        Args:
            every: of how many layers the last has attention, where the file does not say.
        """
        key = "attention.recurrent_layers"
        if self.value(key, None) is not None:
            return bool(self.per_layer(key)[layer])
        return (layer + 1) % self.integer("full_attention_interval", 1, MOST, default=every) != 0

    def rope(self, neox: bool, share: int = 1, magnitude: float | None = None) -> RopeFrequencies:
        """The rotary embedding, scaled as the file says. Layers share it.

        Args:
            neox: as in RopeFrequencies.
            share: of the dimensions that the file names, one part of so many is rotated.
            magnitude: a factor on what is rotated, beside the file's and YaRN's own; None: as the file says.
        """
        if (neox, share) not in self._ropes:
            self._ropes[neox, share] = self._scaled_rope(neox, share, magnitude)
        return self._ropes[neox, share]

    @property
    def _rope_scale(self) -> float:
        """By how much the context grew."""
        older = self.number("rope.scale_linear", 0.0, LARGEST, default=0.0)
        return self.number("rope.scaling.factor", 0.0, LARGEST, default=older) or 1.0

    @property
    def yarn_scale(self) -> float:
        """By how much YaRN has made the context grow; 1 where it has not."""
        return self._rope_scale if self.string("rope.scaling.type", default="linear") == "yarn" else 1.0

    def _scaled_rope(self, neox: bool, share: int, magnitude: float | None) -> RopeFrequencies:
        read, config, named = self, self.config, self._rope_dimensions()
        dimensions = named // share
        original, scale = read.original_context, self._rope_scale
        if magnitude is None:
            log_multiplier = self.number("rope.scaling.yarn_log_multiplier", 0.0, LARGEST, default=0.0)
            magnitude = 1 / (1 + 0.1 * log_multiplier * math.log(scale))
        scaling = read.string("rope.scaling.type", default="linear")
        if scaling not in SCALINGS:
            raise read.error("rope.scaling.type", ", ".join(SCALINGS))
        which = (
            "factors" if ROPE_TENSORS["factors"] in self.tensors else "long" if config.context > original else "short"
        )
        return rope_frequencies(
            dimensions,
            self.rope_base,
            neox=neox,
            factors=self._factors(ROPE_TENSORS[which], named // 2, dimensions // 2),
            scaling=scaling if scaling in ("linear", "yarn") and scale != 1.0 else "none",
            scale=scale,
            original_context=original,
            magnitude=magnitude * read.number("rope.scaling.attn_factor", LEAST, LARGEST, default=1.0),
            beta_fast=read.number("rope.scaling.yarn_beta_fast", LEAST, LARGEST, default=32.0),
            beta_slow=read.number("rope.scaling.yarn_beta_slow", LEAST, LARGEST, default=1.0),
        )

    @property
    def original_context(self) -> int:
        """Tokens of the context before it was extended."""
        trained = self.integer("context_length", 1, MOST, default=self.config.context)
        return self.integer("rope.scaling.original_context_length", 1, MOST, default=trained)

    def window_rope(self, neox: bool, base: float | None = None) -> RopeFrequencies:
        """The rotary embedding of layers with a window: not scaled, of a base of their own. Layers share it.

        Args:
            neox: as in RopeFrequencies.
            base: where the file does not say; None: that of all layers, which then is the one embedding of all.
        """
        base = self.number("rope.freq_base_swa", *BASES, default=base)
        return (
            self.rope(neox) if base is None else self.plain_rope(neox, base, self._rope_dimensions(WINDOW_DIMENSIONS))
        )

    def plain_rope(self, neox: bool, base: float | None = None, dimensions: int | None = None) -> RopeFrequencies:
        """The rotary embedding, not scaled. Layers share it.

        Args:
            neox: as in RopeFrequencies.
            base, dimensions: None: those of all layers.
        """
        key = neox, base or self.rope_base, dimensions or self._rope_dimensions()
        if key not in self._ropes:
            self._ropes[key] = rope_frequencies(key[2], key[1], neox=neox)
        return self._ropes[key]

    @property
    def rope_base(self) -> float:
        """That of all layers but those with a window, where these have their own."""
        base = self.number("rope.freq_base", *BASES, default=10000.0)
        alpha, dim = self.number("rope.scaling.alpha", 0.0, LARGEST, default=0.0), self.head_dim(0)
        return base * alpha ** (dim / (dim - 2)) if alpha else base

    def _rope_dimensions(self, key: str = "rope.dimension_count") -> int:
        head_dim = self.head_dim(0)
        default = self._rope_dimensions() if key == WINDOW_DIMENSIONS else head_dim
        dimensions = self.integer(key, 2, head_dim, default=default)
        if dimensions % 2:
            raise self.error(key, f"even numbers to {head_dim}")
        return dimensions

    def _factors(self, name: str, count: int, used: int) -> np.ndarray | None:
        if name not in self.tensors:
            return None
        factors = np.asarray(self.tensors[name], np.float32)
        if factors.shape != (count,) or not (factors > 0).all():
            found = f"of shape {factors.shape}, from {factors.min(initial=np.inf):g}"
            raise GGUFError(f"tensor {name} is {found}; allowed are {count} numbers over 0")
        return factors[:used]


def _embedding_rows(file: Mapping[str, Any]) -> int:
    """The vocabulary, as the embedding has it."""
    if EMBEDDING not in file:
        raise GGUFError(f"tensor {EMBEDDING} is missing")
    shape = file[EMBEDDING].shape
    if len(shape) != 2 or 0 in shape:
        raise GGUFError(f"tensor {EMBEDDING} has shape {shape}; allowed is (vocabulary, embedding_length)")
    return shape[0]


def _blocks(file: Mapping[str, Any]) -> int:
    """How many blocks there are up to the last one with tensors."""
    numbers = (name.split(".", 2)[1] for name in file if name.startswith("blk."))
    return 1 + max((int(number) for number in numbers if re.fullmatch("[0-9]{1,5}", number)), default=-1)
