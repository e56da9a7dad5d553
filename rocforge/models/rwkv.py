"""Families with RWKV's mixers: rwkv6, rwkv6qwen2, rwkv7, arwkv7."""

from __future__ import annotations

from typing import Any

from rocforge.gguf.metadata import MOST
from rocforge.models.normed_embedding import NormedEmbedding
from rocforge.nn import MLP, Block, LayerNorm, Module, Transformer
from rocforge.nn.batch import Batch
from rocforge.nn.reader import Reader
from rocforge.nn.rwkv6 import ChannelMix6, LinearTimeMix6, TimeMix6
from rocforge.nn.rwkv7 import ChannelMix7, TimeMix7
from rocforge.ops.activation import add, scale

FIRST_SHARE = frozenset(f"blk.0.time_mix_v{i}.weight" for i in range(3))
"""Of the first layer's values in themselves, which files have all the same."""


class RwkvBlock(Module):
    """Time mix and channel mix around the residual stream, both with a state; x (tokens, dim).

    Args:
        attn, ffn: these; called with (x, batch).
        read: makes the norms.
        halves: whether the stream is halved at the end.
    """

    def __init__(self, attn: Module, ffn: Module, read: Reader, *, halves: bool = False):
        self.attn_norm, self.attn, self.attn_norm_2, self.ffn = read.layer_norm(), attn, read.layer_norm(), ffn
        self.halves = halves

    def forward(self, x: Any, batch: Batch) -> Any:
        x = add(x, self.attn(self.attn_norm(x), batch))
        x = add(x, self.ffn(self.attn_norm_2(x), batch))
        return scale(x, 0.5) if self.halves else x


class Rwkv(NormedEmbedding):
    """What RWKV's versions share: layer norms, one of them behind the embedding."""

    def norm(self, read: Reader) -> LayerNorm:
        return read.layer_norm()


class Rwkv7(Rwkv):
    """RWKV-7, Goose. Source: https://arxiv.org/abs/2503.14456."""

    architectures = ("rwkv7",)
    models = "RWKV 7"
    passes_values = True
    unread = FIRST_SHARE

    def block(self, layer: int, read: Reader) -> RwkvBlock:
        return RwkvBlock(TimeMix7(**sizes7(layer, read)), ChannelMix7(**read.mlp(layer)), read)


class Arwkv7(Transformer):
    """RWKV-7's heads in the place of Qwen 2's attention. Source: https://arxiv.org/abs/2501.15570."""

    architectures = ("arwkv7",)
    models = "ARWKV-7"
    passes_values = True
    unread = FIRST_SHARE

    def block(self, layer: int, read: Reader) -> Block:
        mixer = TimeMix7(**sizes7(layer, read), norm=read.has(layer, "time_mix_ln"))
        return Block(mixer, MLP(**read.mlp(layer)), read.rms_norm)


class Rwkv6(Rwkv):
    """RWKV-6, Finch. Source: https://arxiv.org/abs/2404.05892."""

    architectures = ("rwkv6",)
    models = "RWKV 6"

    def arrays_of(self, name: str, array: Any) -> dict[str, Any]:
        shares = "_lerp_" in name and "fused" not in name
        if shares or name.endswith(".time_mix_decay.weight"):  # old files have more axes, of one
            array = array.reshape(-1)
        return super().arrays_of(name, array)

    def block(self, layer: int, read: Reader) -> RwkvBlock:
        mixer = TimeMix6(**sizes6(read), fused=not read.has(layer, "time_mix_lerp_w"))
        every = read.integer("rescale_every_n_layers", 0, MOST, default=0)
        halves = every > 0 and (layer + 1) % every == 0
        return RwkvBlock(mixer, ChannelMix6(**read.mlp(layer)), read, halves=halves)


class Rwkv6Qwen2(Transformer):
    """Gated linear attention in the place of Qwen 2's. Source: https://huggingface.co/recursal/QRWKV6-32B-Instruct-Preview-v0.1."""

    architectures = ("rwkv6qwen2",)
    models = "QRWKV6"

    def block(self, layer: int, read: Reader) -> Block:
        sizes = sizes6(read)
        heads = read.config.dim // sizes["head_dim"]
        kv_heads = read.integer_of(layer, "attention.head_count_kv", 0, heads, default=0) or heads
        if heads % kv_heads:
            raise read.error("attention.head_count_kv", f"divisors of the {heads} heads")
        return Block(LinearTimeMix6(**sizes, kv_heads=kv_heads), MLP(**read.mlp(layer)), read.rms_norm)


def sizes6(read: Reader) -> dict[str, int]:
    """Sizes as TimeMix6 takes them."""
    ranks = {name: read.integer(f"time_{name}_extra_dim", 1, MOST) for name in ("mix", "decay")}
    return {"dim": read.config.dim, "head_dim": head_dim(read), **ranks}


def sizes7(layer: int, read: Reader) -> dict[str, Any]:
    """Sizes of a layer as TimeMix7 takes them."""
    keys = {"decay": "decay", "rate": "iclr", "share": "value_residual_mix"}
    ranks: dict[str, Any] = {name: read.integer(f"attention.{key}_lora_rank", 1, MOST) for name, key in keys.items()}
    ranks["share"] = ranks["share"] if layer else None
    gate = read.integer("attention.gate_lora_rank", 0, MOST, default=0)
    return {"dim": read.config.dim, "head_dim": head_dim(read), "gate": gate, **ranks}


def head_dim(read: Reader) -> int:
    """Elements of a head."""
    size = read.integer("wkv.head_size", 1, read.config.dim)
    if read.config.dim % size:
        raise read.error("wkv.head_size", f"divisors of {read.config.dim}, the embedding_length")
    return size
