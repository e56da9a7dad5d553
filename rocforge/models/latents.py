"""Families with multi-head latent attention: deepseek2, mistral4, deepseek32, glm-dsa, minicpm3, plm, kimi-linear."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from rocforge.gguf.metadata import MOST
from rocforge.models.mixtures import DeepSeek
from rocforge.nn import MLP, Block, KimiDeltaNet, LatentAttention, Module
from rocforge.nn.reader import LARGEST, Reader
from rocforge.ops.temperature import Temperature
from rocforge.quant import QuantizedArray

GLM_FLASH = (154880, (47, 48))
"""The vocabulary and the layers of files of GLM 4.7 Flash, of which old ones do not say that weights are sigmoids."""


class LatentSizes:
    """Sizes of latent attention, which layers share.

    Files of before April 2025 have attn_kv_b, and the lengths of a head's keys and values where others have those of
    the cache's rows.
    """

    def __init__(self, read: Reader):
        self.heads = read.integer_of(0, "attention.head_count", 1, read.config.dim)
        self.rank = read.integer("attention.kv_lora_rank", 1, MOST)
        self.shared = read.integer("rope.dimension_count", 2, MOST)
        self.old = not read.value("attention.key_length_mla", 0)
        key = "attention.key_length" if self.old else "attention.key_length_mla"
        self.own = read.integer(key, self.shared + 1, MOST) - self.shared
        self.value_dim = read.integer(key.replace("key", "value"), 1, MOST)

    @property
    def old_shape(self) -> tuple[int, int]:
        """Of attn_kv_b."""
        return self.heads * (self.own + self.value_dim), self.rank

    @property
    def now(self) -> dict[str, int]:
        """As files of today have them."""
        cached = {"head_count_kv": 1, "key_length": self.rank + self.shared, "value_length": self.rank}
        return {**cached, "key_length_mla": self.own + self.shared, "value_length_mla": self.value_dim}

    def split(self, kv_b: Any) -> tuple[Any, Any]:
        """attn_k_b (heads, rank, own), float32, and attn_v_b (heads, value_dim, rank), of attn_kv_b (heads * (own +
        value_dim), rank)."""
        each = kv_b.reshape(self.heads, self.own + self.value_dim, self.rank)
        keys, values = each[:, : self.own], each[:, self.own :]
        keys = keys.dequantize() if isinstance(keys, QuantizedArray) else keys.astype(np.float32)
        return np.ascontiguousarray(keys.swapaxes(1, 2)), values


class DeepSeek2(DeepSeek):
    """DeepSeek V2 and V3, and what has their form. Sources: https://arxiv.org/abs/2405.04434, 2412.19437."""

    architectures: tuple[str, ...] = ("deepseek2",)
    neox, rotates = False, True
    models = "DeepSeek V2 to V3.1, R1, Kimi K2, GLM 4.7 Flash"

    def __init__(self, read: Reader):
        self.sizes = LatentSizes(read)
        super().__init__(read)
        if self.sizes.old:
            self.metadata |= {f"{read.config.architecture}.attention.{key}": n for key, n in self.sizes.now.items()}

    def attention(self, layer: int, read: Reader) -> Module:
        magnitude, scale = self.yarn(read)
        sizes, none = self.sizes, read.has(layer, "attn_q")
        return LatentAttention(
            read.config.dim,
            sizes.heads,
            sizes.rank,
            sizes.own,
            sizes.shared,
            sizes.value_dim,
            read.rope(self.neox, magnitude=magnitude) if self.rotates else None,
            read.eps,
            query_rank=None if none else read.integer("attention.q_lora_rank", 0, MOST, default=0) or None,
            scale=scale / math.sqrt(sizes.own + sizes.shared),
            temperature=_temperature(read),
        )

    def yarn(self, read: Reader) -> tuple[float, float]:
        """YaRN's factors: on what is rotated, beside the usual `1 + 0.1 ln(scale)`, and on scores.

        Files have a tenth of the factor of that logarithm that the model was trained with.
        """
        log = math.log(read.yarn_scale)
        multiplier = 10 * read.number("rope.scaling.yarn_log_multiplier", 0.0, LARGEST, default=0.0)
        rotated = self.rotated_magnitude(multiplier, log)
        given = read.number("rope.scaling.attn_factor", 0.0, LARGEST, default=1.0)
        return rotated / (1 + 0.1 * log), (given * rotated * (1 + 0.1 * multiplier * log)) ** 2

    def rotated_magnitude(self, multiplier: float, log: float) -> float:
        """YaRN's factor on what is rotated, of a context that grew by e to the `log`."""
        return 1.0 if multiplier else 1 + 0.1 * log

    def gating(self, read: Reader) -> dict[str, Any]:
        glm = read.config.vocabulary == GLM_FLASH[0] and read.config.layers in GLM_FLASH[1]
        return {**read.gating("sigmoid" if glm else "softmax"), "selection_bias": "optional"}

    def arrays_of(self, name: str, array: Any) -> dict[str, Any]:
        if not name.endswith(".attn_kv_b.weight") or array.shape != self.sizes.old_shape:
            return {name: array}  # of another shape it has no place, which the model says
        keys, values = self.sizes.split(array)
        return {name.replace("kv_b", "k_b"): keys, name.replace("kv_b", "v_b"): values}


class Mistral4(DeepSeek2):
    """As DeepSeek V3, with scores that grow with the position."""

    architectures: tuple[str, ...] = ("mistral4",)
    models = "Mistral Small 4"

    def rotated_magnitude(self, multiplier: float, log: float) -> float:
        return (1 + 0.1 * log) / (1 + 0.1 * multiplier * log)


class DeepSeek32(Mistral4):
    """Sparse attention, of which the indexer that chooses what a token sees is left out: it sees all.

    Sources: https://arxiv.org/abs/2512.02556; GLM 5, https://huggingface.co/zai-org/GLM-5.
    """

    architectures = ("deepseek32", "glm-dsa")
    models = "DeepSeek V3.2, GLM 5, as far as they attend to all"

    def __init__(self, read: Reader):
        super().__init__(read)
        most, context = read.integer("attention.indexer.top_k", 1, MOST), read.config.context
        if context > most:
            warnings.warn(
                f"the model was trained to attend to {most} tokens that an indexer chooses, and attends to all here: "
                f"beyond {most} of the context's {context} tokens that is another model",
                stacklevel=2,
            )

    def gating(self, read: Reader) -> dict[str, Any]:
        return {**read.gating("sigmoid"), "selection_bias": "optional"}

    def is_read(self, name: str) -> bool:
        return ".indexer." not in name and super().is_read(name)


class MiniCPM3(DeepSeek2):
    """A dense model with MiniCPM's constants. Source: https://huggingface.co/openbmb/MiniCPM3-4B."""

    architectures = ("minicpm3",)
    models = "MiniCPM 3"
    neox = True

    def __init__(self, read: Reader):
        super().__init__(read)
        self.embedding_scale, self.logit_scale = 12.0, 256 / read.config.dim

    def block(self, layer: int, read: Reader) -> Block:
        scale = 1.4 / math.sqrt(read.config.layers)
        return Block(self.attention(layer, read), MLP(**read.mlp(layer)), read.rms_norm, residual_scale=scale)

    def yarn(self, read: Reader) -> tuple[float, float]:
        return 1.0, 1.0


class PLM(DeepSeek2):
    """A dense model whose feed-forward has no gate. Source: https://arxiv.org/abs/2503.12167."""

    architectures = ("plm",)
    models = "PLM 1.8B"

    def block(self, layer: int, read: Reader) -> Block:
        mlp = MLP(**read.mlp(layer), activation="relu_squared", gate=False)
        return Block(self.attention(layer, read), mlp, read.rms_norm)


class KimiLinear(DeepSeek2):
    """Three layers of four with a state of fixed size, the fourth with latents. Source: https://arxiv.org/abs/2510.26692."""

    architectures = ("kimi-linear",)
    models = "Kimi Linear 48B-A3B"
    rotates = False

    def attention(self, layer: int, read: Reader) -> Module:
        if read.per_layer("attention.head_count_kv")[layer]:
            return super().attention(layer, read)
        heads, head_dim = self.sizes.heads, read.integer("kda.head_dim", 1, MOST)
        return KimiDeltaNet(read.config.dim, heads, head_dim, read.integer("ssm.conv_kernel", 2, 64), read.eps)

    def gating(self, read: Reader) -> dict[str, Any]:
        return {**read.gating("sigmoid"), "normalize": True, "selection_bias": True}

    def arrays_of(self, name: str, array: Any) -> dict[str, Any]:
        if ".ssm_conv1d_" in name:  # some files have a fourth axis
            array = array.reshape(-1, 1, array.shape[-1])
        if name.endswith(".ssm_a"):
            array = array.reshape(-1, 1)
        return super().arrays_of(name, array)


def _temperature(read: Reader) -> Temperature | None:
    scale = read.number("attention.temperature_scale", 0.0, LARGEST, default=0.0)
    return Temperature(scale, read.integer("attention.temperature_length", 1, MOST)) if scale else None
