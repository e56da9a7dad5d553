"""grok: Grok 1 and 2."""

import math
from types import MappingProxyType
from typing import Any

from rocforge.nn import MLP, Attention, Block, Module, MoE, Transformer
from rocforge.nn.reader import Reader
from rocforge.ops.activation import add, scale


class WithDense(Module):
    """A mixture beside a dense feed-forward: the sum of both over the square root of 2."""

    inline = True

    def __init__(self, mixture: MoE, dense: MLP):
        self.mixture, self.dense = mixture, dense

    def forward(self, x: Any) -> Any:
        return scale(add(self.mixture(x), self.dense(x)), math.sqrt(0.5))


class Grok(Transformer):
    """Norms on both sides, and constants on embeddings, scores and logits. Source: https://github.com/xai-org/grok-1."""

    architectures = ("grok",)
    models = "Grok 1, 2"
    defaults = MappingProxyType(
        {
            "embedding_scale": 78.38367176906169,
            "logit_scale": 0.5773502691896257,
            "attention.output_scale": 0.08838834764831845,
            "attn_logit_softcapping": 30.0,
            "rope.scaling.yarn_beta_fast": 8.0,
        }
    )

    def __init__(self, read: Reader):
        super().__init__(read)
        self.embedding_scale, self.logit_scale = read.factor("embedding_scale"), read.factor("logit_scale")
        self.softcap = read.factor("final_logit_softcapping")

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(
            **read.attention(layer),
            rope=read.rope(True),
            scale=read.factor("attention.output_scale"),
            softcap=read.factor("attn_logit_softcapping"),
        )
        experts = MoE(**read.moe(layer), activation="geglu")
        dense = MLP(**read.mlp(layer), activation="geglu") if read.has(layer, "ffn_up") else None
        ffn = experts if dense is None else WithDense(experts, dense)
        behind = "layer_output_norm" if read.has(layer, "layer_output_norm") else "post_ffw_norm"
        return Block(attn, ffn, read.rms_norm, post=("attn_output_norm", behind))
