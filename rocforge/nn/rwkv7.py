"""RWKV-7: time mix, whose heads read, forget and write a state; channel mix, a feed-forward that sees one token back.

Source: Peng et al., https://arxiv.org/abs/2503.14456.
"""

from __future__ import annotations

from typing import Any

from rocforge.nn.batch import Batch
from rocforge.nn.layers import Linear, Vector
from rocforge.nn.module import Module
from rocforge.nn.parameter import Parameter
from rocforge.nn.state import Recurrent
from rocforge.ops.activation import relu_squared, sigmoid, softcap
from rocforge.ops.rwkv import FirstValues, Wkv7Weights, token_shift, wkv7
from rocforge.ops.types import HeadNorm

HEADS_EPS = 64e-5
"""Of the norm of heads."""


class TokenShift(Module):
    """Mixtures of each token with the one before it: x (tokens, dim) gives (mixes, tokens, dim).

    Args:
        dim: width of x.
        mixes: the weight is (mixes, 1, 1, dim), or without it (dim,), of one.
    """

    def __init__(self, dim: int, mixes: int | None = None):
        self.weight: Any = Parameter(*((dim,) if mixes is None else (mixes, 1, 1, dim)), matrix=False)

    def forward(self, x: Any, state: Any, offsets: Any = None, *, keep: bool = True) -> Any:
        return token_shift(x, self.weight.reshape(-1, x.shape[1]), state, offsets, keep=keep)


class HeadNorms(Module):
    """What normalizes heads: weight and bias (heads * head_dim,), which a call gives, with their epsilon."""

    def __init__(self, size: int):
        self.weight, self.bias = Parameter(size), Parameter(size)

    def forward(self) -> HeadNorm:
        return HeadNorm(self.weight, self.bias, HEADS_EPS)


class TimeMix7(Module):
    """RWKV-7's mixer: x (tokens, dim) gives (tokens, dim).

    Args:
        dim: width of the residual stream, which the heads share.
        head_dim: elements of a head.
        decay, rate, share, gate: ranks of the matrices that make these of x; without a gate 0. share: of the first
            layer's values, None in that layer.
        norm: whether heads are normalized.
    """

    inline = True

    def __init__(self, dim: int, head_dim: int, decay: int, rate: int, share: int | None, gate: int, norm: bool = True):
        self.time_mix_lerp_fused = TokenShift(dim, 6 if gate else 5)
        self.time_mix_receptance, self.time_mix_key, self.time_mix_value = (Linear(dim, dim) for _ in range(3))
        self.time_mix_w0, self.time_mix_w1, self.time_mix_w2 = Vector(dim), Linear(dim, decay), Linear(decay, dim)
        self.time_mix_a0, self.time_mix_a1, self.time_mix_a2 = Vector(dim), Linear(dim, rate), Linear(rate, dim)
        self.first = share is None
        if share is not None:
            self.time_mix_v0, self.time_mix_v1, self.time_mix_v2 = Vector(dim), Linear(dim, share), Linear(share, dim)
        if gate:
            self.time_mix_g1, self.time_mix_g2 = Linear(dim, gate), Linear(gate, dim)
        self.time_mix_k_k, self.time_mix_k_a, self.time_mix_r_k = (Vector(dim) for _ in range(3))
        self.time_mix_ln = HeadNorms(dim) if norm else None
        self.time_mix_output = Linear(dim, dim)
        self.state = Recurrent(((1, dim), (dim // head_dim, head_dim, head_dim)))

    def forward(self, x: Any, batch: Batch) -> Any:
        state = batch.state_of(self)
        r, w, k, v, a, *g = self.time_mix_lerp_fused(x, state)
        values = self.time_mix_value(v)
        if self.first:
            batch.layer_inputs, first = values, None
        else:
            first = FirstValues(batch.layer_inputs, self.time_mix_v2(self.time_mix_v1(v)), self.time_mix_v0())
        y = wkv7(
            self.time_mix_receptance(r),
            self.time_mix_key(k),
            values,
            self.time_mix_w2(softcap(self.time_mix_w1(w), 1.0)),
            self.time_mix_a2(self.time_mix_a1(a)),
            self.weights,
            state,
            first=first,
            norm=None if self.time_mix_ln is None else self.time_mix_ln(),
            gate=self.time_mix_g2(sigmoid(self.time_mix_g1(g[0]))) if g else None,
        )
        return self.time_mix_output(y)

    @property
    def weights(self) -> Wkv7Weights:
        """Those of the heads."""
        vectors = self.time_mix_w0, self.time_mix_a0, self.time_mix_k_k, self.time_mix_k_a, self.time_mix_r_k
        return Wkv7Weights(*(vector() for vector in vectors))


class ChannelMix7(Module):
    """RWKV-7's feed-forward, which has a state: x (tokens, dim) gives (tokens, dim).

    Args:
        dim, ffn: widths of the residual stream and of the hidden layer.
    """

    inline = True

    def __init__(self, dim: int, ffn: int):
        self.channel_mix_lerp_k = TokenShift(dim)
        self.channel_mix_key, self.channel_mix_value = Linear(dim, ffn), Linear(ffn, dim)
        self.state = Recurrent(((1, dim),))

    def forward(self, x: Any, batch: Batch) -> Any:
        (mixed,) = self.channel_mix_lerp_k(x, batch.state_of(self))
        return self.channel_mix_value(relu_squared(self.channel_mix_key(mixed)))
