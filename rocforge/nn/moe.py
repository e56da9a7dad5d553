"""Mixture of experts: a router and gated feed-forwards, of which each token takes a few."""

from __future__ import annotations

from typing import Any

from rocforge.nn.layers import Linear
from rocforge.nn.module import Module
from rocforge.nn.parameter import Parameter
from rocforge.ops import activation as activations
from rocforge.ops.linear import linear
from rocforge.ops.moe import combine_experts, expert_linear, halves, route, scale_by_expert
from rocforge.ops.norm import rms_norm
from rocforge.ops.types import Matrices


class Experts(Module):
    """One matrix an expert: weight (experts, rows, columns), bias (experts, rows) or none.

    With `scaled`, and where the file has it, a scale (experts,): a factor on what each expert gives.

    A call takes x (tokens, columns), or one row for each token-expert pair (tokens * used, columns), and the ids
    (tokens, used) of the experts; it gives float32 (tokens * used, rows).
    """

    def __init__(self, experts: int, columns: int, rows: int, bias: bool = False, scaled: bool = False):
        self.weight = Parameter(experts, rows, columns)
        self.bias = Parameter(experts, rows, matrix=False) if bias else None
        self.scale: Any = Parameter(experts, optional=True) if scaled else None

    def forward(self, x: Any, ids: Any) -> Any:
        y = expert_linear(x, ids, Matrices(self.weight, self.bias))
        return y if self.scale is None else scale_by_expert(y, ids, self.scale)


class SelectionBias(Module):
    """What is added to experts' weights when they are chosen: bias (experts,), or none."""

    def __init__(self, experts: int, needed: bool | str):
        self.bias = Parameter(experts, optional=needed is not True)

    def forward(self) -> Any:
        return self.bias


class NormedRouter(Linear):
    """A router with a norm of its own: logits of `rms_norm(x) * scale / sqrt(dim)`; scale (dim,)."""

    def __init__(self, dim: int, experts: int, eps: float):
        super().__init__(dim, experts)
        self.scale, self.eps, self.factor = Parameter(dim), eps, dim**-0.5

    def forward(self, x: Any) -> Any:
        return linear(activations.scale(rms_norm(x, self.scale, self.eps), self.factor), self.weight)


class MoE(Module):
    """Mixture of experts: a router (ffn_gate_inp) sends each token to a few gated feed-forwards.

    A call takes x (tokens, dim), and what the router sees of the same tokens, if that is another array.

    Args:
        dim, ffn: widths of the residual stream and of an expert's hidden layer.
        experts, used: how many there are, and how many each token takes.
        activation: a gated unit of rocforge.ops.activation: swiglu, geglu or swiglu_oai.
        bias: router and experts have biases.
        softmax_before, normalize, scale, sigmoid, groups: as in rocforge.ops.moe.route.
        selection_bias: experts are chosen by weight plus a bias (exp_probs_b); "optional" for where the file has one.
        merged: one weight holds the rows of gate and up (ffn_gate_up_exps), without a bias.
        scaled: as in Experts, of ffn_down_exps.
        router: in place of the usual one.
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
        merged: bool = False,
        scaled: bool = False,
        router: Module | None = None,
    ):
        self.ffn_gate_inp: Module = router or Linear(dim, experts, bias=bias)
        if merged:
            self.ffn_gate_up_exps = Experts(experts, dim, 2 * ffn)
        else:
            self.ffn_gate_exps = Experts(experts, dim, ffn, bias)
            self.ffn_up_exps = Experts(experts, dim, ffn, bias)
        self.merged = merged
        self.ffn_down_exps = Experts(experts, ffn, dim, bias, scaled)
        self.activation = activation
        self.exp_probs_b = SelectionBias(experts, selection_bias) if selection_bias else None
        self.policy = (used, softmax_before, normalize, scale, sigmoid, groups)

    @property
    def routing(self) -> tuple[Any, ...]:
        """What rocforge.ops.moe.route takes after the logits."""
        return (*self.policy, None if self.exp_probs_b is None else self.exp_probs_b())

    @property
    def matrices(self) -> tuple[Any, Any, Any]:
        """Gate, up and down, as rocforge.ops.moe.experts takes them."""
        gate_and_up = (self.ffn_gate_up_exps, None) if self.merged else (self.ffn_gate_exps, self.ffn_up_exps)
        return (*gate_and_up, self.ffn_down_exps)

    def forward(self, x: Any, router_x: Any = None) -> Any:
        ids, weights = self.route(x if router_x is None else router_x)
        gate, up, down = self.matrices
        pair = halves(gate(x, ids)) if up is None else (gate(x, ids), up(x, ids))
        return combine_experts(down(getattr(activations, self.activation)(*pair), ids), weights)

    def route(self, x: Any, expert_scales: Any = None) -> tuple[Any, Any]:
        """The experts of each token, ids and weights (tokens, used); expert_scales as in rocforge.ops.moe.route."""
        policy = (*self.routing, expert_scales)
        return route(self.ffn_gate_inp(x), *policy)
