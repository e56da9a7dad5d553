"""Sharding: the one place that decides which part of a model each card of a group has, before weights are loaded.

Models are written for one card. `shard` goes over a model's tree, cuts the places of its weights, so that loading reads
the card's part alone, and puts a Summed around each mixer of which a card then computes a part: heads of attention,
blocks of columns of a feed-forward, experts of a mixture. Embedding and output are cut by vocabulary. What it cannot
cut stays whole on each card, which computes it as the others do.

Source: Shoeybi et al., Megatron-LM, https://arxiv.org/abs/1909.08053.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rocforge.device.arrays import Constant, get_array_module
from rocforge.device.distributed import Group
from rocforge.errors import UnsupportedModelError
from rocforge.formats.blocks import block_elements
from rocforge.gguf.file import Tensors
from rocforge.nn.attention import Attention
from rocforge.nn.layers import Embedding, Linear, RMSNorm
from rocforge.nn.mlp import MLP, MergedMLP
from rocforge.nn.module import Module
from rocforge.nn.moe import MoE
from rocforge.nn.parameter import Parameter
from rocforge.nn.rwkv6 import ChannelMix6
from rocforge.nn.rwkv7 import ChannelMix7
from rocforge.nn.shared_experts import SharedExpert, SharedMoE
from rocforge.nn.state import PagedKV, SharedKV
from rocforge.ops.linear import linear
from rocforge.ops.parts import embedding_part, joined
from rocforge.ops.types import Part
from rocforge.quant import QuantizedArray

LARGEST_BLOCK = 256
"""Elements; columns are cut at multiples of it where there are enough."""


class Summed(Module):
    """A mixer of which each card computes a part: gives the sum over the cards of a group."""

    inline = True

    def __init__(self, mixer: Module, group: Group):
        self.mixer, self.group = mixer, group

    def forward(self, *args: Any) -> Any:
        return self.group.all_reduce(self.mixer(*args))


class EmbeddingPart(Embedding):
    """An Embedding of which each card has some rows."""

    def __init__(self, whole: Embedding, group: Group):
        self.group, self.vocabulary = group, whole.weight.shape[0]
        self.part = _vocabulary_part(self.vocabulary, group)
        self.weight = whole.weight.cut(0, [_rows_from(self.part, self.vocabulary, group)])

    def forward(self, ids: Any) -> Any:
        if get_array_module(ids) is np and ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise IndexError(f"embedding: ids {ids.min()} to {ids.max()}; allowed are 0 to {self.vocabulary - 1}")
        return self.group.all_reduce(embedding_part(ids, self.weight, self.part))


class OutputPart(Linear):
    """A Linear of which each card has some rows."""

    def __init__(self, whole: Linear, group: Group):
        self.group, self.rows = group, whole.weight.shape[0]
        span = _rows_from(_vocabulary_part(self.rows, group), self.rows, group)
        self.weight = whole.weight.cut(0, [span])
        self.bias = None if whole.bias is None else whole.bias.cut(0, [span])

    def forward(self, x: Any) -> Any:
        return joined(self.group.all_gather(linear(x, self.weight, self.bias)), self.rows)


def _vocabulary_part(rows: int, group: Group) -> Part:
    """Every card has equally many rows; the last ones the last, some of which others own."""
    each = -(-rows // group.size)
    return Part(min(group.rank * each, rows - each), group.rank * each, min(rows, (group.rank + 1) * each))


def _rows_from(part: Part, rows: int, group: Group) -> slice:
    return slice(part.base, part.base - (-rows // group.size))


def shard(model: Any, group: Group, tensors: Tensors) -> None:
    """Cut a model, whose weights have not been loaded, to the part of a group's member.

    Args:
        model: a Transformer.
        group: of two cards or more.
        tensors: the file's, whose block formats say where columns may be cut.

    Raises:
        ValueError: the number of cards does not divide the heads of a layer; what would do is named.
        UnsupportedModelError: there is nothing to cut, or the layers have several streams.
    """
    if model.layers is not model.blk:
        raise UnsupportedModelError(f"{model.config.architecture}, of several streams, does not run on several cards")
    pass_ = _Pass(group, tensors, {module: path for path, module in model.named_modules()})
    for layer, block in enumerate(model.blk):
        for name in ("attn", "ffn", "mixer"):
            mixer = vars(block).get(name)
            if mixer is not None and pass_.cut(mixer, f"blk.{layer}.{name}"):
                setattr(block, name, Summed(mixer, group))
    if not pass_.parts:
        kinds = ", ".join(sorted(pass_.whole))
        raise UnsupportedModelError(f"{model.config.architecture} cannot be cut for several cards: it has {kinds}")
    if pass_.whole:
        kept = "; ".join(f"{kind}, {len(paths)} layers from {paths[0]} on" for kind, paths in pass_.whole.items())
        warnings.warn(f"each of the {group.size} cards has the whole of {kept}", stacklevel=2)
    vocabulary = model.config.vocabulary
    if (group.size - 1) * -(-vocabulary // group.size) < vocabulary:
        if type(model.token_embd) is Embedding:
            model.token_embd = EmbeddingPart(model.token_embd, group)
        if type(model.output) is Linear:
            model.output = OutputPart(model.output, group)
    model.group = group


class _Pass:
    """One pass over a tree.

    Attributes:
        parts: how many mixers were cut.
        whole: paths of those that were not, by their kind.
    """

    def __init__(self, group: Group, tensors: Tensors, paths: Mapping[Module, str]):
        self._group, self._tensors, self._paths = group, tensors, paths
        states = (vars(module).get("state") for module in paths)
        self._kept_for_others = {state.layer for state in states if isinstance(state, SharedKV)}
        self.parts, self.whole = 0, dict[str, list[str]]()

    def cut(self, mixer: Module, path: str) -> bool:
        """Cut a mixer; False: it stays whole."""
        cuts: dict[type[Module], Any] = {
            Attention: self._attention,
            MLP: self._mlp,
            MergedMLP: self._mlp,
            ChannelMix6: self._channel_mix,
            ChannelMix7: self._channel_mix,
            MoE: self._experts,
            SharedExpert: self._shared,
            SharedMoE: self._shared_experts,
        }
        done = type(mixer) in cuts and cuts[type(mixer)](mixer)
        if done:
            self.parts += 1
        else:
            self.whole.setdefault(type(mixer).__name__, []).append(path)
        return bool(done)

    def _attention(self, attn: Attention) -> bool:
        if attn.norms is not None and (attn.norms != "head" or type(attn.attn_q_norm) is not RMSNorm):
            return False
        merged = "attn_qkv" in vars(attn)
        if attn.gates_whole_heads or attn in self._kept_for_others:
            return False
        if not isinstance(attn.state, PagedKV) or not (merged or attn.attn_v):
            return False
        heads, kv_heads, cards, rank = attn.heads, attn.kv_heads, self._group.size, self._group.rank
        if not _divides(cards, heads, kv_heads):
            allowed = ", ".join(str(n) for n in range(1, heads + 1) if _divides(n, heads, kv_heads))
            counts = f"{heads} heads and {kv_heads} of keys and values"
            raise ValueError(f"{cards} cards do not divide {counts}; allowed are {allowed}")
        own, own_kv = heads // cards, max(1, kv_heads // cards)
        key, value = attn.state.key_dim, attn.state.value_dim
        columns = slice(rank * own * value, (rank + 1) * own * value)
        if columns.start % self._block(attn.attn_output) or columns.stop % self._block(attn.attn_output):
            return False
        first_kv, q_rows = rank * kv_heads // cards, 2 * key if attn.splits_q else key
        q = slice(rank * own * q_rows, (rank + 1) * own * q_rows)
        k, v = (slice(first_kv * dim, (first_kv + own_kv) * dim) for dim in (key, value))
        if merged:
            _cut_rows(attn.attn_qkv, [q, _moved(k, heads * key), _moved(v, (heads + kv_heads) * key)])
        else:
            for layer, span in ((attn.attn_q, q), (attn.attn_k, k), (attn.attn_v, v)):
                _cut_rows(layer, [span])
        if attn.attn_gate is not None:
            _cut_rows(attn.attn_gate, [columns])
        if attn.attn_sinks is not None:
            attn.attn_sinks.weight = attn.attn_sinks.weight.cut(0, [slice(rank * own, (rank + 1) * own)])
        if attn.slopes is not None:
            attn.slopes = Constant(attn.slopes.values[rank * own : (rank + 1) * own])
        self._cut_columns(attn.attn_output, columns)
        attn.heads, attn.kv_heads, attn.state = own, own_kv, replace(attn.state, heads=own_kv)
        attn.ends = own * key, (own + own_kv) * key
        return True

    def _mlp(self, mlp: MLP | MergedMLP) -> bool:
        return self._feed_forward(mlp.projections, mlp.ffn_down)

    def _channel_mix(self, mix: ChannelMix6 | ChannelMix7) -> bool:
        return self._feed_forward([mix.channel_mix_key], mix.channel_mix_value)

    def _shared(self, shared: SharedExpert) -> bool:
        return self._feed_forward(shared.projections, shared.ffn_down_shexp)

    def _feed_forward(self, first: Sequence[Any], last: Linear) -> bool:
        """Cut the layers that x goes through, of which one may have the rows of several, and the last one."""
        span, ffn = self._dealt(last), last.weight.shape[1]
        if span is None:
            return False
        for layer in first:
            _cut_rows(layer, [_moved(span, base) for base in range(0, layer.weight.shape[0], ffn)])
        self._cut_columns(last, span)
        return True

    def _experts(self, moe: MoE) -> bool:
        count = moe.ffn_down_exps.weight.shape[0]
        if count < self._group.size or moe.weighs_input:
            return False
        own = _share(count, self._group)
        for experts in (moe.ffn_gate_up_exps, moe.ffn_gate_exps, moe.ffn_up_exps, moe.ffn_down_exps):
            if experts is not None:
                _cut_rows(experts, [own])
        moe.part = Part(own.start, own.start, own.stop)
        return True

    def _shared_experts(self, both: SharedMoE) -> bool:
        return (
            self._dealt(both.shared.ffn_down_shexp) is not None
            and self._experts(both.routed)
            and self._shared(both.shared)
        )

    def _dealt(self, layer: Linear) -> slice | None:
        """The columns of a matrix that the card gets: whole blocks; None where there are too few."""
        columns, block = layer.weight.shape[1], self._block(layer)
        unit = next((n for n in (LARGEST_BLOCK, block) if columns % n == 0 and columns // n >= self._group.size), None)
        if unit is None:
            return None
        own = _share(columns // unit, self._group)
        return slice(own.start * unit, own.stop * unit)

    def _block(self, layer: Linear) -> int:
        """Elements at whose multiples columns may be cut."""
        path = f"{self._paths[layer]}.weight"
        if path not in self._tensors:
            return 1  # loading says that it is missing
        weight = self._tensors[path]
        return block_elements(weight.qtype) if isinstance(weight, QuantizedArray) else 1

    def _cut_columns(self, layer: Linear, span: slice) -> None:
        """Each card has some columns, and one of them the bias, which counts once in the sum."""
        layer.weight = layer.weight.cut(1, [span])
        if isinstance(layer.bias, Parameter) and self._group.rank:
            layer.bias = layer.bias.zeros()


def _divides(cards: int, heads: int, kv_heads: int) -> bool:
    return heads % cards == 0 and (kv_heads % cards == 0 or cards % kv_heads == 0)


def _share(count: int, group: Group) -> slice:
    """The card's share of things that are dealt out."""
    return slice(count * group.rank // group.size, count * (group.rank + 1) // group.size)


def _moved(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)


def _cut_rows(layer: Any, spans: Sequence[slice]) -> None:
    layer.weight = layer.weight.cut(0, spans)
    if isinstance(layer.bias, Parameter):
        layer.bias = layer.bias.cut(0, spans)
