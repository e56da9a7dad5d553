"""Mixtures whose layers differ in what they see: afmoe, exaone-moe, laguna, mimo2, mellum, cohere2moe."""

from __future__ import annotations

import math
from typing import Any

from rocforge.models.cohere import CommandR
from rocforge.models.mixtures import Dots1
from rocforge.nn import MLP, Attention, Block, Module, MoE, Transformer
from rocforge.nn.batch import Batch
from rocforge.nn.block import POST_NORMS
from rocforge.nn.layers import Scale
from rocforge.nn.reader import Reader
from rocforge.nn.shared_experts import with_shared
from rocforge.ops.activation import scale


class ExaoneMoE(Dots1):
    """Layers that see everything have no positions. Source: https://huggingface.co/LGAI-EXAONE/K-EXAONE-236B-A23B."""

    architectures: tuple[str, ...] = ("exaone-moe",)
    models = "K-EXAONE"

    def attention(self, layer: int, read: Reader) -> Attention:
        window = read.window(layer, every=4)
        rope = read.window_rope(True) if window else None
        return Attention(**read.attention(layer), rope=rope, window=window, norms="head")


class AFMoE(ExaoneMoE):
    """With norms on both sides, and gated attention. Source: https://huggingface.co/arcee-ai/Trinity-Mini."""

    architectures = ("afmoe",)
    models = "Trinity Nano, Mini, Large"
    post = POST_NORMS

    def __init__(self, read: Reader):
        super().__init__(read)
        self.embedding_scale = math.sqrt(self.config.dim)

    def attention(self, layer: int, read: Reader) -> Attention:
        rope = None if (layer + 1) % 4 == 0 else read.window_rope(True)
        window = read.window(layer, every=4)
        return Attention(**read.attention(layer), rope=rope, window=window, norms="head", gate=True)


class Laguna(ExaoneMoE):
    """Attention has a gate for each head, or each element. Source: https://huggingface.co/poolside/Laguna-XS.2."""

    architectures = ("laguna",)
    models = "Laguna XS, S, M"

    def attention(self, layer: int, read: Reader) -> Attention:
        window, sizes = read.window(layer, every=4, first=True), read.attention(layer)
        rope = read.window_rope(True, base=read.rope_base) if window else read.rope(True)
        gate = read.rows(layer, "attn_gate") == sizes["heads"] * sizes["value_dim"] or "heads"
        return Attention(**sizes, rope=rope, window=window, norms="head", gate=gate, gate_unit="softplus")


class ScaledAttention(Attention):
    """Attention whose result is scaled."""

    def __init__(self, factor: float | None, **options: Any):
        super().__init__(**options)
        self.factor = factor or 1.0

    def forward(self, x: Any, batch: Batch) -> Any:
        return scale(super().forward(x, batch), self.factor)


class MiMo2(Transformer):
    """Layers with a window have sinks; values are shorter than keys.

    Source: https://huggingface.co/XiaomiMiMo/MiMo-V2-Flash.
    """

    architectures = ("mimo2",)
    models = "MiMo V2 Flash"

    def block(self, layer: int, read: Reader) -> Block:
        window = read.window(layer)
        attn = ScaledAttention(
            read.factor("attention.value_scale"),
            **read.attention(layer),
            rope=read.window_rope(True, base=10000.0) if window else read.rope(True),
            window=window,
            sinks=read.has(layer, "attn_sinks"),
        )
        routed = read.has(layer, "ffn_gate_inp")
        ffn = MoE(**read.moe(layer), sigmoid=True, selection_bias="optional") if routed else MLP(**read.mlp(layer))
        return Block(attn, ffn, read.rms_norm)


class Mellum(Transformer):
    """Source: https://huggingface.co/JetBrains/Mellum2-12B-A2.5B-Instruct."""

    architectures = ("mellum",)
    models = "Mellum 2"

    def block(self, layer: int, read: Reader) -> Block:
        window = read.window(layer, every=4)
        rope = read.plain_rope(True) if window else read.rope(True)
        attn = Attention(**read.attention(layer), rope=rope, window=window, norms="head")
        return Block(attn, MoE(**read.moe(layer)), read.rms_norm)


class Halved(Module):
    """The mean of a mixture and its shared expert: half of their sum."""

    inline = True

    def __init__(self, mixture: Module):
        self.mixture, self.half = mixture, Scale(0.5)

    def forward(self, x: Any) -> Any:
        return self.half(self.mixture(x))


class Cohere2MoE(CommandR):
    """Of four layers the first sees everything, without positions but where it is dense.

    Source: https://huggingface.co/CohereLabs.
    """

    architectures = ("cohere2moe",)
    models = "Command A with experts"

    def norm(self, read: Reader) -> Module:
        rms = read.value("attention.layer_norm_rms_epsilon", None) is not None
        return read.rms_norm() if rms else read.layer_norm()

    def block(self, layer: int, read: Reader) -> Block:
        window, dense = read.window(layer, every=4, first=True), not read.has_experts(layer)
        rope = read.rope(False) if window or dense else None
        attn = Attention(**read.attention(layer), rope=rope, window=window)
        ffn = MLP(**read.mlp(layer)) if dense else self.mixture(layer, read)
        return Block(attn, ffn, lambda: self.norm(read), pre=("attn_norm", None), parallel=True)

    def mixture(self, layer: int, read: Reader) -> Module:
        """A layer's experts."""
        routed = MoE(**read.moe(layer), **read.gating("sigmoid"))
        sizes = read.shared_expert(layer)
        return Halved(with_shared(routed, sizes)) if sizes else routed
