"""Loads: which requests come when.

A closed loop keeps a number of requests in flight: each that ends is replaced by the next. Its first requests write a
random share of their length, so that the rest do not run in step. Poisson arrivals come at a rate, whatever the server
does. All at once: a number of requests at the beginning, and none later.

Lengths are fixed, or "sharegpt": log-normal, with the medians and spreads below, cut to 4 to 1,024 tokens. That gives
the means that vLLM's benchmark reports for 1,000 of ShareGPT's conversations, 217 to 230 tokens in and 200 to 203 out
(https://github.com/vllm-project/vllm/pull/18566), and its cut of prompts over 1,024 tokens; the spreads are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

SHAREGPT = {"prompt": (115, 1.2), "output": (132, 1.0)}
"""Median, and standard deviation of the logarithm."""
SHORTEST, LONGEST = 4, 1024
LIMIT = 60.0
PREFIXES = 8
"""How many prompts' beginnings there are, where prompts share them."""


@dataclass(frozen=True)
class Job:
    """A request to be made.

    Attributes:
        index: its number within the load, which seeds its sampling.
        at: seconds after the beginning at which it comes, at the earliest.
        prompt: token ids.
        tokens: how many it asks for.
        constrained: whether its text must be JSON of a schema.
        cancel_after: leave after so many tokens, or None.
    """

    index: int
    at: float
    prompt: list[int]
    tokens: int
    constrained: bool
    cancel_after: int | None


@dataclass(frozen=True)
class Load:
    """What comes, and for how long it is measured.

    Attributes:
        concurrency: requests in flight in a closed loop, or None.
        rate: requests a second of Poisson arrivals, or None.
        at_once: how many come at the beginning, or None.
        lengths: (tokens in, tokens out), or "sharegpt".
        shared_prefix: that many tokens before each prompt, one of PREFIXES beginnings.
        constrained, cancelled: shares of the requests, 0 to 1.
        seconds: length of the timed window; of requests at once it is until they have ended, at most LIMIT.
        seed: of prompts, lengths and arrivals.
    """

    concurrency: int | None = None
    rate: float | None = None
    at_once: int | None = None
    lengths: tuple[int, int] | str = (512, 128)
    shared_prefix: int = 0
    constrained: float = 0.0
    cancelled: float = 0.0
    seconds: float = 12.0
    seed: int = 0

    def __post_init__(self) -> None:
        given = [n for n in (self.concurrency, self.rate, self.at_once) if n is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ValueError(f"one of concurrency, rate and at_once must be given, and over 0; given are {given}")

    def __str__(self) -> str:
        if self.concurrency:
            name = f"{self.concurrency} in flight"
        else:
            name = f"{self.rate:g} a second" if self.rate else f"{self.at_once:,} at once"
        name += ", " + (self.lengths if isinstance(self.lengths, str) else "{}/{}".format(*self.lengths))
        name += f", {self.shared_prefix} shared" if self.shared_prefix else ""
        name += f", {self.constrained:.0%} constrained" if self.constrained else ""
        return name + (f", {self.cancelled:.0%} cancelled" if self.cancelled else "")

    @property
    def warmup(self) -> int:
        """Requests that must have ended before the timed window begins."""
        return self.concurrency or round(self.rate or 0)

    @property
    def duration(self) -> float:
        """Seconds after which the timed window ends, at the latest."""
        return LIMIT if self.at_once else self.seconds

    def part(self, index: int, parts: int) -> Load:
        """What one of several clients makes of this load."""
        share = {}
        for name in ("concurrency", "at_once"):
            if number := getattr(self, name):
                share[name] = number // parts + (index < number % parts)
        if self.rate:
            share["rate"] = self.rate / parts
        return replace(self, seed=self.seed * parts + index, **share)

    def jobs(self, vocabulary: int) -> Iterator[Job]:
        """The requests, in the order in which they come: without end, but for those at once."""
        rng = np.random.default_rng(self.seed)
        prefixes = rng.integers(0, vocabulary, (PREFIXES, self.shared_prefix))
        at, index = 0.0, 0
        while self.at_once is None or index < self.at_once:
            prompt, tokens = self._lengths(rng)
            if self.rate:
                at += rng.exponential(1 / self.rate)
            if self.concurrency and index < self.concurrency:
                tokens = int(rng.integers(1, tokens + 1))
            ids = np.concatenate([prefixes[rng.integers(PREFIXES)], rng.integers(0, vocabulary, prompt)])
            constrained = bool(rng.random() < self.constrained)
            cancel = int(rng.integers(1, tokens + 1)) if rng.random() < self.cancelled else None
            yield Job(index, at, ids.tolist(), tokens, constrained, cancel)
            index += 1

    def _lengths(self, rng: np.random.Generator) -> tuple[int, int]:
        if isinstance(self.lengths, tuple):
            return self.lengths
        drawn = (rng.lognormal(np.log(median), spread) for median, spread in SHAREGPT.values())
        prompt, tokens = (int(np.clip(length, SHORTEST, LONGEST)) for length in drawn)
        return prompt, tokens


class Source:
    """Gives the jobs of a load when they are due.

    Args:
        load: whose concurrency limits what is in flight.
        vocabulary: prompts have token ids under it.
        start: the clock at the beginning.
    """

    def __init__(self, load: Load, vocabulary: int, start: float):
        self._jobs, self._limit, self._start = load.jobs(vocabulary), load.concurrency, start
        self._next = next(self._jobs, None)

    @property
    def exhausted(self) -> bool:
        """Whether no job is left."""
        return self._next is None

    def due(self, now: float, in_flight: int) -> Iterator[tuple[Job, float]]:
        """The jobs to begin now, beside so many in flight; each with the time at which it came."""
        while (job := self._next) and self._start + job.at <= now and in_flight < (self._limit or float("inf")):
            yield job, self._start + job.at if job.at else now
            in_flight += 1
            self._next = next(self._jobs, None)

    def wait(self, now: float) -> float:
        """Seconds until the next job comes by time, at most 0.05."""
        return min(max(self._start + self._next.at - now, 0.0), 0.05) if self._next else 0.05
