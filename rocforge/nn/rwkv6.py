"""RWKV-6: time mix, with mixtures of tokens that a token itself has a say in, and channel mix with a gate.

Source: Peng et al., Eagle and Finch, https://arxiv.org/abs/2404.05892.
"""

from __future__ import annotations

from typing import Any

from rocforge.nn.batch import Batch
from rocforge.nn.layers import Linear, Vector
from rocforge.nn.module import Module
from rocforge.nn.parameter import Parameter
from rocforge.nn.rwkv7 import HeadNorms, TokenShift
from rocforge.nn.state import Recurrent
from rocforge.ops.activation import contiguous, relu_squared, sigmoid_gate, softcap
from rocforge.ops.linear import linear
from rocforge.ops.rwkv import gated_linear_attention, token_shift, wkv6

MIXES = "wkvrg"
"""What mixtures are of: decays, keys, values, receptances and gates."""


class Offsets(Module):
    """What a token says of its mixtures: weight (mixes, dim, rank); x (tokens, mixes * rank) gives as many arrays."""

    def __init__(self, dim: int, rank: int):
        self.weight: Any = Parameter(len(MIXES), dim, rank)

    def forward(self, x: Any) -> list[Any]:
        rank = self.weight.shape[2]
        runs = [contiguous(x[:, i * rank : (i + 1) * rank]) for i in range(len(MIXES))]
        return [linear(run, self.weight[i]) for i, run in enumerate(runs)]


class Mixed6(Module):
    """The mixtures of x (tokens, dim), in the order of MIXES; their state is that of the mixer.

    Args:
        dim: width of x.
        rank: of the offsets.
        fused: one weight has the shares of all mixtures.
    """

    inline = True

    def __init__(self, dim: int, rank: int, fused: bool):
        self.time_mix_lerp_x, self.fused = TokenShift(dim), fused
        self.time_mix_w1, self.time_mix_w2 = Linear(dim, len(MIXES) * rank), Offsets(dim, rank)
        if fused:
            self.time_mix_lerp_fused = Vector(len(MIXES), 1, 1, dim)
        else:
            for name in MIXES:
                setattr(self, f"time_mix_lerp_{name}", Vector(dim))

    def shares(self, dim: int) -> list[Any]:
        """Of each mixture, (1, dim)."""
        if self.fused:
            return list(self.time_mix_lerp_fused().reshape(len(MIXES), 1, dim))
        return [getattr(self, f"time_mix_lerp_{name}")().reshape(1, dim) for name in MIXES]

    def forward(self, x: Any, state: Any) -> list[Any]:
        (mixed,) = self.time_mix_lerp_x(x, state, keep=False)
        offsets = self.time_mix_w2(softcap(self.time_mix_w1(mixed), 1.0))
        every = enumerate(zip(self.shares(x.shape[1]), offsets, strict=True), start=1)
        return [token_shift(x, share, state, own[None], keep=i == len(MIXES))[0] for i, (share, own) in every]


def _projected(mixer: Any, x: Any, state: Any) -> tuple[tuple[Any, Any, Any, Any, Any], Any]:
    """Receptance, keys, values and decays of x, mixed with the tokens before, and the gate."""
    w, k, v, r, g = mixer.mixed(x, state)
    decays = mixer.time_mix_decay_w2(softcap(mixer.time_mix_decay_w1(w), 1.0))
    parts = mixer.time_mix_receptance(r), mixer.time_mix_key(k), mixer.time_mix_value(v)
    return (*parts, decays, mixer.time_mix_decay()), mixer.time_mix_gate(g)


class TimeMix6(Module):
    """RWKV-6's mixer: x (tokens, dim) gives (tokens, dim).

    Args:
        dim: width of the residual stream, which the heads share.
        head_dim: elements of a head.
        mix, decay: ranks of the matrices that make these of x.
        fused: as in Mixed6.
    """

    inline = True

    def __init__(self, dim: int, head_dim: int, mix: int, decay: int, fused: bool):
        self.mixed = Mixed6(dim, mix, fused)
        self.time_mix_receptance, self.time_mix_key, self.time_mix_value = (Linear(dim, dim) for _ in range(3))
        self.time_mix_gate, self.time_mix_first = Linear(dim, dim), Vector(dim // head_dim, head_dim)
        self.time_mix_decay = Vector(dim)
        self.time_mix_decay_w1, self.time_mix_decay_w2 = Linear(dim, decay), Linear(decay, dim)
        self.time_mix_ln, self.time_mix_output = HeadNorms(dim), Linear(dim, dim)
        self.state = Recurrent(((1, dim), (dim // head_dim, head_dim, head_dim)))

    def forward(self, x: Any, batch: Batch) -> Any:
        state = batch.state_of(self)
        given, gate = _projected(self, x, state)
        y = wkv6(*given, state, bonus=self.time_mix_first().reshape(-1), norm=self.time_mix_ln(), gate=gate)
        return self.time_mix_output(y)


class LinearTimeMix6(Module):
    """Gated linear attention with RWKV-6's mixtures and decays: x (tokens, dim) gives (tokens, dim).

    Args:
        dim, head_dim, mix, decay: as in TimeMix6.
        kv_heads: heads of keys and values.
    """

    inline = True

    def __init__(self, dim: int, head_dim: int, kv_heads: int, mix: int, decay: int):
        self.mixed, inner = Mixed6(dim, mix, fused=True), kv_heads * head_dim
        self.time_mix_receptance = Linear(dim, dim, bias="optional")
        self.time_mix_key, self.time_mix_value = (Linear(dim, inner, bias="optional") for _ in range(2))
        self.time_mix_gate, self.time_mix_decay = Linear(dim, dim), Vector(dim)
        self.time_mix_decay_w1, self.time_mix_decay_w2 = Linear(dim, decay), Linear(decay, dim)
        self.time_mix_output, self.scale = Linear(dim, dim), head_dim**-0.5
        self.state = Recurrent(((1, dim), (dim // head_dim, head_dim, head_dim)))

    def forward(self, x: Any, batch: Batch) -> Any:
        state = batch.state_of(self)
        given, gate = _projected(self, x, state)
        y = gated_linear_attention(*given, state, scale=self.scale, gate=gate)
        return self.time_mix_output(y)


class ChannelMix6(Module):
    """RWKV-6's feed-forward, which has a gate and a state: x (tokens, dim) gives (tokens, dim).

    Args:
        dim, ffn: widths of the residual stream and of the hidden layer.
    """

    inline = True

    def __init__(self, dim: int, ffn: int):
        self.channel_mix_lerp_k, self.channel_mix_lerp_r = TokenShift(dim), TokenShift(dim)
        self.channel_mix_key, self.channel_mix_value = Linear(dim, ffn), Linear(ffn, dim)
        self.channel_mix_receptance = Linear(dim, dim)
        self.state = Recurrent(((1, dim),))

    def forward(self, x: Any, batch: Batch) -> Any:
        state = batch.state_of(self)
        (k,), (r,) = self.channel_mix_lerp_k(x, state, keep=False), self.channel_mix_lerp_r(x, state)
        y = self.channel_mix_value(relu_squared(self.channel_mix_key(k)))
        return sigmoid_gate(y, self.channel_mix_receptance(r))
