"""phi3: Phi-3, 3.5 and 4, whose weights hold q, k, v and gate, up together; phimoe, with experts."""

from __future__ import annotations

from typing import Any

from rocforge.nn import Attention, Block, MergedMLP, Module, MoE, Parameter, Transformer
from rocforge.nn.reader import Reader
from rocforge.ops.activation import add_row
from rocforge.ops.norm import rms_norm


class Phi3(Transformer):
    """Source: Phi-3 Technical Report, https://arxiv.org/abs/2404.14219; LongRoPE: https://arxiv.org/abs/2402.13753.

    The window that Phi-3's files name is not applied, as llama.cpp does not: the converted files have it wrong.
    """

    architectures = ("phi3",)
    models = "Phi 3, 3.5, 4"

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True))
        return Block(attn, MergedMLP(**read.mlp(layer)), read.rms_norm)


class BiasedNorm(Module):
    """An RMS norm with a weight and a bias (dim,)."""

    def __init__(self, dim: int, eps: float):
        self.weight: Any = Parameter(dim)
        self.bias: Any = Parameter(dim)
        self.eps = eps

    def forward(self, x: Any) -> Any:
        return add_row(rms_norm(x, self.weight, self.eps), self.bias)


class PhiMoE(Transformer):
    """Its norms subtract no mean, and experts are weighed by a softmax, as llama.cpp has it.

    Source: https://arxiv.org/abs/2404.14219.
    """

    architectures = ("phimoe",)
    models = "Phi 3.5 MoE, Phi mini MoE"

    def norm(self, read: Reader) -> Module:
        return BiasedNorm(read.config.dim, read.eps)

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True))
        return Block(attn, MoE(**read.moe(layer)), lambda: self.norm(read))
