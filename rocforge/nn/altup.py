"""Alternating updates: a layer computes one of several residual streams, and predicts and corrects the others.

Streams are float32, shape (streams, tokens, dim). Source: Baykal et al., https://arxiv.org/abs/2301.13310, as Gemma 3n
has it, https://huggingface.co/docs/transformers/model_doc/gemma3n.
"""

from __future__ import annotations

from typing import Any

from rocforge.nn.attention import Attention
from rocforge.nn.batch import Batch
from rocforge.nn.layers import Factors, Linear, RMSNorm
from rocforge.nn.mlp import MLP
from rocforge.nn.module import Module
from rocforge.nn.parameter import Parameter
from rocforge.nn.per_layer import PerLayerInput
from rocforge.ops import altup
from rocforge.ops.activation import add, geglu, scale, softcap, sparsify
from rocforge.ops.linear import linear


class SparseMLP(MLP):
    """A feed-forward with a gelu gate, of which only what stands out by so many deviations is let through."""

    def __init__(self, dim: int, ffn: int, deviations: float):
        super().__init__(dim, ffn, "geglu")
        self.deviations = deviations

    def activate(self, projected: list[Any]) -> Any:
        gate, up = projected
        return geglu(sparsify(gate, self.deviations), up)


class Laurel(Module):
    """A second path beside attention: `x + laurel_post_norm(laurel_r(laurel_l(x)))`.

    Source: Menghani et al., LAuReL, https://arxiv.org/abs/2411.07501.
    """

    inline = True

    def __init__(self, dim: int, rank: int, eps: float):
        self.laurel_l, self.laurel_r = Linear(dim, rank), Linear(rank, dim)
        self.laurel_post_norm = RMSNorm(dim, eps)

    def forward(self, x: Any) -> Any:
        return add(x, self.laurel_post_norm(self.laurel_r(self.laurel_l(x))))


class AltUpBlock(Module):
    """A layer of several streams (streams, tokens, dim): it predicts all, computes one, and corrects all by that one.

    Args:
        dim: width of a stream.
        streams: how many there are.
        active: the index of the one that is computed.
        attn, ffn: attention and feed-forward of that one.
        laurel: beside attention.
        per_layer: what the layer's input adds to all streams but the first.
        eps: of norms.
    """

    def __init__(
        self,
        dim: int,
        streams: int,
        active: int,
        attn: Attention,
        ffn: MLP,
        laurel: Laurel,
        per_layer: PerLayerInput,
        eps: float,
    ):
        self.altup_router_norm, self.altup_router = RMSNorm(dim, eps), Linear(dim, streams)
        self.altup_predict_coef = Linear(streams, streams * streams)
        self.attn_norm, self.laurel, self.attn = RMSNorm(dim, eps), laurel, attn
        self.post_attention_norm, self.ffn_norm, self.ffn = RMSNorm(dim, eps), RMSNorm(dim, eps), ffn
        self.post_ffw_norm = RMSNorm(dim, eps)
        self.altup_correct_coef, self.altup_correct_scale = Linear(streams, streams), Factors(dim)
        self.per_layer, self.active, self.factor = per_layer, active, 1 / dim

    def forward(self, x: Any, batch: Batch) -> Any:
        predictions = altup.predict(x, self.altup_predict_coef(self.modalities(x[self.active])))
        activated = self.activate(predictions[self.active], batch)
        coefs = self.altup_correct_coef(self.modalities(activated))
        corrected = altup.correct(predictions, activated, coefs, self.active)
        first = self.altup_correct_scale(corrected[self.active])
        return altup.add_to_others(corrected, self.per_layer(first, batch))

    def modalities(self, x: Any) -> Any:
        """Of a stream (tokens, dim) a weight for each stream, (tokens, streams)."""
        return softcap(self.altup_router(scale(self.altup_router_norm(x), self.factor)), 1.0)

    def activate(self, x: Any, batch: Batch) -> Any:
        """One stream (tokens, dim) past attention and feed-forward."""
        y = self.attn_norm(x)
        attended = add(x, self.post_attention_norm(self.attn(y, batch)))
        attended = scale(add(attended, self.laurel(y)), 2**-0.5)
        return add(attended, self.post_ffw_norm(self.ffn(self.ffn_norm(attended))))


class Expand(Module):
    """Streams (1 + others, tokens, dim) of one, x (tokens, dim): the others are projections of it, weight (others, dim,
    dim), with its length."""

    def __init__(self, dim: int, others: int):
        self.weight: Any = Parameter(others, dim, dim)

    def forward(self, x: Any, batch: Batch) -> Any:
        return altup.expand(x, [linear(x, matrix) for matrix in self.weight])


class Merge(Module):
    """The mean (tokens, dim) of streams: the others are projected back, weight (others, dim, dim), with the first's
    length."""

    def __init__(self, dim: int, others: int, active: int):
        self.weight: Any = Parameter(others, dim, dim)
        self.active = active

    def forward(self, streams: Any, batch: Batch) -> Any:
        total = streams[0]
        for x, matrix in zip(streams[1:], self.weight, strict=True):
            total = add(total, altup.with_length_of(linear(x, matrix), streams[self.active]))
        return scale(total, 1 / len(streams))
