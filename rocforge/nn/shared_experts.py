"""Experts that every token takes, beside those that a router chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rocforge.nn.layers import Linear
from rocforge.nn.module import Module
from rocforge.nn.moe import MoE
from rocforge.nn.parameter import Parameter
from rocforge.ops import activation as activations
from rocforge.ops.activation import add, sigmoid_gate_rows
from rocforge.ops.device.weights import with_last
from rocforge.ops.linear import linear
from rocforge.ops.moe import halves
from rocforge.ops.types import Matrices


class TokenGate(Module):
    """One logit a token: weight (dim,)."""

    def __init__(self, dim: int):
        self.weight: Any = Parameter(dim)

    def forward(self, x: Any) -> Any:
        return linear(x, self.weight.reshape(1, -1))


class SharedExpert(Module):
    """A gated feed-forward, of all shared experts as one: x (tokens, dim) gives (tokens, dim).

    Args:
        dim, ffn: widths of the residual stream and of the hidden layer.
        activation: as in MLP.
        gate: the result is multiplied by the sigmoid of a logit of each token (ffn_gate_inp_shexp).
        gated: whether the feed-forward has a gate (ffn_gate_shexp); "merged": ffn_up_shexp has the rows of both.
        constants: what the activation takes beside what the projections give.
    """

    inline = True

    def __init__(
        self,
        dim: int,
        ffn: int,
        activation: str = "swiglu",
        *,
        gate: bool = False,
        gated: bool | str = True,
        constants: Sequence[float] = (),
    ):
        self.ffn_gate_inp_shexp = TokenGate(dim) if gate else None
        self.merged = gated == "merged"
        self.ffn_gate_shexp = Linear(dim, ffn) if gated is True else None
        self.ffn_up_shexp = Linear(dim, 2 * ffn if self.merged else ffn)
        self.ffn_down_shexp = Linear(ffn, dim)
        self.activation, self.constants = activation, tuple(constants)

    @property
    def projections(self) -> list[Module]:
        """What multiplies x."""
        return [self.ffn_up_shexp] if self.ffn_gate_shexp is None else [self.ffn_gate_shexp, self.ffn_up_shexp]

    def forward(self, x: Any) -> Any:
        projected = [layer(x) for layer in self.projections]
        if self.merged:
            projected = [*halves(*projected)]
        hidden = getattr(activations, self.activation)(*projected, *self.constants)
        if self.ffn_gate_inp_shexp is not None:  # a product has no bias, so its x may be scaled instead
            hidden = sigmoid_gate_rows(hidden, self.ffn_gate_inp_shexp(x))
        return self.ffn_down_shexp(hidden)


class SharedMoE(Module):
    """A mixture of experts, and shared ones: the sum of both."""

    inline = True

    def __init__(self, routed: MoE, shared: SharedExpert):
        self.routed, self.shared = routed, shared

    def forward(self, x: Any) -> Any:
        return add(self.routed(x), self.shared(x))


class JoinedExperts(NamedTuple):
    """Router and matrices of a mixture whose last expert is the one that every token takes."""

    router: Matrices
    matrices: tuple[Matrices, Matrices, Matrices]

    @classmethod
    def of(cls, routed: MoE, shared: SharedExpert) -> JoinedExperts | None:
        """Where the shared expert is as large as the others, and lies on the device right behind them; else None."""
        own: tuple[Any, ...] = shared.ffn_gate_shexp, shared.ffn_up_shexp, shared.ffn_down_shexp
        layers = [*routed.matrices, routed.ffn_gate_inp, *own]
        if any(layer is None or layer.bias is not None for layer in layers) or routed.activation != shared.activation:
            return None
        joined = [with_last(many.weight, one.weight) for many, one in zip(routed.matrices, own, strict=True)]
        router, token_gate = routed.ffn_gate_inp.weight, shared.ffn_gate_inp_shexp
        router = router if token_gate is None else with_last(router, token_gate.weight)
        if router is None or any(each is None for each in joined):
            return None
        gate, up, down = map(Matrices, joined)
        return cls(Matrices(router), (gate, up, down))


def with_shared(routed: MoE, sizes: dict[str, Any] | None, **options: Any) -> MoE | SharedMoE:
    """A mixture, beside a shared expert of these sizes, if there are any; options as in SharedExpert."""
    return SharedMoE(routed, SharedExpert(**sizes, **options)) if sizes else routed
