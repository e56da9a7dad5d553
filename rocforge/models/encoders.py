"""Encoders that normalize before each layer: modern-bert, neo-bert, eurobert, llama-embed, gemma-embedding."""

import math
from typing import Any

from rocforge.models.llama import Llama
from rocforge.models.normed_embedding import NormedEmbedding
from rocforge.nn import MLP, Attention, Block, LayerNorm, MergedMLP, Transformer
from rocforge.nn.block import POST_NORMS
from rocforge.nn.layers import Linear
from rocforge.nn.reader import ENCODER, Reader

ACTIVATIONS = {"gelu": "geglu", "geglu": "geglu", "silu": "swiglu", "swish": "swiglu", "swiglu": "swiglu"}
"""Of hidden_activation the gated unit."""
MEAN = 1
"""llama.cpp's pooling_type of means."""


class LlamaEmbed(Llama):
    """Source: Babakhin et al., https://arxiv.org/abs/2511.07025."""

    architectures = ("llama-embed",)
    models = "Llama Embed Nemotron"
    defaults = ENCODER


class EuroBert(Llama):
    """Source: Boizard et al., https://arxiv.org/abs/2503.05500."""

    architectures = ("eurobert",)
    models = "EuroBERT"
    defaults = ENCODER
    neox = True


class NeoBert(Transformer):
    """Source: Le Breton et al., https://arxiv.org/abs/2502.19587."""

    architectures = ("neo-bert",)
    models = "NeoBERT"
    defaults = ENCODER
    output_norm_name = "enc.output_norm"

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(False))
        return Block(attn, MergedMLP(**read.mlp(layer)), read.rms_norm)


class ModernBert(NormedEmbedding):
    """Two layers of three see a window around each token, with a rope base of their own.

    Source: Warner et al., https://arxiv.org/abs/2412.13663.
    """

    architectures = ("modern-bert",)
    models = "ModernBERT, GTE ModernBERT, Granite Embedding R2"
    defaults = ENCODER
    classifier_activation = "gelu"

    def add_parts(self, read: Reader) -> None:
        super().add_parts(read)
        self.ranks_by = "mean" if read.integer("classifier.pooling_type", default=MEAN) == MEAN else "cls"

    def norm(self, read: Reader) -> LayerNorm:
        return read.layer_norm()

    def block(self, layer: int, read: Reader) -> Block:
        window = read.window(layer, every=3, first=True, around=True)
        rope = read.window_rope(True) if window else read.rope(True)
        attn = Attention(**read.attention(layer), rope=rope, window=window)
        activation = ACTIVATIONS.get(name := read.string("hidden_activation", default="gelu"))
        if activation is None:
            raise read.error("hidden_activation", f"{', '.join(ACTIVATIONS)}, not {name}")
        pre = ("attn_norm" if layer or read.has(layer, "attn_norm") else None, "ffn_norm")
        return Block(attn, MergedMLP(**read.mlp(layer), activation=activation), read.layer_norm, pre=pre)


class GemmaEmbedding(Transformer):
    """Gemma 3's blocks, of which five of six see a window around each token. Source: https://arxiv.org/abs/2509.20354."""

    architectures = ("gemma-embedding",)
    models = "EmbeddingGemma"
    defaults = ENCODER

    def add_parts(self, read: Reader) -> None:
        dim = self.config.dim
        self.embedding_scale = math.sqrt(dim)
        hidden = read.integer("dense_2_feat_out", 1, default=None)
        self.dense = [] if hidden is None else ["dense_2", "dense_3"]
        for name, sizes in zip(self.dense, ((dim, hidden), (hidden, dim)), strict=False):
            setattr(self, name, Linear(*sizes))

    def block(self, layer: int, read: Reader) -> Block:
        window = read.window(layer, every=6, around=True)
        rope = read.window_rope(True) if window else read.rope(True)
        attn = Attention(**read.attention(layer), rope=rope, window=window, norms="head")
        return Block(attn, MLP(**read.mlp(layer), activation="geglu"), read.rms_norm, post=POST_NORMS)

    def project(self, pooled: Any) -> Any:
        """Through both dense layers, where the file has them."""
        for name in self.dense:
            pooled = getattr(self, name)(pooled)
        return pooled
