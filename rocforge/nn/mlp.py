"""Feed-forward layers, dense and with experts, as residual layers: norm, products, activation, residual."""

from __future__ import annotations

from typing import Any

from rocforge.errors import GGUFError
from rocforge.nn.batch import Batch
from rocforge.nn.config import Config
from rocforge.nn.layers import Entry, Linear, RMSNorm, apply_together, plain
from rocforge.nn.module import Module, Parameter
from rocforge.ops import activation as activations
from rocforge.ops.device.experts import takes_int8
from rocforge.ops.linear import gated_linear
from rocforge.ops.moe import experts, route
from rocforge.ops.norm import rms_norm_both


class MLP(Module):
    """Gated feed-forward: `x + down(activation(gate(norm(x)), up(norm(x))))`; x (tokens, dim) or Ahead gives the like.

    Args:
        config: the sizes.
        activation: the name of a gated unit of rocforge.ops.activation: swiglu, geglu or swiglu_oai.
        bias: whether the projections have one; "optional" for where the file has.
        post_norm: the result is normalized before it is added to the residual (post_ffw_norm).
    """

    inline = True

    def __init__(
        self, config: Config, activation: str = "swiglu", *, bias: bool | str = False, post_norm: bool = False
    ):
        c = config
        self.ffn_norm = RMSNorm(c.dim, c.norm_eps)
        self.ffn_gate = Linear(c.dim, c.ffn, bias=bias)
        self.ffn_up = Linear(c.dim, c.ffn, bias=bias)
        self.ffn_down = Linear(c.ffn, c.dim, bias=bias)
        if post_norm:
            self.post_ffw_norm = RMSNorm(c.dim, c.norm_eps)
        self.activation, self.post_norm = activation, post_norm

    @property
    def entry(self) -> Entry:
        return Entry(self.ffn_norm, (self.ffn_gate, self.ffn_up))

    def forward(self, x: Any, batch: Batch, then: Entry | None = None) -> Any:
        gate, up, y = self.ffn_gate, self.ffn_up, self.entry(x)
        if gate.observers or up.observers:
            y = getattr(activations, self.activation)(*apply_together(y, gate, up))
        else:
            y = gated_linear(y, gate.weight, up.weight, gate.bias, up.bias, self.activation, self.ffn_down.weight)
        if self.post_norm:
            return self.post_ffw_norm(self.ffn_down(y), residual=plain(x))
        return self.ffn_down.add_to(x, y, then)


class FusedMLP(Module):
    """As MLP, where ffn_up holds the rows of gate and up."""

    inline = True

    def __init__(self, config: Config, activation: str = "swiglu"):
        c = config
        self.ffn_norm = RMSNorm(c.dim, c.norm_eps)
        self.ffn_up = Linear(c.dim, 2 * c.ffn)
        self.ffn_down = Linear(c.ffn, c.dim)
        self.activation, self.ffn = activation, c.ffn

    @property
    def entry(self) -> Entry:
        return Entry(self.ffn_norm, (self.ffn_up,))

    def forward(self, x: Any, batch: Batch, then: Entry | None = None) -> Any:
        y = self.ffn_up(self.entry(x))
        y = getattr(activations, self.activation)(y[:, : self.ffn], y[:, self.ffn :])
        return self.ffn_down.add_to(x, y, then)


class Experts(Module):
    """One matrix an expert: weight (experts, rows, columns), bias (experts, rows) or none; `experts` multiplies."""

    def __init__(self, config: Config, columns: int, rows: int, bias: bool = False):
        self.weight = Parameter(config.experts, rows, columns)
        self.bias = Parameter(config.experts, rows, matrix=False) if bias else None


class MoE(Module):
    """Mixture of experts: a router (ffn_gate_inp) sends each token to a few gated feed-forwards.

    Args:
        config: the sizes.
        activation: the name of a gated unit of rocforge.ops.activation: swiglu, geglu or swiglu_oai.
        bias: router and experts have biases.
        softmax_before, normalize: as in rocforge.ops.moe.route.
        norm: the name of the layer's norm.
    """

    inline = True

    def __init__(
        self,
        config: Config,
        activation: str = "swiglu",
        *,
        bias: bool = False,
        softmax_before: bool = True,
        normalize: bool = True,
        norm: str = "ffn_norm",
    ):
        c = config
        if not c.experts:
            raise GGUFError(f"metadata {c.architecture}.expert_count is 0; allowed are integers from 1")
        setattr(self, norm, RMSNorm(c.dim, c.norm_eps))
        self.ffn_gate_inp = Linear(c.dim, c.experts, bias=bias)
        self.ffn_gate_exps = Experts(c, c.dim, c.expert_ffn, bias)
        self.ffn_up_exps = Experts(c, c.dim, c.expert_ffn, bias)
        self.ffn_down_exps = Experts(c, c.expert_ffn, c.dim, bias)
        self.norm, self.activation, self.used, self.scale = norm, activation, c.experts_used, c.expert_scale
        self.softmax_before, self.normalize = softmax_before, normalize

    entry = None

    def forward(self, x: Any, batch: Batch, then: Entry | None = None) -> Any:
        y, operand = self._normalized(x)
        ids, weights = route(self.ffn_gate_inp(y), self.used, self.softmax_before, self.normalize, self.scale)
        matrices = self.ffn_gate_exps, self.ffn_up_exps, self.ffn_down_exps
        return experts(operand, ids, weights, *matrices, self.activation, residual=x)

    def _normalized(self, x: Any) -> tuple[Any, Any]:
        """x normalized, for the router and for the experts: on a device the latter may be int8, of the same launch."""
        norm = getattr(self, self.norm)
        if norm.observers or not takes_int8(len(x), self.ffn_gate_exps, self.ffn_up_exps):
            y = norm(x)
            return y, y
        return rms_norm_both(x, norm.weight, norm.eps)
