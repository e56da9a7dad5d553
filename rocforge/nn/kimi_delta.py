"""Kimi Delta Attention: a gated delta rule whose state forgets each element of its keys at a rate of its own.

Source: Kimi Linear, https://arxiv.org/abs/2510.26692.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.nn.batch import Batch
from rocforge.nn.delta_net import TimeStep
from rocforge.nn.layers import Linear, RMSNorm
from rocforge.nn.module import Module
from rocforge.nn.parameter import Parameter
from rocforge.nn.state import Recurrent
from rocforge.ops.activation import sigmoid_gate
from rocforge.ops.recurrent import causal_conv, gated_delta_rule


class HeadConv(Module):
    """A convolution along a sequence: weight (channels, 1, width). Its state is the layer's array `which`."""

    def __init__(self, channels: int, width: int, which: int):
        self.weight: Any = Parameter(channels, 1, width, matrix=False)
        self.which = which

    def forward(self, x: Any, state: Any, out: Any = None) -> Any:
        channels, _, width = self.weight.shape
        return causal_conv(x, self.weight.reshape(channels, width), state, which=self.which, out=out)


class KimiDeltaNet(Module):
    """A mixer with a state: x (tokens, dim) gives (tokens, dim).

    Args:
        dim: width of the residual stream.
        heads, head_dim: of queries, keys and values, and elements of each.
        width: tokens that the convolutions see.
        eps: of the norm and of lengths.
    """

    inline = True

    def __init__(self, dim: int, heads: int, head_dim: int, width: int, eps: float):
        inner = heads * head_dim
        self.attn_q, self.attn_k, self.attn_v = (Linear(dim, inner) for _ in range(3))
        self.ssm_conv1d_q, self.ssm_conv1d_k, self.ssm_conv1d_v = (HeadConv(inner, width, i) for i in range(3))
        self.ssm_f_a, self.ssm_f_b = Linear(dim, head_dim), Linear(head_dim, inner)
        self.ssm_g_a, self.ssm_g_b = Linear(dim, head_dim), Linear(head_dim, inner)
        self.ssm_beta, self.ssm_dt = Linear(dim, heads), TimeStep(inner)
        self.ssm_a: Any = Parameter(heads, 1, matrix=False)
        self.ssm_norm, self.attn_output = RMSNorm(head_dim, eps), Linear(inner, dim)
        self.heads, self.inner, self.eps = heads, inner, eps
        self.state = Recurrent((*[(width - 1, inner)] * 3, (heads, head_dim, head_dim)))

    @property
    def projections(self) -> list[Module]:
        """What multiplies x."""
        return [self.attn_q, self.attn_k, self.attn_v, self.ssm_f_a, self.ssm_g_a, self.ssm_beta]

    def forward(self, x: Any, batch: Batch) -> Any:
        return self.attn_output(self.mix([layer(x) for layer in self.projections], batch))

    def mix(self, projected: list[Any], batch: Batch, consumer: Any = None) -> Any:
        """What the output product takes, (tokens, heads * head_dim), of what the projections give: floats for any
        consumer."""
        *qkv, forgets, gate, beta = projected
        state = batch.state_of(self)
        joined = get_array_module(beta).empty((len(beta), 3 * self.inner), np.float32)
        convs = self.ssm_conv1d_q, self.ssm_conv1d_k, self.ssm_conv1d_v
        for i, (conv, x) in enumerate(zip(convs, qkv, strict=True)):
            conv(x, state, joined[:, i * self.inner : (i + 1) * self.inner])
        alpha, heads = self.ssm_dt(self.ssm_f_b(forgets)), (self.heads, self.heads)
        y = gated_delta_rule(joined, beta, alpha, self.ssm_a.reshape(-1), None, state, heads, self.eps)
        return sigmoid_gate(self.ssm_norm(y).reshape(len(y), -1), self.ssm_g_b(gate))
