"""Splitting: whole layers dealt out over the cards of a group, before weights are loaded.

A card has the layers from one to another. In place of those before it there is one that receives the residual stream
from the card before, and in place of those behind it one that sends it on. The first card has the embedding, and gets
the logits from the last one, which has the output. So a step goes from card to card; sizes of cards may differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from typing import Any

from rocforge.device.distributed import Group
from rocforge.errors import UnsupportedModelError
from rocforge.nn.batch import Batch
from rocforge.nn.layers import Embedding, HookPoint, Linear
from rocforge.nn.module import Module
from rocforge.nn.state import Absent, SharedKV, groups_of, states_of


class AbsentState(Module):
    """What stands for a stateful layer of another card: what it keeps, of which there is nothing here."""

    def __init__(self, state: Absent):
        self.state = state


class Elsewhere(Module):
    """In place of a block of another card: gives the residual stream as it is."""

    def __init__(self, block: Module):
        self.kept = [AbsentState(Absent(state)) for state in groups_of(states_of(block).values())]

    def forward(self, x: Any, batch: Batch) -> Any:
        return x


class Arriving(Elsewhere):
    """The last block before a card's own: receives the stream from the card before."""

    def __init__(self, block: Module, group: Group):
        super().__init__(block)
        self.group = group

    def forward(self, x: Any, batch: Batch) -> Any:
        return _received(x.shape, self.group, self.group.rank - 1)


class Leaving(Elsewhere):
    """The first block behind a card's own: sends the stream to the next card."""

    def __init__(self, block: Module, group: Group):
        super().__init__(block)
        self.group = group

    def forward(self, x: Any, batch: Batch) -> Any:
        self.group.send(x, self.group.rank + 1)
        return x


class NoEmbedding(Embedding):
    """An Embedding of a card that does not begin, which gives anything; its weight is there where it is the output's
    too."""

    def __init__(self, whole: Embedding, group: Group, tied: bool):
        self.dim, self.group = whole.weight.shape[1], group
        self.weight: Any = whole.weight if tied else None

    def forward(self, ids: Any) -> Any:
        return self.group.empty((len(ids), self.dim))


class LastOutput(Linear):
    """The output, on the last card: sends logits to the first."""

    def __init__(self, whole: Linear, group: Group):
        self.group, self.weight, self.bias = group, whole.weight, whole.bias

    def forward(self, x: Any) -> Any:
        y = super().forward(x)
        self.group.send(y, 0)
        return y


class FirstOutput(Module):
    """The output, on the first card: receives logits from the last."""

    def __init__(self, vocabulary: int, group: Group):
        self.vocabulary, self.group = vocabulary, group

    def forward(self, x: Any) -> Any:
        return _received((len(x), self.vocabulary), self.group, self.group.size - 1)


def _received(shape: tuple[int, ...], group: Group, rank: int) -> Any:
    y = group.empty(shape)
    group.receive(y, rank)
    return y


def split(model: Any, group: Group, tensors: Container[str], shares: Sequence[float]) -> None:
    """Keep of a model, whose weights have not been loaded, the layers of a group's member.

    Args:
        model: a Transformer.
        group: of two cards or more.
        tensors: the file's names.
        shares: of the layers, a card, relative to each other: their memory, say.

    Raises:
        ValueError: there are not as many shares as cards, or a card would get no layer.
        UnsupportedModelError: layers take more than what the one before gives.
    """
    shared = any(isinstance(state, SharedKV) for state in states_of(model).values())
    if shared or model.layers is not model.blk or model.passes_values or vars(model).get("layer_inputs"):
        problem = "layers take more than what the one before gives"
        raise UnsupportedModelError(f"{model.config.architecture} cannot be cut by layers: {problem}")
    before = {path for path, _ in model.named_parameters()}
    bounds = layer_bounds(len(model.blk), shares, group.size)
    first, end = bounds[group.rank], bounds[group.rank + 1]
    for layer, block in enumerate(model.blk):
        if layer == first - 1:
            model.blk[layer] = Arriving(block, group)
        elif layer == end:
            model.blk[layer] = Leaving(block, group)
        elif not first <= layer < end:
            model.blk[layer] = Elsewhere(block)
    last = group.rank == group.size - 1
    if group.rank:
        model.token_embd = NoEmbedding(model.token_embd, group, tied=last and "output.weight" not in tensors)
    if last:
        model.output = LastOutput(model.output, group)
    else:
        setattr(model, model.output_norm_name, HookPoint())
        model.output = HookPoint() if group.rank else FirstOutput(model.config.vocabulary, group)
    model.elsewhere = frozenset(before - {path for path, _ in model.named_parameters()})
    model.group = group


def layer_bounds(layers: int, shares: Sequence[float], cards: int) -> list[int]:
    """The first layer of each card, and the number of layers."""
    check_shares(shares, cards)
    sums = [0.0, *itertools.accumulate(shares)]
    bounds = [round(layers * part / sums[-1]) for part in sums]
    if any(end <= begin for begin, end in itertools.pairwise(bounds)):
        raise ValueError(f"{layers} layers in shares of {list(shares)} leave a card without one")
    return bounds


def check_shares(shares: Sequence[float], cards: int) -> None:
    """Raise a ValueError unless there is a positive one for each card."""
    if len(shares) != cards or min(shares) <= 0:
        raise ValueError(f"shares are {list(shares)} for {cards} cards; allowed is one number over 0 for each")
