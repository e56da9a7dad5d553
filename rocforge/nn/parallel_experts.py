"""A dense feed-forward and a mixture of experts of the same stream, each between norms of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rocforge.nn.mlp import MLP
from rocforge.nn.module import Module
from rocforge.nn.moe import MoE
from rocforge.ops.activation import add


class ParallelExperts(Module):
    """`post_ffw_norm_1(dense(ffn_norm(x))) + post_ffw_norm_2(experts(pre_ffw_norm_2(x)))`, x (tokens, dim).

    The router sees x itself. Source: Gemma 4.

    Args:
        dense: the feed-forward that every token takes.
        routed: the mixture.
        norm: makes a norm.
    """

    inline = True

    def __init__(self, dense: MLP, routed: MoE, norm: Callable[[], Module]):
        self.ffn_norm, self.dense, self.post_ffw_norm_1 = norm(), dense, norm()
        self.pre_ffw_norm_2, self.routed, self.post_ffw_norm_2 = norm(), routed, norm()

    def forward(self, x: Any) -> Any:
        return self.join(self.dense(self.ffn_norm(x)), self.routed(self.pre_ffw_norm_2(x), x))

    def join(self, y: Any, mixed: Any) -> Any:
        """The sum of both, of what the feed-forward gives and what the mixture does."""
        return add(self.post_ffw_norm_1(y), self.post_ffw_norm_2(mixed))
