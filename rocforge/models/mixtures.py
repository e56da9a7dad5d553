"""Families with experts: deepseek, bailingmoe, ernie4_5-moe, glm4moe, dots1, bailingmoe2, hy_v3, olmoe, minimax-m2,
qwen2moe, lfm2moe."""

from __future__ import annotations

from typing import Any

from rocforge.models.hybrids import Lfm2
from rocforge.nn import MLP, Attention, Block, Module, MoE, Transformer
from rocforge.nn.reader import Reader
from rocforge.nn.shared_experts import with_shared


class DeepSeek(Transformer):
    """DeepSeek MoE: dense layers, then experts beside shared ones. Source: https://arxiv.org/abs/2401.06066."""

    architectures: tuple[str, ...] = ("deepseek",)
    models = "DeepSeek MoE"
    pre: tuple[str, str] = ("attn_norm", "ffn_norm")
    post: tuple[str | None, str | None] = (None, None)

    def block(self, layer: int, read: Reader) -> Block:
        ffn = self.mixture(layer, read) if read.has_experts(layer) else MLP(**read.mlp(layer))
        return Block(self.attention(layer, read), ffn, read.rms_norm, pre=self.pre, post=self.post)

    def attention(self, layer: int, read: Reader) -> Module:
        """A layer's."""
        return Attention(**read.attention(layer), rope=read.rope(False))

    def mixture(self, layer: int, read: Reader) -> Module:
        """A layer's experts, and those that every token takes."""
        return with_shared(MoE(**read.moe(layer), **self.gating(read)), read.shared_expert(layer))

    def gating(self, read: Reader) -> dict[str, Any]:
        """How weights come of the router's logits, as `nn.MoE` takes it."""
        return {"normalize": False}


class BailingMoE(DeepSeek):
    """Ling 1. Source: https://arxiv.org/abs/2503.05139."""

    architectures = ("bailingmoe",)
    models = "Ling 1"

    def block(self, layer: int, read: Reader) -> Block:
        return Block(self.attention(layer, read), self.mixture(layer, read), read.rms_norm)

    def gating(self, read: Reader) -> dict[str, Any]:
        return {"normalize": read.flag("expert_weights_norm", default=False)}


class Ernie45MoE(DeepSeek):
    """ERNIE 4.5: experts in every so many layers. Source: https://ernie.baidu.com/blog/posts/ernie4.5."""

    architectures = ("ernie4_5-moe",)
    models = "ERNIE 4.5 with experts"

    def block(self, layer: int, read: Reader) -> Block:
        if (layer + 1) % read.integer("interleave_moe_layer_step", 1, 1024):
            return Block(self.attention(layer, read), MLP(**read.mlp(layer)), read.rms_norm)
        return super().block(layer, read)

    def gating(self, read: Reader) -> dict[str, Any]:
        return {"normalize": True, "selection_bias": "optional"}


class Glm4MoE(DeepSeek):
    """GLM 4.5 to 4.7. Source: https://arxiv.org/abs/2508.06471."""

    architectures: tuple[str, ...] = ("glm4moe",)
    models = "GLM 4.5 to 4.7"
    pre = ("attn_norm", "post_attention_norm")

    def attention(self, layer: int, read: Reader) -> Attention:
        norms = "head" if read.has(layer, "attn_q_norm") else None
        return Attention(**read.attention(layer), rope=read.rope(True), norms=norms)

    def gating(self, read: Reader) -> dict[str, Any]:
        return {**read.gating("sigmoid"), "selection_bias": True}


class Dots1(Glm4MoE):
    """dots.llm1, and Ling 2 and Ring 2 of bailingmoe2. Sources: https://arxiv.org/abs/2506.05767, 2510.22115."""

    architectures: tuple[str, ...] = ("dots1", "bailingmoe2")
    models = "dots.llm1, Ling 2, Ring 2"
    pre = ("attn_norm", "ffn_norm")

    def attention(self, layer: int, read: Reader) -> Attention:
        return Attention(**read.attention(layer), rope=read.rope(True), norms="head")

    def gating(self, read: Reader) -> dict[str, Any]:
        return {**read.gating("sigmoid"), "selection_bias": "optional"}


class HyV3(Dots1):
    """Source: https://huggingface.co/tencent/Hy3."""

    architectures = ("hy_v3",)
    models = "Hy 3"

    def gating(self, read: Reader) -> dict[str, Any]:
        return {**read.gating("sigmoid"), "selection_bias": "bare"}


class Olmoe(Transformer):
    """Source: https://arxiv.org/abs/2409.02060."""

    architectures: tuple[str, ...] = ("olmoe",)
    models = "OLMoE"

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True), norms="whole")
        return Block(attn, MoE(**read.moe(layer), **self.gating(read)), read.rms_norm)

    def gating(self, read: Reader) -> dict[str, Any]:
        """How weights come of the router's logits, as `nn.MoE` takes it."""
        return {"normalize": False}


class MiniMaxM2(Olmoe):
    """Source: https://huggingface.co/MiniMaxAI/MiniMax-M2."""

    architectures = ("minimax-m2",)
    models = "MiniMax M2"

    def gating(self, read: Reader) -> dict[str, Any]:
        return {**read.gating("sigmoid"), "normalize": True, "selection_bias": True}


class Qwen2MoE(Transformer):
    """Source: https://arxiv.org/abs/2407.10671."""

    architectures = ("qwen2moe",)
    models = "Qwen 1.5, 2 with experts"

    def block(self, layer: int, read: Reader) -> Block:
        sizes = read.shared_expert(layer) or read.mlp(layer)
        ffn = with_shared(MoE(**read.moe(layer), normalize=False), sizes, gate=True)
        return Block(Attention(**read.attention(layer), rope=read.rope(True)), ffn, read.rms_norm)


class Lfm2MoE(Lfm2):
    """LFM2-8B-A1B. Source: https://arxiv.org/abs/2511.23404."""

    architectures = ("lfm2moe",)
    models = "LFM2 8B-A1B"

    def feed_forward(self, layer: int, read: Reader) -> Module:
        if not read.has_experts(layer):
            return super().feed_forward(layer, read)
        return MoE(**read.moe(layer), **{**read.gating("sigmoid"), "normalize": True}, selection_bias=True)
