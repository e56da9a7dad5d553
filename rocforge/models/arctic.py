"""arctic: Snowflake Arctic, whose experts see what attention sees."""

from __future__ import annotations

from typing import Any

from rocforge.nn import MLP, Attention, Module, MoE, Transformer
from rocforge.nn.batch import Batch
from rocforge.nn.reader import Reader
from rocforge.ops.activation import add


class ArcticBlock(Module):
    """A block of attention and feed-forward, and experts beside both."""

    def __init__(self, attn: Attention, ffn: MLP, experts: MoE, read: Reader):
        self.attn_norm, self.attn = read.rms_norm(), attn
        self.ffn_norm, self.ffn = read.rms_norm(), ffn
        self.ffn_norm_exps, self.experts = read.rms_norm(), experts

    def forward(self, x: Any, batch: Batch) -> Any:
        y = add(x, self.attn(self.attn_norm(x), batch))
        return add(add(y, self.ffn(self.ffn_norm(y))), self.experts(self.ffn_norm_exps(x)))


class Arctic(Transformer):
    """Source: https://www.snowflake.com/en/blog/arctic-open-efficient-foundation-language-models-snowflake/."""

    architectures = ("arctic",)
    models = "Snowflake Arctic"

    def block(self, layer: int, read: Reader) -> Module:
        dim, attn = read.config.dim, Attention(**read.attention(layer), rope=read.rope(False))
        return ArcticBlock(attn, MLP(dim, dim), MoE(**read.moe(layer)), read)
