"""Checks: what a selftest runs one by one, at which sizes, and what comes of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Error(NamedTuple):
    """How far a result is off, and how far it may be; of exact results, the share of elements that differ."""

    value: float
    bound: float

    @property
    def passes(self) -> bool:
        return self.value <= self.bound  # not so of a NaN


class Figure(NamedTuple):
    """What was measured.

    Attributes:
        value: in that unit.
        limit: what the card, or its memory alone, would give, in that unit; None where it is not known.
        of: what the limit is.
    """

    value: float
    unit: str
    limit: float | None = None
    of: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        errors: by what was compared.
        figures: by what was measured.
        note: more to say, in a few words.
    """

    errors: dict[str, Error] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Check:
    """A check: its name, unique in its group, and what runs it with random numbers."""

    name: str
    run: Callable[[np.random.Generator], Outcome]


@dataclass(frozen=True)
class Sizes:
    """How much is checked.

    Attributes:
        every_variant: compile all that models use; else of each source the first.
        formats: of weights.
        tokens: rows of x in products.
        matrix, deep: shapes (rows, columns) of weights: of each format, and of the usual ones.
        width: elements of a row for norms and activations.
        attention: heads, key heads and elements of a head.
        latents: heads, elements of a latent and of the key beside it.
        contexts: lengths of sequences in decode.
        prompt: tokens of a prompt in prefill.
        experts: number, those used, dim and ffn of a mixture.
        vocabulary, rows: of logits to sample from.
        rounds: how often an order is tested.
        generated: tokens from the demo model.
        measured: whether speed is.
    """

    every_variant: bool
    formats: tuple[str, ...]
    tokens: tuple[int, ...]
    matrix: tuple[int, int]
    deep: tuple[int, int]
    width: int
    attention: tuple[tuple[int, int, int], ...]
    latents: tuple[int, int, int]
    contexts: tuple[int, ...]
    prompt: int
    experts: tuple[int, int, int, int]
    vocabulary: int
    rows: int
    rounds: int
    generated: int
    measured: bool


def exact(a: Any, b: Any) -> Error:
    """Of two NumPy arrays that have to be equal, bit for bit but for which NaN it is."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"{a.dtype} of shape {a.shape} came, where {b.dtype} of shape {b.shape} was to come")
    same = np.equal(a, b) | (a != a) & (b != b)
    return Error(1 - float(np.mean(same)) if same.size else 0.0, 0.0)
