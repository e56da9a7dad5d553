"""Gated DeltaNet: a mixer whose state has a fixed size, as Qwen 3.5's and Qwen3-Next's linear layers are.

Source: Yang et al., Gated Delta Networks, https://arxiv.org/abs/2412.06464.
"""

from __future__ import annotations

from typing import Any

from rocforge.nn.batch import Batch
from rocforge.nn.layers import Linear, RMSNorm
from rocforge.nn.module import Module, is_hidden
from rocforge.nn.parameter import Parameter
from rocforge.nn.state import Recurrent
from rocforge.ops.activation import add, swiglu
from rocforge.ops.recurrent import causal_conv, gated_delta_net, gated_delta_rule, norm_then_gate, split_gate


class CausalConv(Module):
    """The convolution along a sequence: weight (channels, width), bias (channels,) or none.

    Args:
        channels, width: how many, and how many tokens each sees.
        bias: whether the file may have one.
        silu: whether the result goes through silu.
    """

    def __init__(self, channels: int, width: int, *, bias: bool = False, silu: bool = True):
        self.weight = Parameter(channels, width, matrix=False)
        self.bias: Any = Parameter(channels, optional=True) if bias else None
        self.silu = silu

    def forward(self, x: Any, state: Any, gates: Any = None) -> Any:
        return causal_conv(x, self.weight, state, self.bias, silu=self.silu, gates=gates)


class TimeStep(Module):
    """What is added to the logits of the decay: bias (heads,)."""

    def __init__(self, heads: int):
        self.bias = Parameter(heads)

    def forward(self, x: Any) -> Any:
        return add(x, self.bias)


class GatedDeltaNet(Module):
    """A mixer with a state: x (tokens, dim) gives (tokens, dim).

    Args:
        dim: width of the residual stream.
        key_heads, value_heads: heads of queries and keys, and of values, a multiple of those.
        key_dim, value_dim: elements of each.
        width: tokens that the convolution sees.
        eps: of norms and lengths.
        repeated: as in rocforge.ops.recurrent.gated_delta_rule.
        merged: one weight (ssm_ba) has the rows of ssm_beta and ssm_alpha, key head by key head.
    """

    inline = True

    def __init__(
        self,
        dim: int,
        key_heads: int,
        value_heads: int,
        key_dim: int,
        value_dim: int,
        width: int,
        eps: float,
        repeated: bool = False,
        merged: bool = False,
    ):
        channels, inner = 2 * key_heads * key_dim + value_heads * value_dim, value_heads * value_dim
        self.attn_qkv, self.attn_gate = Linear(dim, channels), Linear(dim, inner)
        if merged:
            self.ssm_ba = Linear(dim, 2 * value_heads)
        else:
            self.ssm_beta, self.ssm_alpha = Linear(dim, value_heads), Linear(dim, value_heads)
        self.ssm_conv1d, self.ssm_dt = CausalConv(channels, width), TimeStep(value_heads)
        self.ssm_a = Parameter(value_heads)
        self.ssm_norm, self.ssm_out = RMSNorm(value_dim, eps), Linear(inner, dim)
        self.heads, self.eps, self.repeated, self.merged = (key_heads, value_heads), eps, repeated, merged
        self.state = Recurrent(((width - 1, channels), (value_heads, key_dim, value_dim)))

    @property
    def projections(self) -> list[Module]:
        """What multiplies x."""
        rest = [self.ssm_ba] if self.merged else [self.ssm_beta, self.ssm_alpha]
        return [self.attn_qkv, self.attn_gate, *rest]

    def split(self, projected: list[Any]) -> list[Any]:
        """Queries, keys and values, the gate, beta and alpha, of what the projections give."""
        return [*projected[:2], *split_gate(projected[2], self.heads[0])] if self.merged else projected

    def forward(self, x: Any, batch: Batch) -> Any:
        qkv, gate, beta, alpha = self.split([layer(x) for layer in self.projections])
        y = self.ssm_norm(self.read(qkv, beta, self.ssm_dt(alpha), batch))
        return self.ssm_out(swiglu(gate, y.reshape(len(y), -1)))

    def read(self, qkv: Any, beta: Any, alpha: Any, batch: Batch, bias: Any = None) -> Any:
        """What the heads read from the state, (tokens, value_heads, value_dim), once the tokens are written to it.

        Args:
            qkv, beta: of the projections.
            alpha: of its projection, after ssm_dt; or before it, with a bias.
            batch: of the tokens.
            bias: that of ssm_dt.
        """
        state, options = batch.state_of(self), {"repeated": self.repeated}
        qkv = self.ssm_conv1d(qkv, state)
        return gated_delta_rule(qkv, beta, alpha, self.ssm_a, bias, state, self.heads, self.eps, **options)

    def mix(self, projected: list[Any], batch: Batch, consumer: Any = None) -> Any:
        """What the output product takes, of what the projections give, where nobody looks at the norm and ssm_dt.

        Args:
            projected, batch: as they are.
            consumer: as in rocforge.ops.recurrent.gated_delta_net.
        """
        qkv, gate, beta, alpha = self.split(projected)
        conv, norm, bias = self.ssm_conv1d, self.ssm_norm, self.ssm_dt.bias
        if is_hidden(conv, CausalConv):
            weights, eps = (conv.weight, self.ssm_a, bias, norm.weight), (self.eps, norm.eps)
            state = batch.state_of(self)
            return gated_delta_net(qkv, gate, beta, alpha, *weights, state, self.heads, eps, self.repeated, consumer)
        return norm_then_gate(self.read(qkv, beta, alpha, batch, bias), gate, norm.weight, norm.eps, consumer)
