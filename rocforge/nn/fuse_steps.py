"""The steps that `rocforge.nn.fuse` makes of a model's layers: attention, feed-forwards, and what is called.

A step carries the residual stream past one of them, and begins what the next one does first: its norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rocforge.device.distributed import ALONE
from rocforge.nn.attention import Attention
from rocforge.nn.batch import Batch
from rocforge.nn.layers import LayerNorm, Linear, RMSNorm
from rocforge.nn.low_rank import Tables, add_updates
from rocforge.nn.mlp import MLP, MergedMLP
from rocforge.nn.module import Module, is_hidden, is_plain
from rocforge.ops.activation import add
from rocforge.ops.linear import gated_linear, linear, linear_then_norm, linears
from rocforge.ops.moe import UNITS
from rocforge.ops.norm import add_normed, rms_norm_both_for, rms_norm_for, rms_norms, summed_then_norm
from rocforge.ops.types import Matrices, NextNorm


class Stream(NamedTuple):
    """The residual stream x (tokens, dim); and, if the step before has made it, what the next one's FusedNorms give.

    Of an `owned` one nobody else has x, so that the next step may overwrite it, if it shows x to nobody.
    """

    x: Any
    normed: list[Any] | None = None
    owned: bool = False

    @classmethod
    def of(cls, x: Any, normed: Any, owned: bool = False) -> Stream:
        """With what a single norm gives, or None."""
        return cls(x, None if normed is None else [normed], owned)


class FusedNorms:
    """Hidden norms of one stream, and the plain products of each, which they give in the form that these take."""

    def __init__(self, *norms: NextNorm):
        self.norms = norms

    @property
    def only(self) -> NextNorm | None:
        """The norm, where it is a plain one alone: what products can begin."""
        norm = self.norms[0] if len(self.norms) == 1 else None
        return norm if norm is not None and norm.normalizes and norm.scale == 1 else None

    def __call__(self, stream: Stream) -> list[Any]:
        if stream.normed is not None:
            return stream.normed
        if (norm := self.only) is not None:
            return [rms_norm_for(norm.consumers, stream.x, norm.weight, norm.eps)]
        return rms_norms(stream.x, self.norms)


def fused_norm(norm: Module | None, layers: Sequence[Module], tables: Tables) -> FusedNorms | None:
    """A norm with the products of it; without a norm what the products take is the stream."""
    plain = [layer for layer in layers if is_plain(layer, Linear) and layer not in tables]
    if len(plain) < len(layers) or not (norm is None or is_hidden(norm, RMSNorm)):
        return None
    weights = [layer.weight for layer in plain]
    if norm is None:
        return FusedNorms(NextNorm(None, 0.0, weights, normalizes=False))
    return FusedNorms(NextNorm(norm.weight, norm.eps, weights))


class Step:
    """Carries the stream past a mixer: `x + post(mixer(pre(x)))`, times a factor.

    Attributes:
        norm_in: the norm before the mixer, where it is fused with the products after it.
        stateful: whether a token's result depends on others'.
        group: of cards which each compute a part of the mixer; its rank 0 adds the stream to its part.
        normalizes: whether the norm behind the mixer is hidden.
        factor: on the stream in the end, (1,), where there is such a norm; or None.
    """

    norm_in: FusedNorms | None = None
    stateful = False
    group = ALONE
    factor: Any = None

    def __init__(self, mixer: Module, pre: Module | None, post: Module | None):
        self.mixer, self.pre, self.post = mixer, pre, post
        self.normalizes = is_hidden(post, RMSNorm)

    def enter(self, stream: Stream) -> Any:
        """The mixer's x."""
        if self.norm_in is not None:
            return self.norm_in(stream)[0]
        return stream.x if self.pre is None else self.pre(stream.x)

    def leave(self, x: Any, y: Any, following: FusedNorms | None) -> Stream:
        """The stream x past a mixer that gave y."""
        y = self.group.all_reduce(y)
        if self.normalizes:
            return self.add_normed(x, [y], [self.post], following)
        return Stream(add(x, y if self.post is None else self.post(y)))

    def add_normed(self, x: Any, ys: list[Any], norms: list[Any], following: FusedNorms | None) -> Stream:
        """The stream x past what gave ys, which go through norms."""
        return Stream(*add_normed(x, ys, norms, self.factor, () if following is None else following.norms))

    def summed(self, x: Any, norm: NextNorm | None) -> Stream:
        """The stream of which x is the card's part."""
        if norm is None:
            return Stream(self.group.all_reduce(x))
        return Stream.of(*summed_then_norm(self.group, x, norm.weight, norm.eps, norm.consumers))

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorms | None) -> Stream:
        """The stream past this step; `following` are the next one's norms, where these are fused."""
        raise NotImplementedError


class CalledStep(Step):
    """A mixer that is called."""

    def __init__(self, mixer: Module, pre: Module | None, post: Module | None, stateful: bool):
        super().__init__(mixer, pre, post)
        self.stateful = stateful

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorms | None) -> Stream:
        y = self.enter(stream)
        return self.leave(stream.x, self.mixer(y, batch) if self.stateful else self.mixer(y), following)


class CalledWhole:
    """A block, or the end of one, that is called with the stream and gives the stream."""

    norm_in, stateful = None, True

    def __init__(self, module: Module):
        self.module = module

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorms | None) -> Stream:
        return Stream(self.module(stream.x, batch))


class ProjectedStep(Step):
    """A mixer that begins with products of one x, and ends with a product."""

    def __init__(self, mixer: Any, pre: Module | None, post: Module | None, last: Module, tables: Tables):
        super().__init__(mixer, pre, post)
        self.layers, self.last = mixer.projections, last
        self.norm_in = fused_norm(pre, self.layers, tables)
        self.adds = post is None and is_hidden(last, Linear) and not mixer.observers
        self.adapted, self.last_adapted = any(layer in tables for layer in self.layers), last in tables
        self.last_weight = last.weight if is_plain(last, Linear) and not self.last_adapted else None
        both = fused_norm(pre, self.layers, {}) if self.adapted else None
        self.norm_both = None if both is None else both.only
        fused = self.norm_in is not None or self.norm_both is not None
        # what a user's module sees, stays
        self.overwrites = fused or is_plain(pre, RMSNorm) or is_plain(pre, LayerNorm)

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
        if (norm := self.norm_both) is None:
            x = self.enter(stream)
            return x, x
        return rms_norm_both_for(norm.consumers, stream.x, norm.weight, norm.eps)

    def finish(self, stream: Stream, y: Any, following: FusedNorms | None) -> Stream:
        """The stream past the mixer, whose last product takes y."""
        x, overwrites = stream.x, stream.owned and self.overwrites
        if not self.adds:
            return self.leave(x, self.mixer.observed(self.last(y)), following)
        weight, bias, norm = self.last.weight, self.last.bias, None if following is None else following.only
        if norm is None or self.last_adapted or self.group.size > 1:
            total = linear(y, weight, bias, x if self.group.rank == 0 else None, overwrites)
            add_updates([self.last], [total], y)
            return self.summed(total, norm)._replace(owned=True)
        of_norm = norm.weight, norm.eps, norm.consumers
        return Stream.of(*linear_then_norm(y, weight, bias, x, *of_norm, overwrites), owned=True)


class AttentionStep(ProjectedStep):
    """Norms of the heads, rope, storing, attention and gate are one op, that writes what the output product takes."""

    stateful = True

    def __init__(self, mixer: Attention, pre: Module | None, post: Module | None, tables: Tables):
        super().__init__(mixer, pre, post, mixer.attn_output, tables)
        norms = [norm for norm in (mixer.attn_q_norm, mixer.attn_k_norm) if norm is not None]
        plain = mixer.norms == "head" and mixer.temperature is None
        self.fuses_norms = plain and all(is_hidden(norm, RMSNorm) for norm in norms)

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorms | None) -> Stream:
        attn = self.mixer
        q, k, v, gate = attn.split(self.project(stream))
        fused = {}
        if self.fuses_norms:
            q_norm, k_norm = attn.attn_q_norm, attn.attn_k_norm
            fused = {"q_norm": q_norm.weight, "k_norm": k_norm and k_norm.weight, "eps": q_norm.eps}
        else:
            q, k = attn.prepare(q, k, batch)
        y = attn.attend(q, k, v, batch, gate, self.last_weight, **fused)
        return self.finish(stream, y if self.last_weight is not None else y.reshape(len(q), -1), following)


class MixerStep(ProjectedStep):
    """The products of one x are of one launch, where they can be; between them and the last one the mixer `mix`es, as
    one op perhaps, that writes what the last one takes."""

    stateful = True

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorms | None) -> Stream:
        return self.finish(stream, self.mixer.mix(self.project(stream), batch, self.last_weight), following)


class MLPStep(ProjectedStep):
    """Gate, up and activation are one op, that writes what the last product takes."""

    def __init__(self, mixer: Any, pre: Module | None, post: Module | None, tables: Tables):
        super().__init__(mixer, pre, post, mixer.ffn_down, tables)
        gated = type(mixer) is MergedMLP or (type(mixer) is MLP and len(self.layers) == 2)
        self.fuses_gate = gated and mixer.activation in UNITS and not self.adapted
        self.fuses_gate &= all(is_hidden(layer, Linear) for layer in self.layers)

    def __call__(self, stream: Stream, batch: Batch, following: FusedNorms | None) -> Stream:
        return self.finish(stream, self.hidden(stream), following)

    def product(self, hidden: Any) -> Any:
        """What the feed-forward gives, of what the last product takes."""
        return self.mixer.observed(self.last(hidden))

    def hidden(self, stream: Stream) -> Any:
        """What the last product takes."""
        if not self.fuses_gate:
            return self.mixer.activate(self.project(stream))
        gate, up = (*self.layers, Matrices(None))[:2]  # of a MergedMLP there is one, with the rows of both
        biases, unit = (gate.bias, up.bias), self.mixer.activation
        return gated_linear(self.enter(stream), gate.weight, up.weight, *biases, unit, self.last_weight)
