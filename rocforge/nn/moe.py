"""Mixture of experts: a router and gated feed-forwards, of which each token takes a few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rocforge.nn.layers import Linear
from rocforge.nn.module import Module
from rocforge.nn.parameter import Parameter
from rocforge.ops import activation as activations
from rocforge.ops.activation import scale_rows, softmax
from rocforge.ops.linear import linear
from rocforge.ops.moe import combine_experts, expert_linear, halves, route, scale_by_expert
from rocforge.ops.norm import rms_norm
from rocforge.ops.parts import experts_part
from rocforge.ops.types import Matrices, Part


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
        activation: a gated unit of rocforge.ops.activation: swiglu, geglu, reglu, swiglu_oai; without gate, as in MLP.
        gate: whether experts have one.
        merged: one matrix an expert holds the rows of gate and up (ffn_gate_up_exps).
        constants: what the activation takes beside what gate and up give.
        bias: router and experts have biases.
        softmax_before, normalize, scale, sigmoid, groups: as in rocforge.ops.moe.route.
        selection_bias: experts are chosen by weight plus a bias (exp_probs_b); "optional" for where the file has one,
            "bare" for where its name has no .bias.
        weighs_input: an expert's weight is a factor on what it takes, not on what it gives; for one expert a token.
        scaled: as in Experts, of ffn_down_exps.
        router: in place of the usual one.

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
        gate: bool = True,
        merged: bool = False,
        constants: Sequence[float] = (),
        bias: bool = False,
        softmax_before: bool = True,
        normalize: bool = True,
        scale: float = 1.0,
        sigmoid: bool = False,
        groups: tuple[int, int] = (1, 1),
        selection_bias: bool | str = False,
        weighs_input: bool = False,
        scaled: bool = False,
        router: Module | None = None,
    ):
        self.ffn_gate_inp: Module = router or Linear(dim, experts, bias=bias)
        self.ffn_gate_up_exps = Experts(experts, dim, 2 * ffn, bias) if merged else None
        self.ffn_gate_exps = Experts(experts, dim, ffn, bias) if gate and not merged else None
        self.ffn_up_exps = None if merged else Experts(experts, dim, ffn, bias)
        self.ffn_down_exps = Experts(experts, ffn, dim, bias, scaled)
        self.activation, self.constants, self.weighs_input = activation, tuple(constants), weighs_input
        self.exp_probs_b: Any = SelectionBias(experts, selection_bias) if selection_bias else None
        if selection_bias == "bare":
            self.exp_probs_b = Parameter(experts, optional=True)
        self.part: Part | None = None
        self.policy = (used, softmax_before, normalize, scale, sigmoid, groups)

    @property
    def routing(self) -> tuple[Any, ...]:
        """What rocforge.ops.moe.route takes after the logits."""
        bias = self.exp_probs_b
        return (*self.policy, bias() if isinstance(bias, Module) else bias)

    @property
    def matrices(self) -> tuple[Any, Any, Any]:
        """Gate, up and down, as rocforge.ops.moe.experts takes them: a merged one is the gate."""
        return self.ffn_gate_up_exps or self.ffn_gate_exps, self.ffn_up_exps, self.ffn_down_exps

    def forward(self, x: Any, router_x: Any = None) -> Any:
        return self.mix(*self.choose(x, router_x))

    def mix(self, x: Any, ids: Any, weights: Any) -> Any:
        """The sum of what the experts of each token, ids and weights (tokens, used), give of x."""
        gate, up, down = self.matrices
        projected = [layer(x, ids) for layer in (gate, up) if layer is not None]
        if self.ffn_gate_up_exps is not None:
            projected = [*halves(*projected)]
        hidden = getattr(activations, self.activation)(*projected, *self.constants)
        return combine_experts(down(hidden, ids), weights)

    def choose(self, x: Any, router_x: Any = None, expert_scales: Any = None) -> tuple[Any, Any, Any]:
        """What the experts take, and the ids and weights as in `experts`.

        Args:
            x: (tokens, dim).
            router_x: what the router sees, if another array.
            expert_scales: as in rocforge.ops.moe.route.
        """
        ids, weights = self.route(x if router_x is None else router_x, expert_scales)
        return (scale_rows(x, weights), ids, softmax(weights)) if self.weighs_input else (x, ids, weights)

    def route(self, x: Any, expert_scales: Any = None) -> tuple[Any, Any]:
        """The experts of each token, ids and weights (tokens, used); of those that this card has, numbered from 0."""
        policy = (*self.routing, expert_scales)
        ids, weights = route(self.ffn_gate_inp(x), *policy)
        return (ids, weights) if self.part is None else experts_part(ids, weights, self.part)
