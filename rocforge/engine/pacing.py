"""Pacer: how many prompt tokens a step may take while other requests decode. docs/scheduling.md has the rule."""

from __future__ import annotations

import math
from typing import NamedTuple

INTER_TOKEN_MS = {"cpu": 20.0, "gpu": 50.0}
"""The default target for the time between two tokens of a request, by device."""
FIRST_SHARE = 256
"""Prompt tokens of the first step beside decodes, when nothing has been measured."""
LEAST_SHARE = 16
"""The fewest prompt tokens of a step."""
LOOK_EVERY = 32
"""One step in this many takes a quarter of its share, so that it stays known what fewer tokens save."""
GROWTH = 2.0
MEMORY = 0.8
OUTLIER = 4.0


def longest_step(target: float, own: float) -> float:
    """Seconds that a step may take which takes `own` without its prompts: the target, and more where these would get
    less than half of it."""
    return max(target, 2 * own)


class _Average(NamedTuple):
    """Tokens of steps, decodes included, and seconds."""

    tokens: float = 0.0
    seconds: float = 0.0

    def moved(self, tokens: int, seconds: float) -> _Average:
        """Towards a step."""
        weight = 1 - MEMORY if self.tokens else 1.0
        return _Average(self.tokens + weight * (tokens - self.tokens), self.seconds + weight * (seconds - self.seconds))


class Pacer:
    """Fits prompts into steps of a target length, by the measured times of the steps before.

    A step with prompts takes a time of its own, such as that of reading the weights, and one for each token. The line
    through two averages gives both: one of steps that took about their share of prompt tokens, one of smaller steps.
    Shares that are small beside a step's own time would waste the device, so steps take longer than the target then.

    Args:
        most: maximum prompt tokens a step.
        target: seconds that a step with decodes should take at most; `longest_step` says when it takes more.
    """

    def __init__(self, most: int, target: float):
        self._most, self._target = most, target
        self._share, self._steps = min(FIRST_SHARE, most), 0
        self._full, self._small, self._cost = _Average(), _Average(), math.inf

    def share(self) -> int:
        """How many prompt tokens the next step may take beside decodes."""
        return max(self._share // 4, 1) if self._steps % LOOK_EVERY == 1 else self._share

    def observe(self, seconds: float, decodes: int, prompt_tokens: int) -> None:
        """Record the time of a step with `decodes` decoding requests and that many prompt tokens."""
        if not prompt_tokens:
            return
        self._steps += decodes > 0
        tokens = decodes + prompt_tokens
        if self._full.tokens:  # a hiccup of the machine is not the cost of a prompt
            seconds = min(seconds, OUTLIER * self._seconds(tokens))
        small = 4 * tokens <= 3 * self._full.tokens
        if not small or 2 * prompt_tokens > self._share or seconds > self._full.seconds:
            self._full = self._full.moved(tokens, seconds)
        if small:
            self._small = self._small.moved(tokens, seconds)
        more, mean = self._full.tokens - self._small.tokens, self._full.seconds / self._full.tokens
        if 4 * more < self._full.tokens:
            self._small = _Average()  # too near for a line, and from before the share fell
        elif self._small.tokens:
            self._cost = (self._full.seconds - self._small.seconds) / more
        self._cost = min(max(self._cost, mean / 4), mean)
        own = self._seconds(decodes)
        fitting = (longest_step(self._target, own) - own) / max(self._cost, 1e-12)
        self._share = int(min(max(min(fitting, GROWTH * self._share), LEAST_SHARE), self._most))

    def _seconds(self, tokens: int) -> float:
        """What a step with prompts takes that has so many tokens."""
        return self._full.seconds + self._cost * (tokens - self._full.tokens)
