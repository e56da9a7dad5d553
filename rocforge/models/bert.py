"""BERT and its relatives, which normalize behind each layer: bert, nomic-bert and -moe, jina-bert-v2 and -v3."""

from __future__ import annotations

from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.gguf.metadata import Metadata
from rocforge.nn import MLP, Attention, MergedMLP, Module, MoE, Parameter, Transformer
from rocforge.nn.batch import Batch
from rocforge.nn.layers import Embedding, HookPoint
from rocforge.nn.reader import ENCODER, Reader
from rocforge.ops.activation import add
from rocforge.ops.embedding import embedding


class BertBlock(Module):
    """`x = attn_output_norm(x + attn(x))`, then the like with ffn; x (tokens, dim).

    With `attn_norm_2` there is a second norm, of the first one's result and x, before ffn.
    """

    def __init__(self, attn: Module, ffn: Module, read: Reader):
        self.attn, self.attn_output_norm = attn, read.layer_norm()
        self.attn_norm_2: Module | None = None
        self.ffn, self.layer_output_norm = ffn, read.layer_norm()

    def forward(self, x: Any, batch: Batch) -> Any:
        y = self.attn_output_norm(add(x, self.attn(x, batch)))
        x = y if self.attn_norm_2 is None else self.attn_norm_2(add(y, x))
        return self.layer_output_norm(add(x, self.ffn(x)))


class TokenTypes(Module):
    """Adds the first row of a weight (types, dim), where the file has one, to x (tokens, dim): all is of one text."""

    def __init__(self, types: int, dim: int):
        self.weight = Parameter(types, dim, optional=True)

    def forward(self, x: Any) -> Any:
        if self.weight is None:
            return x
        first = get_array_module(x).zeros(len(x), np.int32)
        return add(x, embedding(first, self.weight))


class JinaBertV3(Transformer):
    """Source: Sturua et al., https://arxiv.org/abs/2409.10173."""

    architectures: tuple[str, ...] = ("jina-bert-v3",)
    models = "Jina Embeddings 3"
    defaults = ENCODER

    def add_parts(self, read: Reader) -> None:
        types = Metadata(read.tensors.metadata, "tokenizer.ggml.").integer("token_type_count", 1)
        self.token_types = TokenTypes(types, self.config.dim)
        self.token_embd_norm = read.layer_norm()

    def embed(self, tokens: Any, batch: Batch) -> Any:
        return self.token_embd_norm(self.token_types(super().embed(tokens, batch)))

    def norm(self, read: Reader) -> Module:
        return HookPoint()  # the last block has normalized

    def block(self, layer: int, read: Reader) -> BertBlock:
        return BertBlock(Attention(**read.attention(layer), rope=read.rope(True)), self.feed_forward(layer, read), read)

    def feed_forward(self, layer: int, read: Reader) -> Module:
        """The feed-forward of a layer."""
        return MLP(**read.mlp(layer), activation="gelu", gate=False)


class Bert(JinaBertV3):
    """BERT, and what has its shape: MiniLM, BGE, E5, GTE, XLM-RoBERTa. Source: https://arxiv.org/abs/1810.04805."""

    architectures = ("bert",)
    models = "BERT, MiniLM, BGE, E5, Arctic Embed, XLM-RoBERTa"

    def positions(self, read: Reader) -> Module:
        return Embedding(read.integer("context_length", 1), read.config.dim)

    def block(self, layer: int, read: Reader) -> BertBlock:
        return BertBlock(Attention(**read.attention(layer), rope=None), self.feed_forward(layer, read), read)


class JinaBertV2(JinaBertV3):
    """Distances bias the scores, in place of positions; up to 8192 tokens. Source: https://arxiv.org/abs/2310.19923."""

    architectures = ("jina-bert-v2",)
    models = "Jina Embeddings 2"

    def block(self, layer: int, read: Reader) -> BertBlock:
        norms = "whole" if read.has(layer, "attn_q_norm") else None
        attn = Attention(**read.attention(layer), rope=None, alibi=8.0, norms=norms)
        if norms is not None:
            attn.attn_q_norm, attn.attn_k_norm = read.layer_norm(), read.layer_norm()
        block = BertBlock(attn, self.feed_forward(layer, read), read)
        block.attn_norm_2 = read.layer_norm() if read.has(layer, "attn_norm_2") else None
        return block

    def feed_forward(self, layer: int, read: Reader) -> Module:
        sizes, gate = read.mlp(layer), read.has(layer, "ffn_gate")
        if not gate and read.rows(layer, "ffn_up") == 2 * sizes["ffn"]:
            return MergedMLP(**sizes, activation="geglu", bias="optional")
        return MLP(**sizes, activation="geglu" if gate else "gelu", gate=gate)


class NomicBert(JinaBertV3):
    """Source: Nussbaum et al., https://arxiv.org/abs/2402.01613."""

    architectures = ("nomic-bert",)
    models = "Nomic Embed 1, 1.5"

    def feed_forward(self, layer: int, read: Reader) -> Module:
        return MLP(**read.mlp(layer))


class NomicBertMoE(JinaBertV3):
    """Every other layer has experts, without gates. Source: https://arxiv.org/abs/2502.07972."""

    architectures = ("nomic-bert-moe",)
    models = "Nomic Embed 2"

    def feed_forward(self, layer: int, read: Reader) -> Module:
        every = read.integer("moe_every_n_layers", 0, read.config.layers, default=0)
        if every and layer % every == 1:
            return MoE(**read.moe(layer), activation="gelu", gate=False, normalize=False)
        return super().feed_forward(layer, read)
