"""Feed-forward layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rocforge.nn.layers import Linear
from rocforge.nn.module import Module
from rocforge.ops import activation as activations
from rocforge.ops.moe import halves


class MLP(Module):
    """Feed-forward: `down(activation(gate(x), up(x)))`, or without a gate `down(activation(up(x)))`.

    Args:
        dim, ffn: widths of the residual stream and of the hidden layer.
        activation: a gated unit of rocforge.ops.activation: swiglu, geglu, swiglu_oai; without a gate silu, gelu,
            relu_squared or xielu.
        gate: whether there is one.
        bias: whether the projections have one; "optional" for where the file has.
        constants: what the activation takes beside what the projections give.
    """

    inline = True

    def __init__(
        self,
        dim: int,
        ffn: int,
        activation: str = "swiglu",
        *,
        gate: bool = True,
        bias: bool | str = "optional",
        constants: Sequence[float] = (),
    ):
        self.ffn_gate = Linear(dim, ffn, bias=bias) if gate else None
        self.ffn_up = Linear(dim, ffn, bias=bias)
        self.ffn_down = Linear(ffn, dim, bias=bias)
        self.activation, self.constants = activation, tuple(constants)

    @property
    def projections(self) -> list[Module]:
        """What multiplies x."""
        return [self.ffn_up] if self.ffn_gate is None else [self.ffn_gate, self.ffn_up]

    def forward(self, x: Any) -> Any:
        return self.ffn_down(self.activate([layer(x) for layer in self.projections]))

    def activate(self, projected: list[Any]) -> Any:
        """The hidden layer from what the projections give."""
        return getattr(activations, self.activation)(*projected, *self.constants)


class MergedMLP(Module):
    """As MLP with a gate, where ffn_up holds the rows of gate and up."""

    inline = True

    def __init__(self, dim: int, ffn: int, activation: str = "swiglu", *, bias: bool | str = False):
        self.ffn_up = Linear(dim, 2 * ffn, bias=bias)
        self.ffn_down = Linear(ffn, dim, bias=bias)
        self.activation = activation

    @property
    def projections(self) -> list[Module]:
        """What multiplies x."""
        return [self.ffn_up]

    def forward(self, x: Any) -> Any:
        return self.ffn_down(self.activate([self.ffn_up(x)]))

    def activate(self, projected: list[Any]) -> Any:
        """The hidden layer from what ffn_up gives."""
        return getattr(activations, self.activation)(*halves(*projected))
