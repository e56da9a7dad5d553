"""Pacer: how many prompt tokens a step may take while other requests decode. docs/scheduling.md has the rule."""

from __future__ import annotations

INTER_TOKEN_MS = {"cpu": 20.0, "gpu": 50.0}
"""The default target for the time between two tokens of a request, by device."""
FIRST_SHARE = 256
"""Prompt tokens of the first step beside decodes, when nothing has been measured."""
GROWTH = 2.0
MEMORY = 0.8
OUTLIER = 4.0


class Pacer:
    """Fits prompts into steps of a target length, by the measured costs of the steps before.

    A step takes the time of its decodes and that of its prompt tokens. Prompts get what the target leaves beside
    decodes, and never less than decodes take: half of the device's time.

    Args:
        most: maximum prompt tokens a step.
        target: seconds that a step with decodes should take at most.

    Attributes:
        share: how many prompt tokens the next step may take beside decodes, at least one.
    """

    def __init__(self, most: int, target: float):
        self._most, self._target = most, target
        self.share = min(FIRST_SHARE, most)
        self._decode_seconds = 0.0
        self._cost_times_squares, self._squares = 0.0, 0.0

    def observe(self, seconds: float, decodes: int, prompt_tokens: int) -> None:
        """Record the time of a step with `decodes` decoding requests and that many prompt tokens."""
        if not prompt_tokens:
            self._decode_seconds += (1 - MEMORY if self._decode_seconds else 1.0) * (seconds - self._decode_seconds)
            return
        extra = max(seconds - (self._decode_seconds if decodes else 0.0), 0.0)
        if self._squares:  # a hiccup of the machine is not the cost of a prompt
            extra = min(extra, OUTLIER * prompt_tokens * self._cost)
        self._cost_times_squares = MEMORY * self._cost_times_squares + prompt_tokens * extra
        self._squares = MEMORY * self._squares + prompt_tokens**2
        allowed = max(self._target - self._decode_seconds, self._decode_seconds)
        fitting = allowed / max(self._cost, 1e-12)
        self.share = int(min(max(min(fitting, GROWTH * self.share), 1), self._most))

    @property
    def _cost(self) -> float:
        """Seconds of a prompt token: least squares over the last few steps."""
        return self._cost_times_squares / self._squares
