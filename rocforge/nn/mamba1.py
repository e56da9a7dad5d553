"""Mamba: a mixer whose channels have states of their own, which what a token says makes it write, keep and read.

Source: Gu and Dao, Mamba, https://arxiv.org/abs/2312.00752.
"""

from __future__ import annotations

from typing import Any

from rocforge.nn.batch import Batch
from rocforge.nn.delta_net import CausalConv
from rocforge.nn.layers import Linear, RMSNorm
from rocforge.nn.module import Module
from rocforge.nn.parameter import Parameter
from rocforge.nn.state import Recurrent
from rocforge.ops.activation import contiguous, swiglu
from rocforge.ops.recurrent import selective_scan


class Mamba1(Module):
    """A mixer with a state: x (tokens, dim) gives (tokens, dim).

    Args:
        dim: width of the residual stream.
        inner: channels.
        state_dim: numbers that each keeps.
        rank: of the time step's matrix.
        width: tokens that the convolution sees.
        eps: of the norms.
        norms: time step, keys and queries are normalized: "weights", with those of ssm_dt_norm, ssm_b_norm and
            ssm_c_norm; "plain", without weights; None: not.
    """

    inline = True

    def __init__(
        self, dim: int, inner: int, state_dim: int, rank: int, width: int, eps: float, norms: str | None = None
    ):
        self.ssm_in, self.ssm_conv1d = Linear(dim, 2 * inner), CausalConv(inner, width, bias=True)
        self.ssm_x, self.ssm_dt = Linear(inner, rank + 2 * state_dim), Linear(rank, inner, bias=True)
        self.ssm_a: Any = Parameter(inner, state_dim, matrix=False)
        self.ssm_d = Parameter(inner)
        self.ssm_dt_norm: Any = RMSNorm(rank, eps, norms == "weights") if norms else None
        self.ssm_b_norm: Any = RMSNorm(state_dim, eps, norms == "weights") if norms else None
        self.ssm_c_norm: Any = RMSNorm(state_dim, eps, norms == "weights") if norms else None
        self.ssm_out = Linear(inner, dim)
        self.inner, self.rank, self.state_dim = inner, rank, state_dim
        self.state = Recurrent(((width - 1, inner), (state_dim, inner)))

    def forward(self, x: Any, batch: Batch) -> Any:
        projected, state = self.ssm_in(x), batch.state_of(self)
        x, gate = self.ssm_conv1d(projected[:, : self.inner], state), projected[:, self.inner :]
        both, end = self.ssm_x(x), self.rank + self.state_dim
        step, keys, queries = contiguous(both[:, : self.rank]), both[:, self.rank : end], both[:, end:]
        if self.ssm_dt_norm is not None:
            step, keys = self.ssm_dt_norm(step), self.ssm_b_norm(contiguous(keys))
            queries = self.ssm_c_norm(contiguous(queries))
        y = selective_scan(x, self.ssm_dt(step), keys, queries, self.ssm_a, self.ssm_d, state)
        return self.ssm_out(swiglu(gate, y))
