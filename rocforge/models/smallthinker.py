"""smallthinker: SmallThinker, whose experts are chosen before attention."""

from __future__ import annotations

from typing import Any

from rocforge.nn import Attention, Module, MoE, Transformer
from rocforge.nn.batch import Batch
from rocforge.nn.reader import Reader
from rocforge.ops.activation import add


class ChosenBefore(Module):
    """A block whose router sees the residual stream before attention, not normalized."""

    def __init__(self, attn: Attention, experts: MoE, read: Reader):
        self.attn_norm, self.attn, self.ffn_norm, self.experts = read.rms_norm(), attn, read.rms_norm(), experts

    def forward(self, x: Any, batch: Batch) -> Any:
        chosen = self.experts.route(x)
        x = add(x, self.attn(self.attn_norm(x), batch))
        return add(x, self.experts.mix(self.ffn_norm(x), *chosen))


class SmallThinker(Transformer):
    """Of four layers the first sees everything, without positions. Source: https://arxiv.org/abs/2507.20984."""

    architectures = ("smallthinker",)
    models = "SmallThinker"

    def block(self, layer: int, read: Reader) -> Module:
        windows = read.integer("attention.sliding_window", 0, default=0)
        rope = None if windows and layer % 4 == 0 else read.window_rope(True)
        attn = Attention(**read.attention(layer), rope=rope, window=read.window(layer, every=4, first=True))
        gating = {**read.gating("softmax"), "normalize": True}
        return ChosenBefore(attn, MoE(**read.moe(layer), activation="reglu", **gating), read)
