"""Self-attention: projections, norms of queries and keys, rope, attention, gate, output."""

from __future__ import annotations

from typing import Any

from rocforge.device.arrays import Constant
from rocforge.nn.batch import Batch
from rocforge.nn.layers import HookPoint, Linear, RMSNorm, Vector
from rocforge.nn.module import Module, is_hidden
from rocforge.nn.state import PagedKV, SharedKV
from rocforge.ops.activation import clip, contiguous, gate_heads, scale_rows
from rocforge.ops.attention import alibi_slopes, attend, rotate_and_store
from rocforge.ops.attention_pattern import attention_heads, attention_pattern
from rocforge.ops.rope import RopeFrequencies, rotate
from rocforge.ops.temperature import Temperature
from rocforge.ops.types import HeadGate


class Attention(Module):
    """Self-attention: x (tokens, dim) gives (tokens, dim).

    Args:
        dim: width of the residual stream.
        heads, kv_heads, head_dim: heads of the queries, of keys and values, and elements of each.
        rope: the rotary embedding; None: positions are not encoded.
        eps: of the norms of queries and keys.
        value_dim: elements of a head's value; None: as many as of its key.
        window: see this token and window - 1 before it, and if not causal after it; None for all.
        chunked: see, of the run of `window` tokens that this one is in, those up to it.
        alibi: the largest bias of the distance between two tokens, ALiBi's; None: there is none.
        causal: see no token after this; False, of encoders: see them too.
        scale: factor on the scores; None for `1 / sqrt(head_dim)`.
        softcap: cap on the scores, or None.
        bias, output_bias: whether q, k and v, and the output, have one; "optional" for where the file has.
        norms: queries and keys are normalized (attn_q_norm, attn_k_norm): "head", each head of them; "whole", all
            heads as one row; None: not. "head, no weight" has no such tensors; "rotated head" comes after the rope.
        temperature: scales the queries by their positions, or None.
        merged: one weight holds the rows of q, k and v (attn_qkv).
        sinks: each head has a sink (attn_sinks).
        gate: what attention gives is multiplied by the sigmoid of a projection of x before the output: True: of
            attn_gate; "in attn_q": of rows of attn_q, of which each head has its query's, then its gate's; "heads":
            of attn_gate, one number a head.
        gate_unit: sigmoid or softplus.
        clip: queries, keys and values are cut to at most this, and its negative; None: not.
        values_are_keys: there is no attn_v: a value is its token's key, before norm and rope.
        normalizes_values: values go through an RMS norm, a head at a time, without a weight.
        shares: another layer's attention, to whose keys and values the queries go; this one then has none of its own.

    Attributes:
        slopes: of the heads, ALiBi's, or None.
        attn_pattern: is given what each query sees of each key, (heads, tokens, keys), if somebody looks at it or edits
            it: rocforge.ops.attention_pattern has its shape. Else attention is one op, without it.
        attn_heads: is given what each head gives, (tokens, heads, value_dim), before the gate.
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
        chunked: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        bias: bool | str = "optional",
        output_bias: bool | str = "optional",
        norms: str | None = None,
        temperature: Temperature | None = None,
        merged: bool = False,
        sinks: bool = False,
        gate: bool | str = False,
        alibi: float | None = None,
        causal: bool = True,
        gate_unit: str = "sigmoid",
        clip: float | None = None,
        values_are_keys: bool = False,
        normalizes_values: bool = False,
        shares: Attention | None = None,
    ):
        self.heads, self.kv_heads, self.rope, self.norms = heads, kv_heads, rope, norms
        self.temperature, self.clip = temperature, clip
        value_dim = value_dim or head_dim
        self.shares = shares is not None
        own = PagedKV(kv_heads, head_dim, value_dim, window=window, chunked=chunked, causal=causal)
        self.state: PagedKV | SharedKV = own if shares is None else SharedKV(shares)
        self.options: dict[str, Any] = {"softcap": softcap, "scale": scale}
        self.value_eps = eps if normalizes_values else None
        rows, kv_rows, self.splits_q = heads * head_dim, kv_heads * head_dim, gate == "in attn_q"
        self.ends = rows, rows + kv_rows  # of queries and keys in attn_qkv
        if merged:
            self.attn_qkv = Linear(dim, rows + kv_rows + kv_heads * value_dim, bias=bias)
        else:
            self.attn_q = Linear(dim, 2 * rows if self.splits_q else rows, bias=bias)
            self.attn_k = None if self.shares else Linear(dim, kv_rows, bias=bias)
            without_v = self.shares or values_are_keys
            self.attn_v = None if without_v else Linear(dim, kv_heads * value_dim, bias=bias)
        self.attn_gate = None
        if gate in (True, "heads"):
            self.attn_gate = Linear(dim, heads * value_dim if gate is True else heads)
        self.gate_unit, self.gates_whole_heads = gate_unit, gate == "heads"
        affine, widths = norms != "head, no weight", (rows, kv_rows) if norms == "whole" else (head_dim, head_dim)
        self.attn_q_norm: Any = RMSNorm(widths[0], eps, affine) if norms else None
        self.attn_k_norm: Any = RMSNorm(widths[1], eps, affine) if norms and not self.shares else None
        self.attn_sinks = Vector(heads) if sinks else None
        self.slopes = None if alibi is None else Constant(alibi_slopes(heads, alibi))
        self.attn_pattern, self.attn_heads = HookPoint(), HookPoint()
        self.attn_output = Linear(heads * value_dim, dim, bias=output_bias)

    @property
    def projections(self) -> list[Module]:
        """What multiplies x: q, k and v, or what holds them; then the gate, if there is one."""
        qkv = ["attn_qkv"] if "attn_qkv" in vars(self) else ["attn_q", "attn_k", "attn_v"]
        return [getattr(self, name) for name in (*qkv, "attn_gate") if getattr(self, name) is not None]

    def forward(self, x: Any, batch: Batch) -> Any:
        q, k, v, gate = self.split([layer(x) for layer in self.projections])
        q, k = self.prepare(q, k, batch)
        return self.attn_output(self.attend(q, k, v, batch, gate).reshape(len(q), -1))

    def split(self, projected: list[Any]) -> tuple[Any, Any, Any, HeadGate | None]:
        """Queries (tokens, heads, head_dim), keys and values (tokens, kv_heads, their length), the gate or None.

        They are parts of what the projections give. Keys and values are None of a layer that shares another one's.
        """
        heads, kv_heads, tokens = self.heads, self.kv_heads, len(projected[0])
        gate = projected.pop() if self.attn_gate is not None else None
        if self.clip is not None:
            projected = [clip(y, self.clip) for y in projected]
        if len(projected) == 1 and not self.shares:
            (qkv,), (queries, keys) = projected, self.ends
            projected = [qkv[:, :queries], qkv[:, queries:keys], qkv[:, keys:]]
        q, *kv = projected
        q = q.reshape(tokens, heads, -1)
        if self.splits_q:
            dim = q.shape[-1] // 2
            q, gate = q[..., :dim], q[..., dim:]
        k, v = (kv[i].reshape(tokens, kv_heads, -1) if kv else None for i in (0, -1))
        return q, k, v, None if gate is None else HeadGate(gate.reshape(tokens, heads, -1), self.gate_unit)

    @property
    def rotates_first(self) -> bool:
        """Whether the rope comes before the norms."""
        return self.norms == "rotated head"

    def prepare(self, q: Any, k: Any, batch: Batch) -> tuple[Any, Any]:
        """Queries and keys as `attend` takes them: normalized, and the queries scaled by the temperature."""
        if self.rotates_first and self.rope is not None:
            q, k = (rotate(x, *batch.rotation(self.rope)) for x in (q, k))
        if self.norms:
            q, k = self.normalize(q, k)
        return q if self.temperature is None else scale_rows(q, batch.temperatures(self.temperature)), k

    def normalize(self, q: Any, k: Any) -> tuple[Any, Any]:
        """Queries and keys through their norms, a head or a whole row at a time."""
        return self._normalized(q, self.attn_q_norm), None if k is None else self._normalized(k, self.attn_k_norm)

    def _normalized(self, x: Any, norm: Any) -> Any:
        x = contiguous(x)
        return norm(x.reshape(len(x), -1)).reshape(x.shape) if self.norms == "whole" else norm(x)

    @property
    def shows_pattern(self) -> bool:
        """Whether somebody looks at the attention pattern, or changes it."""
        return not is_hidden(self.attn_pattern, HookPoint)

    def attend(
        self, q: Any, k: Any, v: Any, batch: Batch, gate: HeadGate | None = None, consumer: Any = None, **norms: Any
    ) -> Any:
        """Rotate queries and keys, store keys and values, and attend.

        Args:
            q, k, v: as `split` gives them.
            batch: of the tokens.
            gate: what the heads' results are multiplied by, or None.
            consumer: the weight that the result is multiplied with, if that is all it is for; the result may come in
                the form in which the product takes it.
            norms: of queries and keys, which the op does in its launch, as in rocforge.ops.attention.attend.

        Returns:
            float32, shape (tokens, heads, value_dim), or (tokens, heads * value_dim) where there is a consumer.
        """
        state = batch.state_of(self)
        rotation = None if self.rope is None or self.rotates_first else batch.rotation(self.rope)
        norms = {**norms, "v_eps": self.value_eps}
        options = {**self.options, "sinks": None if self.attn_sinks is None else self.attn_sinks()}
        options["slopes"] = None if self.slopes is None else self.slopes.beside(q)
        if not self.shows_pattern and is_hidden(self.attn_heads, HookPoint):
            return attend(q, k, v, state, rotation, gate=gate, consumer=consumer, **options, **norms)
        if self.shows_pattern:
            q = rotate_and_store(q, k, v, state, rotation, **norms)
            y = attention_heads(self.attn_pattern(attention_pattern(q, state, **options)), state)
        else:
            y = attend(q, k, v, state, rotation, **options, **norms)
        y = self.attn_heads(y)
        y = y if gate is None else gate_heads(y, gate)
        return y if consumer is None else y.reshape(len(y), -1)
