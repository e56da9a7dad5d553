"""Multi-head latent attention, whose cache has one short row a token in place of keys and values of all heads."""

from __future__ import annotations

import math
from typing import Any

from rocforge.nn.batch import Batch
from rocforge.nn.layers import Linear, RMSNorm
from rocforge.nn.low_rank import is_updated
from rocforge.nn.module import Module, is_hidden
from rocforge.nn.parameter import Parameter
from rocforge.nn.state import PagedKV
from rocforge.ops.device.attention import serves
from rocforge.ops.latent_attention import expanded_attention, head_linear, latent_attention, store_latents
from rocforge.ops.linear import linear
from rocforge.ops.norm import rms_norm_for
from rocforge.ops.rope import RopeFrequencies
from rocforge.ops.temperature import Temperature


class HeadLinear(Module):
    """One matrix a head: weight (heads, rows, columns); x (tokens, heads, columns) gives (tokens, heads, rows)."""

    def __init__(self, heads: int, columns: int, rows: int):
        self.weight = Parameter(heads, rows, columns)

    def forward(self, x: Any) -> Any:
        return head_linear(x, self.weight)


class LatentAttention(Module):
    """Self-attention over latents: x (tokens, dim) gives (tokens, dim).

    A token's latent is a product of x (the first rows of attn_kv_a_mqa), normalized (attn_kv_a_norm). Each head's keys
    are those of its own, attn_k_b's transpose times the latent, and one for all heads, which is rotated (the last rows
    of attn_kv_a_mqa); its values are attn_v_b times the latent. Queries are multiplied with attn_k_b in place of the
    keys, and what a head sees of the latents with attn_v_b, so that neither keys nor values are made. Long prompts on a
    device make them, where the batch says so (`Batch.expansion`), and nobody sees attn_k_b and attn_v_b.

    Args:
        dim: width of the residual stream.
        heads: of the queries.
        rank: elements of a latent.
        own, shared: elements of a head's own keys, and of the one that all heads have.
        value_dim: elements of a head's values.
        rope: the rotary embedding, of the shared elements; None: positions are not encoded.
        eps: of the norms.
        query_rank: queries are made of a latent of so many elements (attn_q_a, attn_q_a_norm, attn_q_b); None: of x
            (attn_q).
        scale: factor on the scores; None for `1 / sqrt(own + shared)`.
        temperature: scales the queries by their positions, or None.

    Source: DeepSeek-V2, https://arxiv.org/abs/2405.04434.
    """

    inline = True

    def __init__(
        self,
        dim: int,
        heads: int,
        rank: int,
        own: int,
        shared: int,
        value_dim: int,
        rope: RopeFrequencies | None,
        eps: float = 1e-6,
        *,
        query_rank: int | None = None,
        scale: float | None = None,
        temperature: Temperature | None = None,
    ):
        self.heads, self.rank, self.rope, self.query_rank = heads, rank, rope, query_rank
        self.scale, self.temperature = scale or 1 / math.sqrt(own + shared), temperature
        elements = heads * (own + shared + value_dim) if serves(own + shared, value_dim) else 0
        self.state = PagedKV(1, rank + shared, 0, expanded=elements)
        if query_rank is None:
            self.attn_q = Linear(dim, heads * (own + shared))
        else:
            self.attn_q_a, self.attn_q_a_norm = Linear(dim, query_rank), RMSNorm(query_rank, eps)
            self.attn_q_b = Linear(query_rank, heads * (own + shared))
        self.attn_kv_a_mqa, self.attn_kv_a_norm = Linear(dim, rank + shared), RMSNorm(rank, eps)
        self.attn_k_b, self.attn_v_b = HeadLinear(heads, own, rank), HeadLinear(heads, rank, value_dim)
        self.attn_output = Linear(heads * value_dim, dim)

    @property
    def projections(self) -> list[Module]:
        """What multiplies x: of the queries, and of the cache's rows."""
        return [self.attn_q if self.query_rank is None else self.attn_q_a, self.attn_kv_a_mqa]

    def forward(self, x: Any, batch: Batch) -> Any:
        return self.attn_output(self.mix([layer(x) for layer in self.projections], batch))

    def queries(self, latents: Any) -> Any:
        """Of their latents (tokens, query_rank), which the norm gives in the form for the product, where it may."""
        norm, layer = self.attn_q_a_norm, self.attn_q_b
        if not is_hidden(norm, RMSNorm) or not is_hidden(layer, Linear) or is_updated(layer):
            return layer(norm(latents))
        return linear(rms_norm_for([layer.weight], latents, norm.weight, norm.eps), layer.weight, layer.bias)

    def mix(self, projected: list[Any], batch: Batch, consumer: Any = None) -> Any:
        """What the output product takes, (tokens, heads * value_dim), of what the projections give: in the form for
        the weight `consumer`, where nobody sees attn_v_b."""
        q, rows = projected
        if self.query_rank is not None:
            q = self.queries(q)
        q, latents, keys = q.reshape(len(q), self.heads, -1), rows[:, : self.rank], rows[:, self.rank :]
        layer, rotation = batch.state_of(self), None if self.rope is None else batch.rotation(self.rope)
        norm: Any = self.attn_kv_a_norm
        fused: dict[str, Any] = {}
        if is_hidden(norm, RMSNorm):
            fused = {"norm": norm.weight, "eps": norm.eps}
        else:
            latents = norm(latents)
        factors = None if self.temperature is None else batch.temperatures(self.temperature)
        plan, matrices = batch.expansion(self), (self.attn_k_b, self.attn_v_b)
        if plan is not None and all(is_hidden(each, HeadLinear) for each in matrices):
            weights = self.attn_k_b.weight, self.attn_v_b.weight
            seen = expanded_attention(
                q, latents, keys, layer, rotation, weights, self.scale, plan, **fused, factors=factors
            )
            return seen.reshape(len(q), -1)
        own, rotated = store_latents(q, latents, keys, layer, rotation, **fused, factors=factors)
        seen = latent_attention(self.attn_k_b(own), rotated, layer, self.scale)
        if consumer is not None and is_hidden(self.attn_v_b, HeadLinear):
            return head_linear(seen, self.attn_v_b.weight, consumer)
        return self.attn_v_b(seen).reshape(len(q), -1)
