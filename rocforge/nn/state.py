"""State: what a layer keeps of the tokens before, as it declares it, and as the cache and the engine allot it.

A stateful module sets `state` in its `__init__`, and finds it again in forward with `batch.state_of(self)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from rocforge.formats.kv_cache import CACHE_TYPES, FLOATS, PACKED
from rocforge.nn.module import Module
from rocforge.ops.state import BLOCK_SIZE, first_seen


@dataclass(frozen=True)
class PagedKV:
    """A key and a value for each token, in blocks.

    Attributes:
        heads: keys, and values, of a token.
        key_dim, value_dim: elements of each; no elements of values are stored where they are the keys' first ones, as
            latent attention has them.
        key_type, value_type: one of rocforge.formats.kv_cache.CACHE_TYPES; None: float16 on a GPU, float32 on a CPU.
        window: the next token sees itself and window - 1 tokens before it; None: all.
        chunked: as in rocforge.ops.state.PagedLayer.
        causal: a token sees none after it. Else a sequence's tokens are all of one batch, nothing is kept for the next,
            and the layers of a group take turns with the same arrays.
        expanded: elements of the keys and values of all heads that prompts on a device make of a token's row; 0: they
            make none.
    """

    heads: int
    key_dim: int
    value_dim: int
    key_type: str | None = None
    value_type: str | None = None
    window: int | None = None
    chunked: bool = False
    causal: bool = True
    expanded: int = 0

    def rows_on(self, device: str) -> list[tuple[str, int]]:
        """On "cpu" or "gpu:N", the type and the elements of a key, and those of a value."""
        default = "f32" if device == "cpu" else "f16"
        return [(self.key_type or default, self.key_dim), (self.value_type or default, self.value_dim)]

    def block_nbytes(self, block_size: int, device: str) -> int:
        """Bytes of one block of one layer."""
        return self.heads * sum(_block_nbytes(kind, dim, block_size) for kind, dim in self.rows_on(device))

    def first_visible(self, position: int) -> int:
        """The first position that the token at `position`, or any after it, can see."""
        return int(first_seen(position, self.window, self.chunked))


def _block_nbytes(kind: str, dim: int, block_size: int) -> int:
    """Bytes of a head in a block."""
    packed = PACKED.get(kind)
    return packed.block_nbytes(dim, block_size) if packed else block_size * dim * FLOATS[kind].itemsize


@dataclass(frozen=True)
class Recurrent:
    """Arrays that hold all that a layer keeps of a sequence, whatever its length.

    Attributes:
        shapes: of the arrays of one sequence.
        dtype: name of their type.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        """Bytes of one layer and one sequence."""
        return sum(map(math.prod, self.shapes)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Absent:
    """What a layer of another card declares: its group is there, in its order, with nothing of that layer."""

    of: PagedKV | Recurrent


@dataclass(frozen=True)
class SharedKV:
    """The keys and values that another layer of the model keeps: what this one reads, and takes no memory for.

    Attributes:
        layer: the other one, which comes before and declares a PagedKV.
    """

    layer: Module


State = PagedKV | Recurrent
Declared = State | Absent | SharedKV
Key = TypeVar("Key")


def states_of(model: Module) -> dict[Module, Declared]:
    """What each stateful module of a model declares, in the order of the tree."""
    declared = ((module, vars(module).get("state")) for _, module in model.named_modules())
    return {module: state for module, state in declared if isinstance(state, Declared)}


def kept_of(model: Module) -> dict[Module, Declared]:
    """What of that lasts from one batch to the next: of an encoder nothing."""
    declared = states_of(model).items()
    return {module: state for module, state in declared if not isinstance(state, PagedKV) or state.causal}


def typed(states: Mapping[Key, Declared], key_type: str | None, value_type: str | None) -> dict[Key, Declared]:
    """Declarations with other types of keys and of values; None leaves them as declared.

    Raises:
        ValueError: a type is none of rocforge.formats.kv_cache.CACHE_TYPES.
    """
    named = {"key_type": key_type, "value_type": value_type}
    for name, option in zip(named.values(), ("cache_type_k", "cache_type_v"), strict=True):
        if name is not None and name not in CACHE_TYPES:
            raise ValueError(f"{option} is {name!r}; allowed are {', '.join(CACHE_TYPES)}")
    given: dict[str, Any] = {field: name for field, name in named.items() if name is not None}

    def with_types(state: Declared) -> Declared:
        if isinstance(state, Absent):
            return Absent(replace(state.of, **given)) if isinstance(state.of, PagedKV) else state
        return replace(state, **given) if isinstance(state, PagedKV) else state

    return {key: with_types(state) for key, state in states.items()}


def declare_types(model: Module, key_type: str | None, value_type: str | None) -> None:
    """Have all layers of a model declare these types of keys and of values, as `typed` gives them."""
    for layer, state in typed(states_of(model), key_type, value_type).items():
        vars(layer)["state"] = state


def groups_of(states: Iterable[Declared]) -> dict[State, int]:
    """Each declaration of memory once, in the order of the layers, and how many layers, that are here, have it."""
    groups: dict[State, int] = {}
    for state in states:
        if isinstance(state, Absent):
            groups.setdefault(state.of, 0)
        elif not isinstance(state, SharedKV):
            groups[state] = groups.get(state, 0) + 1
    return groups


def blocks_for(tokens: int, block_size: int = BLOCK_SIZE) -> int:
    """How many blocks hold that many tokens."""
    return -(-tokens // block_size)
