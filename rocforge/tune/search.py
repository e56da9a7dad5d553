"""Tries the candidates of each field of Tuning, one field after another, and selects the fastest correct one."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from rocforge.device import timing, tuning
from rocforge.device.libraries import cupy_module
from rocforge.device.tuned import CANDIDATES
from rocforge.errors import DeviceError
from rocforge.selftest.products import INT8
from rocforge.tune.work import Sizes, Work, cases

MARGIN = 0.02
"""The share of time that a value must save to replace the shipped one: above measurement noise."""
ON_MATRIX_UNIT = ("int8_tokens", "tile_blocks")
"""Fields without effect on a card without a matrix unit."""


@dataclass(frozen=True)
class Setting:
    """Measurements of a field.

    Attributes:
        name: of the field.
        shipped, best: the shipped value for the card, and the one to use.
        seconds: the geometric mean over the cases, by value.
        wrong: values with a wrong result, and its error.
    """

    name: str
    shipped: int
    best: int
    seconds: dict[int, float]
    wrong: dict[int, float]

    @property
    def saved(self) -> float:
        """The share of the time that the best value saves."""
        return 1 - self.seconds[self.best] / self.seconds[self.shipped]


def search(
    shipped: tuning.Tuning, sizes: Sizes, rng: np.random.Generator, begun: Callable[[str], None] = lambda name: None
) -> Iterator[Setting]:
    """The settings of the current device, each measured with the best values of those before it.

    Args:
        shipped: the baseline.
        sizes: of what is measured.
        rng: of weights and activations.
        begun: called with each field's name, before it is measured.

    Raises:
        DeviceError: a result is wrong with a shipped value.
    """
    best = {name: getattr(shipped, name) for name in CANDIDATES}
    for name, candidates in CANDIDATES.items():
        if name in ON_MATRIX_UNIT and not shipped.tile_tokens:
            continue
        begun(name)
        usual = getattr(shipped, name)
        seconds, wrong = _seconds(name, sorted({usual, *candidates}), best, sizes, rng)
        if usual in wrong:
            error = f"off by {wrong[usual]:.2g}, where {INT8} is allowed"
            raise DeviceError(f"with {name} at {usual}, as shipped, a result is {error}; run rocforge selftest")
        fastest = min(seconds, key=lambda value: seconds[value])
        chosen = fastest if seconds[fastest] < (1 - MARGIN) * seconds[usual] else usual
        best[name] = chosen
        yield Setting(name, usual, chosen, seconds, wrong)


def _seconds(
    name: str, values: list[int], before: dict[str, int], sizes: Sizes, rng: np.random.Generator
) -> tuple[dict[int, float], dict[int, float]]:
    """The geometric mean of a field's cases for each value, and the values with a wrong result."""
    logs, wrong = defaultdict(list), {}
    for case in cases(name, sizes):
        work = case(rng)
        for value in values:
            with tuning.trying(**{**before, name: value}):
                error = work.error(work.launches[0]())
                if not error <= INT8:  # nor is a NaN
                    wrong[value] = error
                else:
                    logs[value].append(math.log(timing.seconds(work.launches, sizes.replays)))
        _free(work)
    return {value: math.exp(statistics.mean(logs[value])) for value in values if value not in wrong}, wrong


def _free(work: Work) -> None:
    """Free the memory of a case before the next."""
    work.launches.clear()
    cupy_module().get_default_memory_pool().free_all_blocks()
