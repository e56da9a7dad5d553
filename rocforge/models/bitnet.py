"""bitnet: weights of three values, and norms before the last product of attention and of the feed-forward."""

from __future__ import annotations

from typing import Any

from rocforge.nn import MLP, Attention, Block, Module, Parameter, RMSNorm, Transformer
from rocforge.nn.batch import Batch
from rocforge.nn.layers import Linear
from rocforge.nn.low_rank import add_updates
from rocforge.nn.reader import Reader
from rocforge.ops.activation import scale_columns
from rocforge.ops.linear import linear


class ScaledLinear(Linear):
    """`x @ weight.T * scale`: weight (rows, columns); scale (1,), where the file has one."""

    def __init__(self, columns: int, rows: int):
        super().__init__(columns, rows)
        self.scale: Any = Parameter(1, optional=True)

    def forward(self, x: Any) -> Any:
        y = linear(x, self.weight)
        y = y if self.scale is None else scale_columns(y, self.scale)
        add_updates([self], [y], x)
        return y


class SubNormAttention(Attention):
    """Attention with a norm of what the heads give."""

    def __init__(self, read: Reader, layer: int):
        super().__init__(**read.attention(layer), rope=read.rope(True))
        self.attn_sub_norm = RMSNorm(self.attn_output.weight.shape[1], read.eps)
        _scale(self, "attn_q", "attn_k", "attn_v", "attn_output")

    def forward(self, x: Any, batch: Batch) -> Any:
        q, k, v, _ = self.split([layer(x) for layer in self.projections])
        return self.attn_output(self.attn_sub_norm(self.attend(q, k, v, batch).reshape(len(q), -1)))


class SubNormMLP(MLP):
    """A feed-forward with a norm of the hidden layer."""

    def __init__(self, read: Reader, layer: int):
        super().__init__(**read.mlp(layer))
        self.ffn_sub_norm = RMSNorm(self.ffn_down.weight.shape[1], read.eps)
        _scale(self, "ffn_gate", "ffn_up", "ffn_down")

    def activate(self, projected: list[Any]) -> Any:
        return self.ffn_sub_norm(super().activate(projected))


def _scale(module: Module, *names: str) -> None:
    for name in names:
        rows, columns = getattr(module, name).weight.shape
        setattr(module, name, ScaledLinear(columns, rows))


class BitNet(Transformer):
    """BitNet b1.58. Source: Ma et al., https://arxiv.org/abs/2402.17764."""

    architectures = ("bitnet",)
    models = "BitNet b1.58"

    def block(self, layer: int, read: Reader) -> Block:
        return Block(SubNormAttention(read, layer), SubNormMLP(read, layer), read.rms_norm)
