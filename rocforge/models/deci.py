"""deci: Llama Nemotron 51B, Super and Ultra, whose layers have less of what a llama's layers have, or none of it."""

from __future__ import annotations

from typing import Any

from rocforge.models.llama import Llama
from rocforge.nn import MLP, Block, Linear, MixerBlock, Module
from rocforge.nn.batch import Batch
from rocforge.nn.reader import Reader


class LinearMixer(Module):
    """In place of attention, a product with one matrix (attn_output)."""

    inline = True

    def __init__(self, dim: int):
        self.attn_output = Linear(dim, dim)

    def forward(self, x: Any, batch: Batch) -> Any:
        return self.attn_output(x)


class Unchanged(Module):
    """A layer that has nothing."""

    def forward(self, x: Any, batch: Batch) -> Any:
        return x


class Deci(Llama):
    """Source: Puzzle, https://arxiv.org/abs/2411.19146."""

    architectures = ("deci",)
    models = "Llama Nemotron 51B, Super, Ultra"

    def block(self, layer: int, read: Reader) -> Module:
        names = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
        heads, kv_heads, ffn = (read.per_layer(name)[layer] for name in names)
        mlp = MLP(**read.mlp(layer)) if ffn else None
        if not heads:
            return MixerBlock(mlp, read.rms_norm, stateful=False, name="ffn_norm") if mlp else Unchanged()
        mixer = self.attention(layer, read) if kv_heads else LinearMixer(read.config.dim)
        return Block(mixer, mlp, read.rms_norm) if mlp else MixerBlock(mixer, read.rms_norm, stateful=True)
