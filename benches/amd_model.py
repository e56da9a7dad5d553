"""How long a decode step takes on a card that nobody has timed, from what its kernels are and what the card can do."""

from __future__ import annotations

import math
from typing import NamedTuple

from amd_cards import Card
from amd_code import Counts, counts
from amd_steps import Launch


class Times(NamedTuple):
    """Seconds of a launch, or of a step.

    Attributes:
        nbytes: of reading, at the rate that reads reach.
        issue: of issuing the loop's vector instructions.
        chain: of one wave after another: in each iteration a load's latency and the instructions behind it.
        around: of the instructions before and behind the loop, of one wave.
        launch: of the launch itself.
    """

    nbytes: float
    issue: float
    chain: float
    around: float
    launch: float

    @property
    def total(self) -> float:
        return self.work + self.around + self.launch

    @property
    def work(self) -> float:
        return max(self.nbytes, self.issue, self.chain)

    @property
    def bound(self) -> str:
        """What the work waits for."""
        return max(("bytes", self.nbytes), ("instructions", self.issue), ("latency", self.chain), key=lambda p: p[1])[0]


class Step(NamedTuple):
    """The launches of a step, with their times."""

    launches: list[tuple[Launch, Times]]

    @property
    def seconds(self) -> float:
        return sum(times.total for _, times in self.launches)

    @property
    def nbytes(self) -> int:
        return sum(launch.nbytes for launch, _ in self.launches)

    def parts(self) -> dict[str, float]:
        """Seconds by what they are spent on: bytes; instructions and latency beyond those; around; launches."""
        parts = {"bytes": 0.0, "instructions": 0.0, "latency": 0.0, "around": 0.0, "launches": 0.0}
        for _, times in self.launches:
            parts["bytes"] += times.nbytes
            if times.bound != "bytes":
                parts[times.bound] += times.work - times.nbytes
            parts["around"] += times.around
            parts["launches"] += times.launch
        return parts


def predict(card: Card, launches: list[Launch]) -> Step:
    return Step([(launch, times_of(card, launch)) for launch in launches])


def occupancy(card: Card, code: Counts, threads: int) -> int:
    """Blocks of a kernel that a unit holds at a time, by registers, LDS and places for waves."""
    family, waves = card.family, -(-threads // card.family.wave)
    given = -(-code.registers // family.granule) * family.granule
    per_simd = min(family.waves, family.registers // given)
    by_lds = card.lds // code.lds if code.lds else math.inf
    return int(max(1, min(per_simd * family.simds // waves, by_lds)))


def waves_a_simd(card: Card, code: Counts, threads: int) -> float:
    return occupancy(card, code, threads) * -(-threads // card.family.wave) / card.family.simds


def bytes_in_flight(card: Card, launch: Launch) -> float:
    """Of weights, asked for by all waves that fit, each with its loop's loads on the way."""
    code = code_of(launch, card)
    an_iteration = launch.nbytes / launch.weights * code.weights * card.family.wave
    return waves_a_simd(card, code, launch.threads) * card.simds * an_iteration


def code_of(launch: Launch, card: Card) -> Counts:
    """Of a launch with matrices of two formats the first one's loop, and the registers that both need."""
    defines = tuple(d for d in launch.defines if d[0] != "RF_QTYPE_LAST")
    code = counts(launch.source, defines, card.target, launch.kernel)
    both = counts(launch.source, launch.defines, card.target, launch.kernel)
    return code._replace(registers=both.registers)


def gap(card: Card) -> float:
    """Cycles from an instruction of a lone wave to its next: the family's, or that of a common loop."""
    if card.family.gap is not None:
        return card.family.gap
    usual = counts("matvec.hip", (("RF_QTYPE", "Q4_K"), ("RF_TOKENS", "1")), card.target, "matvec")
    return usual.cycles / usual.vector


def times_of(card: Card, launch: Launch) -> Times:
    code, family, between = code_of(launch, card), card.family, gap(card) / card.clock
    nbytes = launch.nbytes / card.read_rate
    if not launch.weights:
        chain = launch.waits * family.latency + code.instructions * between
        return Times(nbytes, 0.0, chain, 0.0, card.launch)
    busy = min(1.0, launch.blocks / card.units)
    issue = launch.weights * code.vector / code.weights / (card.issue_rate * busy)
    fit, waves = occupancy(card, code, launch.threads), -(-launch.threads // family.wave)
    together = min(fit, -(-launch.blocks // card.units)) * waves / family.simds
    lone = (code.cycles or code.loop * between * card.clock) / card.clock
    shared = max(1.0, together) * code.vector * family.wave / family.simd_lanes / card.clock
    rounds = -(-launch.blocks // (fit * card.units))
    waiting = family.latency + (code.waits - 1) * family.cached
    chain = rounds * launch.iterations * max(waiting + lone, shared)
    return Times(nbytes, issue, chain, (code.instructions - code.loop) * between, card.launch)
