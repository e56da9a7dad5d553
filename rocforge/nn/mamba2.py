"""Mamba-2: a mixer whose state is a sum of outer products that decays.

Source: Dao and Gu, Transformers are SSMs, https://arxiv.org/abs/2405.21060.
"""

from __future__ import annotations

from typing import Any

from rocforge.nn.batch import Batch
from rocforge.nn.delta_net import CausalConv, TimeStep
from rocforge.nn.layers import Linear
from rocforge.nn.module import Module
from rocforge.nn.parameter import Parameter
from rocforge.nn.state import Recurrent
from rocforge.ops.activation import contiguous, swiglu
from rocforge.ops.norm import rms_norm
from rocforge.ops.recurrent import gate_then_norm, split_gate, state_space


class GroupNorm(Module):
    """RMS norms of the groups of a row: weight (groups, columns of one)."""

    def __init__(self, groups: int, columns: int, eps: float):
        self.weight, self.eps = Parameter(groups, columns, matrix=False), eps

    def forward(self, x: Any, gate: Any) -> Any:
        """Of x (tokens, groups * columns) times the silu of the gate."""
        return gate_then_norm(x, gate, self.weight, self.eps)


class Mamba2(Module):
    """A mixer with a state: x (tokens, dim) gives (tokens, dim).

    Args:
        dim: width of the residual stream.
        heads: of the state, inner / heads elements each.
        groups: of heads that share a key and a query.
        state_dim: elements of those.
        inner: elements of all heads.
        width: tokens that the convolution sees.
        eps: of the norm behind the gate.
        norm: whether there is one.
    """

    inline = True

    def __init__(
        self,
        dim: int,
        heads: int,
        groups: int,
        state_dim: int,
        inner: int,
        width: int,
        eps: float,
        norm: bool = True,
    ):
        channels = inner + 2 * groups * state_dim
        self.ssm_in = Linear(dim, inner + channels + heads)
        self.ssm_conv1d, self.ssm_dt = CausalConv(channels, width, bias=True), TimeStep(heads)
        self.ssm_a: Any = Parameter(heads, 1, matrix=False)
        self.ssm_d: Any = Parameter(heads, 1, matrix=False)
        self.ssm_norm = GroupNorm(groups, inner // groups, eps) if norm else None
        self.ssm_out = Linear(inner, dim)
        self.inner, self.channels, self.keys = inner, channels, groups * state_dim
        self.state = Recurrent(((width - 1, channels), (heads, state_dim, inner // heads)))

    def forward(self, x: Any, batch: Batch) -> Any:
        projected, state = self.ssm_in(x), batch.state_of(self)
        gate, conv = projected[:, : self.inner], projected[:, self.inner : self.inner + self.channels]
        step, a, d = projected[:, self.inner + self.channels :], self.ssm_a.reshape(-1), self.ssm_d.reshape(-1)
        mixed, end = self.ssm_conv1d(conv, state), self.inner + self.keys
        x, keys, queries = mixed[:, : self.inner], mixed[:, self.inner : end], mixed[:, end:]
        y = state_space(x, keys, queries, step, a, self.ssm_dt.bias, d, state).reshape(len(x), -1)
        return self.ssm_out(swiglu(gate, y) if self.ssm_norm is None else self.ssm_norm(y, gate))


class NormedMamba2(Module):
    """A mixer with Mamba-2's state, whose keys, queries and time steps come of what the convolution gives, and are
    normalized: x (tokens, dim) gives (tokens, dim). The norms are tensors without .weight.

    Args:
        dim: width of the residual stream.
        heads: of the state, inner / heads elements each, which share a key and a query.
        state_dim: elements of those.
        inner: elements of all heads.
        rank: of the time step's matrix.
        width: tokens that the convolution sees.
        eps: of the norms.

    Source: PLaMo 2, https://huggingface.co/pfnet/plamo-2-1b.
    """

    inline = True

    def __init__(self, dim: int, heads: int, state_dim: int, inner: int, rank: int, width: int, eps: float):
        self.ssm_in, self.ssm_conv1d = Linear(dim, 2 * inner), CausalConv(inner, width)
        self.ssm_x, self.ssm_dt = Linear(inner, 2 * state_dim + rank), Linear(rank, heads, bias=True)
        self.ssm_b_norm, self.ssm_c_norm, self.ssm_dt_norm = Parameter(state_dim), Parameter(state_dim), Parameter(rank)
        self.ssm_a, self.ssm_d = Parameter(heads), Parameter(heads)
        self.ssm_out = Linear(inner, dim)
        self.heads, self.state_dim, self.eps = heads, state_dim, eps
        self.state = Recurrent(((width - 1, inner), (heads, state_dim, inner // heads)))

    def forward(self, x: Any, batch: Batch) -> Any:
        state = batch.state_of(self)
        gate, x = split_gate(self.ssm_in(x), self.heads)
        x = self.ssm_conv1d(x, state)
        both, n = self.ssm_x(x), self.state_dim
        keys, queries = both[:, :n], both[:, n : 2 * n]
        keys, queries = self.normalized(keys, self.ssm_b_norm), self.normalized(queries, self.ssm_c_norm)
        step = self.ssm_dt(self.normalized(both[:, 2 * n :], self.ssm_dt_norm))
        y = state_space(x, keys, queries, step, self.ssm_a, None, self.ssm_d, state)
        return self.ssm_out(swiglu(gate, y.reshape(len(y), -1)))

    def normalized(self, x: Any, weight: Any) -> Any:
        """Columns of an array through a norm."""
        return rms_norm(contiguous(x), weight, self.eps)
