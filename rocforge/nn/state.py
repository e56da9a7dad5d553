"""State: what a layer keeps of the tokens before, as it declares it, and as the cache and the engine allot it.

A stateful module sets `state` in its `__init__`, and finds it again in forward with `batch.state_of(self)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rocforge.nn.module import Module
from rocforge.ops.state import BLOCK_SIZE


@dataclass(frozen=True)
class PagedKV:
    """A key and a value for each token, in blocks.

    Attributes:
        heads: keys, and values, of a token.
        key_dim, value_dim: elements of each.
        dtype: name of their type; None: float16 on a GPU, float32 on a CPU.
        window: the next token sees itself and window - 1 tokens before it; None: all.
    """

    heads: int
    key_dim: int
    value_dim: int
    dtype: str | None = None
    window: int | None = None

    def dtype_on(self, device: str) -> np.dtype[Any]:
        """The type of keys and values on "cpu" or "gpu:N"."""
        return np.dtype(self.dtype or ("float32" if device == "cpu" else "float16"))

    def block_nbytes(self, block_size: int, device: str) -> int:
        """Bytes of one block of one layer."""
        return block_size * self.heads * (self.key_dim + self.value_dim) * self.dtype_on(device).itemsize

    def first_visible(self, position: int) -> int:
        """The first position that the token at `position`, or any after it, can see."""
        return 0 if self.window is None else max(0, position - self.window + 1)


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


State = PagedKV | Recurrent


def states_of(model: Module) -> dict[Module, State]:
    """What each stateful module of a model declares, in the order of the tree."""
    declared = ((module, vars(module).get("state")) for _, module in model.named_modules())
    return {module: state for module, state in declared if isinstance(state, PagedKV | Recurrent)}


def groups_of(states: Iterable[State]) -> dict[State, int]:
    """Each declaration once, in the order of the layers, and how many layers have it."""
    groups: dict[State, int] = {}
    for state in states:
        groups[state] = groups.get(state, 0) + 1
    return groups


def blocks_for(tokens: int, block_size: int = BLOCK_SIZE) -> int:
    """How many blocks hold that many tokens."""
    return -(-tokens // block_size)
