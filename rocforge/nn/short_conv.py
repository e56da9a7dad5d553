"""Short convolution: LFM2's mixer, a gated convolution over a few tokens."""

from __future__ import annotations

from typing import Any

from rocforge.nn.batch import Batch
from rocforge.nn.delta_net import CausalConv
from rocforge.nn.layers import Linear
from rocforge.nn.module import Module
from rocforge.nn.state import Recurrent


class ShortConv(Module):
    """A mixer with a state: x (tokens, dim) gives (tokens, dim).

    Args:
        dim: width of the residual stream.
        width: tokens that the convolution sees.
    """

    def __init__(self, dim: int, width: int):
        self.in_proj, self.out_proj = Linear(dim, 3 * dim), Linear(dim, dim)
        self.conv = CausalConv(dim, width, silu=False)
        self.state, self.dim = Recurrent(((width - 1, dim),)), dim

    def forward(self, x: Any, batch: Batch) -> Any:
        y, n = self.in_proj(x), self.dim
        before, after, x = y[:, :n], y[:, n : 2 * n], y[:, 2 * n :]
        return self.out_proj(self.conv(x, batch.state_of(self), (before, after)))


class ShortConvMixer(Module):
    """A short convolution under the names of its tensors, shortconv.*."""

    inline = True

    def __init__(self, dim: int, width: int):
        self.shortconv = ShortConv(dim, width)

    def forward(self, x: Any, batch: Batch) -> Any:
        return self.shortconv(x, batch)
