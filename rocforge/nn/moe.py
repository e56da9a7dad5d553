"""Mixture of experts: a router and gated feed-forwards, of which each token takes a few."""

from __future__ import annotations

from typing import Any

from rocforge.nn.layers import Linear
from rocforge.nn.module import Module
from rocforge.nn.parameter import Parameter
from rocforge.ops import activation as activations
from rocforge.ops.moe import combine_experts, expert_linear, route
from rocforge.ops.parts import experts_part
from rocforge.ops.types import Matrices, Part


class Experts(Module):
    """One matrix an expert: weight (experts, rows, columns), bias (experts, rows) or none.

    A call takes x (tokens, columns), or one row for each token-expert pair (tokens * used, columns), and the ids
    (tokens, used) of the experts; it gives float32 (tokens * used, rows).
    """

    def __init__(self, experts: int, columns: int, rows: int, bias: bool = False):
        self.weight = Parameter(experts, rows, columns)
        self.bias = Parameter(experts, rows, matrix=False) if bias else None

    def forward(self, x: Any, ids: Any) -> Any:
        return expert_linear(x, ids, Matrices(self.weight, self.bias))


class SelectionBias(Module):
    """What is added to experts' weights when they are chosen: bias (experts,), or none."""

    def __init__(self, experts: int, needed: bool | str):
        self.bias = Parameter(experts, optional=needed is not True)

    def forward(self) -> Any:
        return self.bias


class MoE(Module):
    """Mixture of experts: a router (ffn_gate_inp) sends each token to a few gated feed-forwards.

    Args:
        dim, ffn: widths of the residual stream and of an expert's hidden layer.
        experts, used: how many there are, and how many each token takes.
        activation: a gated unit of rocforge.ops.activation: swiglu, geglu or swiglu_oai.
        bias: router and experts have biases.
        softmax_before, normalize, scale, sigmoid, groups: as in rocforge.ops.moe.route.
        selection_bias: experts are chosen by weight plus a bias (exp_probs_b); "optional" for where the file has one.

    Attributes:
        part: the experts that this card has, where they are dealt out over several; None: all.
    """

    inline = True

    def __init__(
        self,
        dim: int,
        ffn: int,
        experts: int,
        used: int,
        activation: str = "swiglu",
        *,
        bias: bool = False,
        softmax_before: bool = True,
        normalize: bool = True,
        scale: float = 1.0,
        sigmoid: bool = False,
        groups: tuple[int, int] = (1, 1),
        selection_bias: bool | str = False,
    ):
        self.ffn_gate_inp = Linear(dim, experts, bias=bias)
        self.ffn_gate_exps = Experts(experts, dim, ffn, bias)
        self.ffn_up_exps = Experts(experts, dim, ffn, bias)
        self.ffn_down_exps = Experts(experts, ffn, dim, bias)
        self.activation = activation
        self.exp_probs_b = SelectionBias(experts, selection_bias) if selection_bias else None
        self.part: Part | None = None
        self.policy = (used, softmax_before, normalize, scale, sigmoid, groups)

    @property
    def routing(self) -> tuple[Any, ...]:
        """What rocforge.ops.moe.route takes after the logits."""
        return (*self.policy, None if self.exp_probs_b is None else self.exp_probs_b())

    def forward(self, x: Any) -> Any:
        ids, weights = self.route(x)
        gate, up = self.ffn_gate_exps(x, ids), self.ffn_up_exps(x, ids)
        y = self.ffn_down_exps(getattr(activations, self.activation)(gate, up), ids)
        return combine_experts(y, weights)

    def route(self, x: Any) -> tuple[Any, Any]:
        """The experts of each token, ids and weights (tokens, used); of those that this card has, numbered from 0."""
        ids, weights = route(self.ffn_gate_inp(x), *self.routing)
        return (ids, weights) if self.part is None else experts_part(ids, weights, self.part)
