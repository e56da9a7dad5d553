"""Fusion: the one place that decides what of a model runs in fewer launches than it has modules.

Models are written as plain modules. `fuse` turns their blocks into steps, each of which carries the residual stream
past attention or feed-forward. A step takes modules together that are plain, which is to say of the very class that
rocforge defines, not edited, and not observed where fusing would leave no output to see. All others are called.
What a kernel can begin of the next step, its norm, comes along with the stream. What adapters update is multiplied
with the rest, and added to; for that its x is there as an array too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rocforge.device.distributed import ALONE
from rocforge.nn.attention import Attention
from rocforge.nn.batch import Batch
from rocforge.nn.block import Block, MixerBlock
from rocforge.nn.delta_net import GatedDeltaNet, TimeStep
from rocforge.nn.kimi_delta import KimiDeltaNet
from rocforge.nn.latent_attention import LatentAttention
from rocforge.nn.layers import Linear, RMSNorm
from rocforge.nn.low_rank import Tables, add_updates, wanted_rows_alone
from rocforge.nn.mlp import MLP, MergedMLP
from rocforge.nn.module import Module, is_hidden, is_plain
from rocforge.nn.moe import Experts, MoE
from rocforge.nn.parallel_experts import ParallelExperts
from rocforge.nn.shard import Summed
from rocforge.nn.shared_experts import JoinedExperts, SharedExpert, SharedMoE, TokenGate
from rocforge.ops.activation import add, sigmoid_gate_rows
from rocforge.ops.embedding import embedding
from rocforge.ops.linear import gated_linear, linear, linear_then_norm, linears
from rocforge.ops.moe import UNITS, experts, mixture
from rocforge.ops.norm import rms_norm, rms_norm_both_for, rms_norm_for, summed_then_norm
from rocforge.ops.types import Matrices, NextNorm


class Stream(NamedTuple):
    """The residual stream x (tokens, dim); and, if the step before has made it, what the next one's FusedNorm gives."""

    x: Any
    normed: Any = None


class FusedNorm:
    """A hidden norm and the plain products of its result, which it gives in the form that they take."""

    def __init__(self, norm: RMSNorm, layers: Sequence[Linear]):
        self.norm, self.weights = norm, [layer.weight for layer in layers]

    @property
    def next_norm(self) -> NextNorm:
        """As ops take it."""
        return NextNorm(self.norm.weight, self.norm.eps, self.weights)

    def __call__(self, stream: Stream) -> Any:
        if stream.normed is not None:
            return stream.normed
        return rms_norm_for(self.weights, stream.x, self.norm.weight, self.norm.eps)


def _fused_norm(norm: Module | None, layers: Sequence[Module], tables: Tables) -> FusedNorm | None:
    plain = [layer for layer in layers if is_plain(layer, Linear) and layer not in tables]
    return FusedNorm(norm, plain) if is_hidden(norm, RMSNorm) and len(plain) == len(layers) else None


class _Step:
    """Carries the stream past a mixer: `x + post(mixer(pre(x)))`.

    Attributes:
        norm_in: the norm before the mixer, where it is fused with the products after it.
        stateful: whether a token's result depends on others'.
        group: of cards which each compute a part of the mixer; its rank 0 adds the stream to its part.
    """

    norm_in: FusedNorm | None = None
    stateful = False
    group = ALONE

    def __init__(self, mixer: Module, pre: Module | None, post: Module | None):
        self.mixer, self.pre, self.post = mixer, pre, post

    def enter(self, stream: Stream) -> Any:
        """The mixer's x."""
        if self.norm_in is not None:
            return self.norm_in(stream)
        return stream.x if self.pre is None else self.pre(stream.x)

    def leave(self, x: Any, y: Any) -> Stream:
        """The stream x past a mixer that gave y."""
        y = self.group.all_reduce(y)
        if is_hidden(self.post, RMSNorm):
            return Stream(rms_norm(y, self.post.weight, self.post.eps, residual=x))
        return Stream(add(x, y if self.post is None else self.post(y)))

    def summed(self, x: Any, following: FusedNorm | None) -> Stream:
        """The stream of which x is the card's part."""
        if following is None:
            return Stream(self.group.all_reduce(x))
        norm = following.norm
        return Stream(*summed_then_norm(self.group, x, norm.weight, norm.eps, following.weights))

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorm | None) -> Stream:
        """The stream past this step; `following` is the next one's norm, where that is fused."""
        raise NotImplementedError


class _Called(_Step):
    """A mixer that is called."""

    def __init__(self, mixer: Module, pre: Module | None, post: Module | None, stateful: bool):
        super().__init__(mixer, pre, post)
        self.stateful = stateful

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorm | None) -> Stream:
        y = self.enter(stream)
        return self.leave(stream.x, self.mixer(y, batch) if self.stateful else self.mixer(y))


class _CalledWhole:
    """A block, or the end of one, that is called with the stream and gives the stream."""

    norm_in, stateful = None, True

    def __init__(self, module: Module):
        self.module = module

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorm | None) -> Stream:
        return Stream(self.module(stream.x, batch))


class _Projected(_Step):
    """A mixer that begins with products of one x, and ends with a product."""

    def __init__(self, mixer: Any, pre: Module | None, post: Module | None, last: Module, tables: Tables):
        super().__init__(mixer, pre, post)
        self.layers, self.last = mixer.projections, last
        self.norm_in = _fused_norm(pre, self.layers, tables)
        self.adds = post is None and is_hidden(last, Linear) and not mixer.observers
        self.adapted, self.last_adapted = any(layer in tables for layer in self.layers), last in tables
        self.last_weight = last.weight if is_plain(last, Linear) and not self.last_adapted else None
        self.norm_both = _fused_norm(pre, self.layers, {}) if self.adapted else None

    def project(self, stream: Stream) -> list[Any]:
        """What each projection gives; the plain ones in one launch where it can be."""
        plain = [layer for layer in self.layers if is_plain(layer, Linear)]
        x, operand = self._both(stream)
        products = linears(operand, [layer.weight for layer in plain], [layer.bias for layer in plain]) if plain else []
        if self.adapted:
            add_updates(plain, products, x)
        ys = iter(products)
        return [layer.observed(next(ys)) if is_plain(layer, Linear) else layer(x) for layer in self.layers]

    def _both(self, stream: Stream) -> tuple[Any, Any]:
        """The mixer's x, and that in the form in which the products take it."""
        if self.norm_both is None:
            x = self.enter(stream)
            return x, x
        norm = self.norm_both.norm
        return rms_norm_both_for(self.norm_both.weights, stream.x, norm.weight, norm.eps)

    def finish(self, x: Any, y: Any, following: FusedNorm | None) -> Stream:
        """The stream x past the mixer, whose last product takes y."""
        if not self.adds:
            return self.leave(x, self.mixer.observed(self.last(y)))
        weight, bias = self.last.weight, self.last.bias
        if following is None or self.last_adapted or self.group.size > 1:
            total = linear(y, weight, bias, x if self.group.rank == 0 else None)
            add_updates([self.last], [total], y)
            return self.summed(total, following)
        norm = following.norm
        return Stream(*linear_then_norm(y, weight, bias, x, norm.weight, norm.eps, following.weights))


class _Attention(_Projected):
    """Norms of the heads, rope, storing and attention are one op, that writes what the output product takes."""

    stateful = True

    def __init__(self, mixer: Attention, pre: Module | None, post: Module | None, tables: Tables):
        super().__init__(mixer, pre, post, mixer.attn_output, tables)
        norms = [norm for norm in (mixer.attn_q_norm, mixer.attn_k_norm) if norm is not None]
        plain = mixer.norms == "head" and mixer.temperature is None
        self.fuses_norms = plain and all(is_hidden(norm, RMSNorm) for norm in norms)

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorm | None) -> Stream:
        attn = self.mixer
        q, k, v, gate = attn.split(self.project(stream))
        fused = {}
        if self.fuses_norms:
            q_norm, k_norm = attn.attn_q_norm, attn.attn_k_norm
            fused = {"q_norm": q_norm.weight, "k_norm": k_norm and k_norm.weight, "eps": q_norm.eps}
        else:
            q, k = attn.prepare(q, k, batch)
        if gate is None and self.last_weight is not None:
            return self.finish(stream.x, attn.attend(q, k, v, batch, consumer=self.last_weight, **fused), following)
        y = attn.attend(q, k, v, batch, **fused).reshape(len(q), -1)
        return self.finish(stream.x, y if gate is None else attn.gated(y, gate), following)


class _Mixer(_Projected):
    """The products of one x are of one launch, where they can be; between them and the last one the mixer `mix`es."""

    stateful = True

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorm | None) -> Stream:
        return self.finish(stream.x, self.mixer.mix(self.project(stream), batch), following)


class _DeltaNet(_Projected):
    """What is between the products is one op, that writes what the last product takes."""

    stateful = True

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorm | None) -> Stream:
        return self.finish(stream.x, self.mixer.mix(self.project(stream), batch, self.last_weight), following)


class _MLP(_Projected):
    """Gate, up and activation are one op, that writes what the last product takes."""

    def __init__(self, mixer: Any, pre: Module | None, post: Module | None, tables: Tables):
        super().__init__(mixer, pre, post, mixer.ffn_down, tables)
        gated = type(mixer) is MLP and len(self.layers) == 2 and mixer.activation in UNITS and not self.adapted
        self.fuses_gate = gated and all(is_hidden(layer, Linear) for layer in self.layers)

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorm | None) -> Stream:
        if self.fuses_gate:
            gate, up = self.layers
            biases = gate.bias, up.bias
            y = gated_linear(
                self.enter(stream), gate.weight, up.weight, *biases, self.mixer.activation, self.last_weight
            )
        else:
            y = self.mixer.activate(self.project(stream))
        return self.finish(stream.x, y, following)


class _SharedExpert:
    """Gate, up and activation are one op, that writes what the last product takes, which adds the residual."""

    def __init__(self, expert: SharedExpert, norm: RMSNorm | None):
        self.expert, self.norm = expert, norm
        self.gate, self.up = expert.projections

    def __call__(self, x: Any, y: Any, residual: Any) -> Any:
        """What the expert gives of the stream x, which its norm makes y of, or of y; with the residual, if any."""
        expert, operand = self.expert, y
        token_gate = expert.ffn_gate_inp_shexp
        if self.norm is not None:
            how = [self.gate.weight, self.up.weight], x, self.norm.weight, self.norm.eps
            y, operand = (None, rms_norm_for(*how)) if token_gate is None else rms_norm_both_for(*how)
        gate, up, down = self.gate, self.up, expert.ffn_down_shexp
        consumer = down.weight if token_gate is None else None
        hidden = gated_linear(operand, gate.weight, up.weight, gate.bias, up.bias, expert.activation, consumer)
        if token_gate is not None:
            hidden = sigmoid_gate_rows(hidden, token_gate(y))
        return linear(hidden, down.weight, down.bias, residual)


class _MoE(_Step):
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

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorm | None) -> Stream:
        x, called = stream.x, self.shared is not None and self.fused_shared is None
        y = None if self.fused_norm is not None and not called else self.enter(stream)
        if self.post is None and not self.mixer.observers:
            residual = self.with_shared(x, y, None if self.group.rank else x)
            if self.group.size > 1:
                return self.summed(self.products(x, y, residual, None)[0], following)
            return Stream(*self.products(x, y, residual, None if following is None else following.next_norm))
        return self.leave(x, self.mixer.observed(self.products(x, y, self.with_shared(x, y, None), None)[0]))

    def with_shared(self, x: Any, y: Any, residual: Any) -> Any:
        """The residual and what the shared expert gives, if there is one; None where there is neither."""
        if self.joined is not None:
            return residual
        if self.fused_shared is not None:
            return self.fused_shared(x, y, residual)
        if self.shared is None:
            return residual
        return self.shared(y) if residual is None else add(residual, self.shared(y))

    def products(self, x: Any, y: Any, residual: Any, following: NextNorm | None) -> tuple[Any, Any]:
        """What the chosen experts give, with the residual, and the norm of that, if it is made with it.

        Args:
            x: the stream.
            y: that as the mixer takes it, which only a norm that is not fused needs.
            residual: is added; or None.
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


class _ParallelExperts(_Step):
    """The experts' products and sums are one op."""

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorm | None) -> Stream:
        x, both = self.enter(stream), self.mixer
        moe: MoE = both.routed
        y, ids, weights = moe.choose(both.pre_ffw_norm_2(x), x, moe.ffn_down_exps.scale)
        mixed = experts(y, ids, weights, *moe.matrices, moe.activation)
        return self.leave(stream.x, both.observed(both.join(x, moe.observed(mixed))))


def _shared_expert(expert: SharedExpert, norm: RMSNorm | None, tables: Tables) -> _SharedExpert | None:
    layers, gate = [*expert.projections, expert.ffn_down_shexp], expert.ffn_gate_inp_shexp
    plain = is_hidden(expert, SharedExpert) and (gate is None or is_hidden(gate, TokenGate))
    gated = len(layers) == 3 and expert.activation in UNITS and not expert.constants
    hidden = all(is_hidden(layer, Linear) and layer not in tables for layer in layers)
    return _SharedExpert(expert, norm) if plain and gated and hidden else None


def _step(mixer: Module, pre: Module | None, post: Module | None, stateful: bool, tables: Tables) -> _Step:
    if is_hidden(mixer, Summed):
        step = _step(mixer.mixer, pre, post, stateful, tables)
        step.group = mixer.group
        return step
    if is_plain(mixer, Attention):
        return _Attention(mixer, pre, post, tables)
    if is_plain(mixer, GatedDeltaNet) and _is_plain_inside(mixer):
        return _DeltaNet(mixer, pre, post, mixer.ssm_out, tables)
    if is_plain(mixer, LatentAttention) or is_plain(mixer, KimiDeltaNet):
        return _Mixer(mixer, pre, post, mixer.attn_output, tables)
    if is_plain(mixer, MLP) or is_plain(mixer, MergedMLP):
        return _MLP(mixer, pre, post, tables)
    if isinstance(mixer, MoE | SharedMoE) and _has_plain_experts(mixer):
        return _MoE(mixer, pre, post, tables)
    if is_plain(mixer, ParallelExperts) and _has_plain_experts(mixer.routed):
        return _ParallelExperts(mixer, pre, post)
    return _Called(mixer, pre, post, stateful)


def _has_plain_experts(mixer: Module) -> bool:
    """Whether a mixer is a mixture of experts whose products need not be called."""
    if is_plain(mixer, SharedMoE):
        return not mixer.routed.observers and _has_plain_experts(mixer.routed)
    if not is_plain(mixer, MoE) or mixer.activation not in UNITS:
        return False
    return all(is_hidden(layer, Experts) for layer in mixer.matrices if layer is not None)


def _is_plain_inside(mixer: GatedDeltaNet) -> bool:
    """Whether a DeltaNet's ssm_dt and ssm_norm need not be called."""
    return is_hidden(mixer.ssm_norm, RMSNorm) and is_hidden(mixer.ssm_dt, TimeStep)


def _rows_of(stream: Stream, rows: Any) -> Stream:
    """Those rows alone, of which logits are wanted."""
    wanted_rows_alone()
    return Stream(embedding(rows, stream.x))


class Fused:
    """The blocks of a model as steps, and how the residual stream leaves them.

    Args:
        blocks: the model's.
        norm, output: of the model.
        tables: of what adapters update.

    Attributes:
        tables: as given.
        frequencies: the rotary embeddings of the attention layers, each once.
        shows_patterns: whether somebody looks at attention patterns, or changes one.
    """

    def __init__(self, blocks: Sequence[Module], norm: Module, output: Module, tables: Tables):
        self.norm, self.tables, self.norm_in = norm, tables, _fused_norm(norm, [output], tables)
        self._steps: list[Any] = []
        self._seen: dict[int, Module] = {}  # steps after which an observed block's output is there
        for block in blocks:
            if is_plain(block, Block) and not block.parallel:
                self._steps += [_step((block.attn, block.ffn)[i], *block.norms(i), i == 0, tables) for i in (0, 1)]
                self._steps += [] if block.after is None else [_CalledWhole(block.after)]
                self._seen[len(self._steps) - 1] = block
            elif is_plain(block, MixerBlock):
                self._steps.append(_step(block.mixer, block.norm, None, block.stateful, tables))
                self._seen[len(self._steps) - 1] = block
            else:
                self._steps.append(_CalledWhole(block))
        below = [module for block in blocks for _, module in block.named_modules()]
        ropes = [getattr(module, "rope", None) for module in below]
        self.frequencies = list({id(rope): rope for rope in ropes if rope is not None}.values())
        self.shows_patterns = any(isinstance(module, Attention) and module.shows_pattern for module in below)
        norms = [step.norm_in for step in self._steps[1:]]
        self._following = [*norms, self.norm_in]

    def __call__(self, x: Any, batch: Batch, rows: Any = None) -> Stream:
        """The stream x (tokens, dim) past all blocks.

        Args:
            rows: those wanted of it; None: all. The last feed-forward computes no others.
        """
        stream, last = Stream(x), len(self._steps) - 1
        early = rows is not None and not self._steps[last].stateful
        for i, (step, following) in enumerate(zip(self._steps, self._following, strict=True)):
            if early and i == last:
                stream = _rows_of(stream, rows)
            stream = step(stream, batch, None if early and i == last - 1 else following)
            if (block := self._seen.get(i)) is not None and block.observers:
                block.observed(stream.x)
        return stream if rows is None or early else _rows_of(stream, rows)

    def leave(self, stream: Stream, plain: bool = False) -> Any:
        """The stream normalized: as the output takes it, or as an array (rows, dim)."""
        return self.norm(stream.x) if plain or self.norm_in is None else self.norm_in(stream)
