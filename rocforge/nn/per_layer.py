"""Embeddings of tokens for each layer, what a layer adds of its own to the stream, and a factor on the stream."""

from __future__ import annotations

from typing import Any

from rocforge.nn.batch import Batch
from rocforge.nn.layers import Embedding, Factors, Linear, RMSNorm
from rocforge.nn.module import Module
from rocforge.ops.activation import add, geglu, scale


class LayerInputs(Module):
    """What each layer gets beside the stream: of its own embedding of the token, and of a projection of the stream.

    A call takes token ids (tokens,) and their embeddings x (tokens, dim); it gives float32 (tokens, layers, inner).

    Args:
        vocabulary, dim, layers: of the model.
        inner: elements of a layer's input.
        eps: of the norm.
    """

    inline = True

    def __init__(self, vocabulary: int, dim: int, layers: int, inner: int, eps: float):
        self.per_layer_token_embd = Embedding(vocabulary, layers * inner)
        self.per_layer_model_proj = Linear(dim, layers * inner)
        self.per_layer_proj_norm = RMSNorm(inner, eps)
        self.sizes = (layers, inner)

    def forward(self, tokens: Any, x: Any) -> Any:
        (_, inner), (count, dim) = self.sizes, x.shape
        projected = scale(self.per_layer_model_proj(x), dim**-0.5).reshape(count, *self.sizes)
        embedded = scale(self.per_layer_token_embd(tokens), inner**0.5).reshape(count, *self.sizes)
        return scale(add(self.per_layer_proj_norm(projected), embedded), 2**-0.5)


class PerLayerInput(Module):
    """What a layer's input adds to the stream: `post_norm(proj(gelu(inp_gate(x)) * input))`; x (tokens, dim).

    The input is the layer's of batch.layer_inputs.

    Args:
        dim: width of the residual stream.
        inner: elements of a layer's input.
        layer: its index.
        eps: of the norm.

    Source: Gemma 3n, https://huggingface.co/docs/transformers/model_doc/gemma3n.
    """

    inline = True

    def __init__(self, dim: int, inner: int, layer: int, eps: float):
        self.inp_gate, self.proj, self.post_norm = Linear(dim, inner), Linear(inner, dim), RMSNorm(dim, eps)
        self.layer = layer

    @property
    def projections(self) -> list[Module]:
        """What multiplies x."""
        return [self.inp_gate]

    def forward(self, x: Any, batch: Batch) -> Any:
        return self.post_norm(self.proj(self.mix([layer(x) for layer in self.projections], batch)))

    def mix(self, projected: list[Any], batch: Batch, consumer: Any = None) -> Any:
        """What proj takes, of what the projections give: floats for any consumer."""
        (gate,) = projected
        return geglu(gate, batch.layer_inputs[:, self.layer])


class LayerEnd(Module):
    """`layer_output_scale(x + per_layer(x))`.

    Args:
        per_layer: or None.
    """

    inline = True

    def __init__(self, per_layer: PerLayerInput | None):
        self.per_layer, self.layer_output_scale = per_layer, Factors(1, optional=True)

    def forward(self, x: Any, batch: Batch) -> Any:
        return self.layer_output_scale(x if self.per_layer is None else add(x, self.per_layer(x, batch)))
