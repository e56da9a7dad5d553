"""Self-attention over the cache: projections, norms of queries and keys, rope, attention, gate, output."""

from __future__ import annotations

from typing import Any

from rocforge.nn.batch import Batch
from rocforge.nn.layers import Linear, RMSNorm, Scores
from rocforge.nn.module import Module
from rocforge.nn.state import PagedKV
from rocforge.ops.activation import sigmoid_gate
from rocforge.ops.attention import attend
from rocforge.ops.rope import RopeFrequencies


class Attention(Module):
    """Self-attention: x (tokens, dim) gives (tokens, dim).

    Args:
        dim: width of the residual stream.
        heads, kv_heads, head_dim: heads of the queries, of keys and values, and elements of each.
        rope: the rotary embedding; None: positions are not encoded.
        eps: of the norms of queries and keys.
        value_dim: elements of a head's value; None: as many as of its key.
        window: see this token and window - 1 before it; None for all.
        scale: factor on the scores; None for `1 / sqrt(head_dim)`.
        softcap: cap on the scores, or None.
        bias, output_bias: whether q, k and v, and the output, have one; "optional" for where the file has.
        norms: queries and keys are normalized (attn_q_norm, attn_k_norm): "head", each head of them; "whole", all
            heads as one row; None: not.
        merged: one weight holds the rows of q, k and v (attn_qkv).
        sinks: each head has a sink (attn_sinks).
        gate: what attention gives is multiplied by the sigmoid of a projection of x (attn_gate) before the output.
    """

    inline = True

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rope: RopeFrequencies | None,
        eps: float = 1e-6,
        *,
        value_dim: int | None = None,
        window: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        bias: bool | str = False,
        output_bias: bool | str = False,
        norms: str | None = None,
        merged: bool = False,
        sinks: bool = False,
        gate: bool = False,
    ):
        self.heads, self.kv_heads, self.rope, self.norms = heads, kv_heads, rope, norms
        value_dim = value_dim or head_dim
        self.state = PagedKV(kv_heads, head_dim, value_dim, window=window)
        self.options: dict[str, Any] = {"softcap": softcap, "scale": scale}
        rows, kv_rows = heads * head_dim, kv_heads * head_dim
        if merged:
            self.attn_qkv = Linear(dim, rows + 2 * kv_rows, bias=bias)
        else:
            self.attn_q = Linear(dim, rows, bias=bias)
            self.attn_k = Linear(dim, kv_rows, bias=bias)
            self.attn_v = Linear(dim, kv_heads * value_dim, bias=bias)
        self.attn_gate = Linear(dim, heads * value_dim) if gate else None
        self.attn_q_norm: Any = RMSNorm(head_dim if norms == "head" else rows, eps) if norms else None
        self.attn_k_norm: Any = RMSNorm(head_dim if norms == "head" else kv_rows, eps) if norms else None
        self.attn_sinks = Scores(heads) if sinks else None
        self.attn_output = Linear(heads * value_dim, dim, bias=output_bias)

    @property
    def projections(self) -> list[Module]:
        """What multiplies x: q, k and v, or what holds them; then the gate, if there is one."""
        qkv = ["attn_qkv"] if "attn_qkv" in vars(self) else ["attn_q", "attn_k", "attn_v"]
        return [getattr(self, name) for name in (*qkv, "attn_gate") if getattr(self, name) is not None]

    def forward(self, x: Any, batch: Batch) -> Any:
        q, k, v, gate = self.split([layer(x) for layer in self.projections])
        if self.norms:
            q, k = self.normalize(q, k)
        y = self.attend(q, k, v, batch).reshape(len(q), -1)
        return self.attn_output(y if gate is None else sigmoid_gate(y, gate))

    def split(self, projected: list[Any]) -> tuple[Any, Any, Any, Any]:
        """Queries (tokens, heads, head_dim), keys and values (tokens, kv_heads, their length), the gate or None."""
        heads, kv_heads, tokens = self.heads, self.kv_heads, len(projected[0])
        gate = projected.pop() if self.attn_gate is not None else None
        if len(projected) == 1:
            qkv = projected[0].reshape(tokens, heads + 2 * kv_heads, -1)
            return qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :], gate
        q, k, v = projected
        return q.reshape(tokens, heads, -1), k.reshape(tokens, kv_heads, -1), v.reshape(tokens, kv_heads, -1), gate

    def normalize(self, q: Any, k: Any) -> tuple[Any, Any]:
        """Queries and keys through their norms, a head or a whole row at a time."""
        if self.norms == "head":
            return self.attn_q_norm(q), self.attn_k_norm(k)
        rows = (self.attn_q_norm(q.reshape(len(q), -1)), self.attn_k_norm(k.reshape(len(k), -1)))
        return rows[0].reshape(q.shape), rows[1].reshape(k.shape)

    def attend(self, q: Any, k: Any, v: Any, batch: Batch, **fused: Any) -> Any:
        """Rotate queries and keys, store keys and values, and attend; `fused`: what else the op does in its launch."""
        sinks = None if self.attn_sinks is None else self.attn_sinks()
        state = batch.state_of(self)
        rotation = None if self.rope is None else batch.rotation(self.rope)
        return attend(q, k, v, state, rotation, sinks=sinks, **self.options, **fused)
