"""plamo2: PLaMo 2."""

from __future__ import annotations

from typing import Any

from rocforge.gguf.metadata import MOST
from rocforge.models.plamo3 import PlamoBlock
from rocforge.nn import Attention, MergedMLP, Module, Parameter, Transformer
from rocforge.nn.mamba2 import NormedMamba2
from rocforge.nn.reader import Reader
from rocforge.ops.activation import scale_columns
from rocforge.ops.norm import rms_norm


class HeadsNorm(Module):
    """RMS norms of heads, each of which has a weight of its own: weight (heads, head_dim)."""

    def __init__(self, heads: int, head_dim: int, eps: float):
        self.weight: Any = Parameter(heads, head_dim, matrix=False)
        self.eps = eps

    def forward(self, x: Any) -> Any:
        rows = rms_norm(x, None, self.eps).reshape(len(x), -1)
        return scale_columns(rows, self.weight.reshape(-1)).reshape(x.shape)


class Plamo2(Transformer):
    """A state, or attention where a layer has key heads. Source: https://huggingface.co/pfnet/plamo-2-1b."""

    architectures = ("plamo2",)
    models = "PLaMo 2"

    def block(self, layer: int, read: Reader) -> PlamoBlock:
        return PlamoBlock(self.mixer(layer, read), MergedMLP(**read.mlp(layer)), read)

    def mixer(self, layer: int, read: Reader) -> Module:
        """A layer's attention, or state."""
        if not read.per_layer("attention.head_count_kv")[layer]:
            return NormedMamba2(**self.sizes(read))
        attn = Attention(**read.attention(layer), rope=read.rope(True), norms="head")
        head_dim = read.head_dim(layer)
        attn.attn_q_norm = HeadsNorm(attn.heads, head_dim, read.eps)
        attn.attn_k_norm = HeadsNorm(attn.kv_heads, head_dim, read.eps)
        return attn

    def sizes(self, read: Reader) -> dict[str, Any]:
        """Those of layers with a state."""
        heads, inner = read.integer("ssm.time_step_rank", 1, MOST), read.integer("ssm.inner_size", 1, MOST)
        if inner % heads:
            raise read.error("ssm.inner_size", f"multiples of {heads} heads")
        return {
            "dim": read.config.dim,
            "heads": heads,
            "state_dim": read.integer("ssm.state_size", 1, MOST),
            "inner": inner,
            "rank": max(64, read.config.dim // 16),
            "width": read.integer("ssm.conv_kernel", 2, 64),
            "eps": read.eps,
        }
