"""Attention as a residual layer: norm, projections, rope, cache, attention, output, residual."""

from __future__ import annotations

from typing import Any

from rocforge.nn.batch import Batch
from rocforge.nn.config import Config
from rocforge.nn.layers import Entry, Linear, RMSNorm, apply_together, plain
from rocforge.nn.module import Module, Parameter
from rocforge.nn.state import PagedKV
from rocforge.ops.attention import attend
from rocforge.ops.rope import RopeFrequencies


class Sinks(Module):
    """A score for each head that takes part in its softmax: weight (heads,)."""

    def __init__(self, heads: int):
        self.weight = Parameter(heads)


class Attention(Module):
    """Self-attention with its norm and its residual: x (tokens, dim) or Ahead gives the like.

    Args:
        config: the sizes.
        frequencies: the rotary embedding.
        window: see this token and window - 1 before it; None for all.
        qkv_bias, output_bias: whether these projections have one; "optional" for where the file has.
        head_norms: queries and keys are normalized a head at a time (attn_q_norm, attn_k_norm).
        fused_qkv: one weight holds the rows of q, k and v (attn_qkv).
        sinks: each head has a sink (attn_sinks).
        post_norm: what attention gives is normalized before it is added to the residual (post_attention_norm).
        scale: factor on the scores; None for `1 / sqrt(head_dim)`.
    """

    inline = True

    def __init__(
        self,
        config: Config,
        layer: int,
        frequencies: RopeFrequencies,
        *,
        window: int | None = None,
        qkv_bias: bool | str = False,
        output_bias: bool | str = False,
        head_norms: bool = False,
        fused_qkv: bool = False,
        sinks: bool = False,
        post_norm: bool = False,
        scale: float | None = None,
    ):
        c = config
        self.frequencies, self.heads, self.kv_heads = frequencies, c.heads, c.kv_heads
        self.state = PagedKV(c.kv_heads, c.head_dim, c.head_dim, window=window)
        self.options = {
            "softcap": c.attention_softcap or None,
            "scale": c.attention_scale if scale is None else scale,
        }
        rows, kv_rows = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.attn_norm = RMSNorm(c.dim, c.norm_eps)
        if fused_qkv:
            self.attn_qkv = Linear(c.dim, rows + 2 * kv_rows, bias=qkv_bias)
        else:
            self.attn_q = Linear(c.dim, rows, bias=qkv_bias)
            self.attn_k = Linear(c.dim, kv_rows, bias=qkv_bias)
            self.attn_v = Linear(c.dim, kv_rows, bias=qkv_bias)
        if head_norms:
            self.attn_q_norm = RMSNorm(c.head_dim, c.norm_eps)
            self.attn_k_norm = RMSNorm(c.head_dim, c.norm_eps)
        if sinks:
            self.attn_sinks = Sinks(c.heads)
        self.attn_output = Linear(rows, c.dim, bias=output_bias)
        if post_norm:
            self.post_attention_norm = RMSNorm(c.dim, c.norm_eps)
        self.fused_qkv, self.head_norms, self.sinks, self.post_norm = fused_qkv, head_norms, sinks, post_norm

    @property
    def entry(self) -> Entry:
        return Entry(self.attn_norm, (self.attn_qkv,) if self.fused_qkv else (self.attn_q, self.attn_k, self.attn_v))

    def forward(self, x: Any, batch: Batch, then: Entry | None = None) -> Any:
        q, k, v = self.project(x)
        options = dict(self.options)
        if self.head_norms:
            q_norm, k_norm = self.attn_q_norm, self.attn_k_norm
            if q_norm.observers or k_norm.observers:
                q, k = q_norm(q), k_norm(k)
            else:
                options |= {"q_norm": q_norm.weight, "k_norm": k_norm.weight, "eps": q_norm.eps}
        if self.sinks:
            options["sinks"] = self.attn_sinks.weight
        state, rotation = batch.state_of(self), batch.rotation(self.frequencies)
        y = attend(q, k, v, state, rotation, then=self.attn_output.weight, **options)
        if self.post_norm:
            return self.post_attention_norm(self.attn_output(y), residual=plain(x))
        return self.attn_output.add_to(x, y, then)

    def project(self, x: Any) -> tuple[Any, Any, Any]:
        """Queries (tokens, heads, head_dim), keys and values (tokens, kv_heads, head_dim) of x, before their norms."""
        tokens, heads, kv_heads, y = len(plain(x)), self.heads, self.kv_heads, self.entry(x)
        if self.fused_qkv:
            qkv = self.attn_qkv(y).reshape(tokens, heads + 2 * kv_heads, -1)
            return qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
        q, k, v = apply_together(y, self.attn_q, self.attn_k, self.attn_v)
        return q.reshape(tokens, heads, -1), k.reshape(tokens, kv_heads, -1), v.reshape(tokens, kv_heads, -1)
