"""plamo3: PLaMo 3."""

from __future__ import annotations

from typing import Any

from rocforge.nn import Attention, MergedMLP, Module, Parameter, Transformer
from rocforge.nn.batch import Batch
from rocforge.nn.reader import Reader
from rocforge.ops.norm import rms_norm


class PlamoBlock(Module):
    """A block whose norms behind attention and feed-forward are tensors without .weight, as the files name them."""

    def __init__(self, attn: Module, ffn: Module, read: Reader):
        self.attn_norm, self.attn, self.ffn_norm, self.ffn = read.rms_norm(), attn, read.rms_norm(), ffn
        self.post_attention_norm, self.post_ffw_norm = Parameter(read.config.dim), Parameter(read.config.dim)
        self.eps = read.eps

    def forward(self, x: Any, batch: Batch) -> Any:
        x = rms_norm(self.attn(self.attn_norm(x), batch), self.post_attention_norm, self.eps, residual=x)
        return rms_norm(self.ffn(self.ffn_norm(x)), self.post_ffw_norm, self.eps, residual=x)


class Plamo3(Transformer):
    """Seven layers of eight see a window. Source: https://huggingface.co/pfnet/plamo-3-nict-8b-base."""

    architectures = ("plamo3",)
    models = "PLaMo 3"

    def block(self, layer: int, read: Reader) -> Module:
        window = read.window(layer, every=8)
        rope = read.window_rope(True, base=10000.0) if window else read.rope(True)
        attn = Attention(**read.attention(layer), rope=rope, window=window, norms="head")
        return PlamoBlock(attn, MergedMLP(**read.mlp(layer)), read)
