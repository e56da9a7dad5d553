"""The steps that `rocforge.nn.fuse` makes of mixtures of experts: alone, with an expert that every token takes, and
beside a feed-forward."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rocforge.nn.batch import Batch
from rocforge.nn.fuse_steps import FusedNorms, MLPStep, Step, Stream
from rocforge.nn.layers import Linear, RMSNorm
from rocforge.nn.low_rank import Tables
from rocforge.nn.mlp import MLP
from rocforge.nn.module import Module, is_hidden, is_plain
from rocforge.nn.moe import Experts, MoE, NormedRouter
from rocforge.nn.parallel_experts import ParallelExperts
from rocforge.nn.shared_experts import JoinedExperts, SharedExpert, SharedMoE, TokenGate
from rocforge.ops.activation import add, sigmoid_gate_rows
from rocforge.ops.linear import gated_linear, linear
from rocforge.ops.moe import UNITS, experts, experts_by_logits, mixture, router_logits, runs_beside
from rocforge.ops.norm import rms_norm_both_for, rms_norm_for
from rocforge.ops.types import ExpertMatrices, Matrices, NextNorm


class _SharedExpert:
    """Gate, up and activation are one op, that writes what the last product takes, which adds the residual."""

    def __init__(self, expert: SharedExpert, norm: RMSNorm | None):
        self.expert, self.norm = expert, norm
        self.gate, self.up = expert.projections

    def hidden(self, x: Any, y: Any) -> Any:
        """What the expert's last product takes, of the stream x, which its norm makes y of, or of y."""
        expert, operand = self.expert, y
        token_gate = expert.ffn_gate_inp_shexp
        if self.norm is not None:
            how = [self.gate.weight, self.up.weight], x, self.norm.weight, self.norm.eps
            y, operand = (None, rms_norm_for(*how)) if token_gate is None else rms_norm_both_for(*how)
        gate, up = self.gate, self.up
        consumer = expert.ffn_down_shexp.weight if token_gate is None else None
        hidden = gated_linear(operand, gate.weight, up.weight, gate.bias, up.bias, expert.activation, consumer)
        return hidden if token_gate is None else sigmoid_gate_rows(hidden, token_gate(y))

    def product(self, hidden: Any, residual: Any) -> Any:
        """What the expert gives, with the residual, if any."""
        down = self.expert.ffn_down_shexp
        return linear(hidden, down.weight, down.bias, residual)


class MoEStep(Step):
    """The experts' products and sums are one op; with the norm, the router and the shared expert, where these are
    hidden."""

    def __init__(self, mixer: MoE | SharedMoE, pre: Module | None, post: Module | None, tables: Tables):
        super().__init__(mixer, pre, post)
        self.routed: MoE = mixer.routed if isinstance(mixer, SharedMoE) else mixer
        router = self.routed.ffn_gate_inp
        alike = self.routed.part is None and not self.routed.weighs_input
        fuses = is_hidden(router, Linear) and router not in tables and alike
        self.fused_norm = pre if fuses and is_hidden(pre, RMSNorm) else None
        self.shared = mixer.shared if isinstance(mixer, SharedMoE) else None
        self.fused_shared = None if self.shared is None else _shared_expert(self.shared, self.fused_norm, tables)
        self.joined: JoinedExperts | None = None
        if self.shared is not None and self.fused_shared is not None and self.fused_norm is not None:
            self.joined = JoinedExperts.of(self.routed, self.shared)

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorms | None) -> Stream:
        x, called = stream.x, self.shared is not None and self.fused_shared is None
        y = None if self.fused_norm is not None and not called else self.enter(stream)
        if self.post is None and not self.mixer.observers:
            norm = None if following is None else following.only
            if self.group.size > 1:
                return self.summed(self.mixed(x, y, None if self.group.rank else x, None)[0], norm)
            return Stream.of(*self.mixed(x, y, x, norm), owned=True)
        return self.leave(x, self.mixer.observed(self.mixed(x, y, None, None)[0]), following)

    def mixed(self, x: Any, y: Any, residual: Any, following: NextNorm | None) -> tuple[Any, Any]:
        """What the shared expert, if there is one, and the chosen ones give; the rest is as in `products`."""
        if self.fused_shared is None or self.fused_norm is None or self.joined is not None:
            return self.products(x, y, self.with_shared(x, y, residual), following)
        # the router runs beside the shared gate and up, the experts' gate and up beside the shared down
        with runs_beside(x, self.routed.ffn_gate_inp.weight) as beside:
            product = functools.partial(self.fused_shared.product, self.fused_shared.hidden(x, y), residual)
            return self.products(x, y, product if beside else product(), following)

    def with_shared(self, x: Any, y: Any, residual: Any) -> Any:
        """The residual and what the shared expert gives, if there is one; None where there is neither."""
        if self.joined is not None:
            return residual
        if self.fused_shared is not None:
            return self.fused_shared.product(self.fused_shared.hidden(x, y), residual)
        if self.shared is None:
            return residual
        return self.shared(y) if residual is None else add(residual, self.shared(y))

    def products(self, x: Any, y: Any, residual: Any, following: NextNorm | None) -> tuple[Any, Any]:
        """What the chosen experts give, with the residual, and the norm of that, if it is made with it.

        Args:
            x: the stream.
            y: that as the mixer takes it, which only a norm that is not fused needs.
            residual: is added; or None; or what makes it, where the norm is fused.
            following: the norm of the result that comes next, if any.
        """
        moe, norm, matrices = self.routed, self.fused_norm, self.routed.matrices
        if norm is not None:
            router = Matrices(moe.ffn_gate_inp.weight, moe.ffn_gate_inp.bias)
            if self.joined is not None:
                router, matrices = self.joined
            how = norm.weight, norm.eps, router, (*moe.routing, moe.ffn_down_exps.scale)
            return mixture(x, *how, *matrices, moe.activation, residual, following, self.joined is not None)
        y, ids, weights = moe.choose(y, expert_scales=moe.ffn_down_exps.scale)
        return experts(y, ids, weights, *matrices, moe.activation, residual), None


class ParallelExpertsStep(Step):
    """The norms of one x before the feed-forward, the experts and the router are of one launch, and so are those behind
    both, with the sums that they go into. Products with the experts choose these by the router's logits."""

    norm_in: FusedNorms

    def __init__(self, mixer: ParallelExperts, post: Module | None, tables: Tables):
        super().__init__(mixer, None, post)
        self.routed: MoE = mixer.routed
        self.dense = MLPStep(mixer.dense, mixer.ffn_norm, None, tables) if is_plain(mixer.dense, MLP) else None
        dense = None if self.dense is None else self.dense.norm_in
        norm, router, matrices = mixer.pre_ffw_norm_2, self.routed.ffn_gate_inp, ExpertMatrices(*self.routed.matrices)
        takes = is_hidden(norm, RMSNorm) and not self.routed.weighs_input
        self.experts_norm = NextNorm(norm.weight, norm.eps, matrices) if takes else None
        chooses = is_hidden(router, NormedRouter) and self.routed.part is None
        self.router_norm = NextNorm(router.scale, router.eps, [router.weight], router.factor) if chooses else None
        norms = [*(dense.norms if dense else ()), self.experts_norm, self.router_norm]
        self.norm_in = FusedNorms(*(each for each in norms if each is not None))
        behind = mixer.post_ffw_norm_1, mixer.post_ffw_norm_2
        joins = not mixer.observers and self.normalizes
        self.norms_behind = [*behind, post] if joins and all(is_hidden(each, RMSNorm) for each in behind) else None

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorms | None) -> Stream:
        x, both = stream.x, self.mixer
        normed = self.norm_in(stream)
        with self.beside(x) as beside:
            y, mixed = self.of_both(x, iter(normed), beside)
        if self.norms_behind is not None and self.group.size == 1:
            return self.add_normed(x, [y, mixed], self.norms_behind, following)
        return self.leave(x, both.observed(both.join(y, mixed)), following)

    def beside(self, x: Any) -> AbstractContextManager[bool]:
        """Whether the router runs beside the dense gate and up, and the experts' gate and up beside the dense down."""
        if self.dense is None or self.router_norm is None:
            return nullcontext(False)
        return runs_beside(x, self.routed.ffn_gate_inp.weight)

    def of_both(self, x: Any, normed: Iterator[Any], beside: bool) -> tuple[Any, Any]:
        """What the feed-forward and the experts give of the stream x, of which `normed` are the fused norms."""
        both, dense, moe = self.mixer, self.dense, self.routed
        hidden = None if dense is None else dense.hidden(Stream.of(x, next(normed) if dense.norm_in else None))
        experts_x = both.pre_ffw_norm_2(x) if self.experts_norm is None else next(normed)
        router = Matrices(moe.ffn_gate_inp.weight) if self.router_norm is not None else None
        logits = None if router is None else router_logits(next(normed), router, beside)
        y = both.dense(both.ffn_norm(x)) if dense is None else dense.product(hidden)
        scales, unit = moe.ffn_down_exps.scale, moe.activation
        if logits is None:
            return y, moe.observed(experts(*moe.choose(experts_x, x, scales), *moe.matrices, unit))
        # a user's module may launch nothing, and the router would be what comes before
        beside = beside and dense is not None and is_plain(dense.last, Linear)
        how = *moe.routing, scales
        return y, moe.observed(experts_by_logits(experts_x, logits, how, *moe.matrices, unit, beside))


def _shared_expert(expert: SharedExpert, norm: RMSNorm | None, tables: Tables) -> _SharedExpert | None:
    layers, gate = [*expert.projections, expert.ffn_down_shexp], expert.ffn_gate_inp_shexp
    plain = is_hidden(expert, SharedExpert) and (gate is None or is_hidden(gate, TokenGate))
    gated = len(layers) == 3 and expert.activation in UNITS and not expert.constants
    hidden = all(is_hidden(layer, Linear) and layer not in tables for layer in layers)
    return _SharedExpert(expert, norm) if plain and gated and hidden else None


def has_plain_experts(mixer: Module) -> bool:
    """Whether a mixer is a mixture of experts whose products need not be called."""
    if is_plain(mixer, SharedMoE):
        return not mixer.routed.observers and has_plain_experts(mixer.routed)
    if not is_plain(mixer, MoE) or mixer.activation not in UNITS:
        return False
    return all(is_hidden(layer, Experts) for layer in mixer.matrices if layer is not None)
