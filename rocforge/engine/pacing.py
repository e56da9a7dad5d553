"""Pacer: how many prompt tokens a step may take while other requests decode. docs/scheduling.md has the rule."""

from __future__ import annotations

INTER_TOKEN_MS = {"cpu": 20.0, "gpu": 50.0}
"""The default target for the time between two tokens of a request, by device."""
FIRST_SHARE = 256
"""Prompt tokens of the first step beside decodes, when nothing has been measured."""
LOOK_EVERY = 32
"""One step in this many takes no prompt tokens, so that the time of decodes alone stays known while prompts wait."""
LEAST_SHARE = 16
"""The fewest prompt tokens of a step: it has costs beside decodes alone that fewer would not save."""
GROWTH = 2.0
MEMORY = 0.8
OUTLIER = 4.0


class Pacer:
    """Fits prompts into steps of a target length, by the measured costs of the steps before.

    A step takes the time of its decodes and that of its prompt tokens. Prompts get what the target leaves beside
    decodes, and never less than decodes take: half of the device's time. What decodes take is measured in steps without
    prompts: in one of LOOK_EVERY, and where their number has doubled or halved since.

    Args:
        most: maximum prompt tokens a step.
        target: seconds that a step with decodes should take at most.
    """

    def __init__(self, most: int, target: float):
        self._most, self._target = most, target
        self._share = min(FIRST_SHARE, most)
        self._decode_seconds, self._decodes, self._since_look = 0.0, 0, 0
        self._cost_times_squares, self._squares = 0.0, 0.0

    def share(self, decodes: int) -> int:
        """How many prompt tokens the next step may take beside so many decodes; 0 to look at decodes alone."""
        look = self._since_look >= LOOK_EVERY or not self._decodes <= 2 * decodes <= 4 * self._decodes
        return 0 if look else self._share

    def observe(self, seconds: float, decodes: int, prompt_tokens: int) -> None:
        """Record the time of a step with `decodes` decoding requests and that many prompt tokens."""
        if not prompt_tokens:
            weight = 1 - MEMORY if self._decodes == decodes else 1.0
            self._decode_seconds += weight * (seconds - self._decode_seconds)
            self._decodes, self._since_look = decodes, 0
            return
        self._since_look += decodes > 0
        extra = max(seconds - (self._decode_seconds if decodes else 0.0), 0.0)
        if self._squares:  # a hiccup of the machine is not the cost of a prompt
            extra = min(extra, OUTLIER * prompt_tokens * self._cost)
        self._cost_times_squares = MEMORY * self._cost_times_squares + prompt_tokens * extra
        self._squares = MEMORY * self._squares + prompt_tokens**2
        allowed = max(self._target - self._decode_seconds, self._decode_seconds)
        fitting = allowed / max(self._cost, 1e-12)
        self._share = int(min(max(min(fitting, GROWTH * self._share), LEAST_SHARE), self._most))

    @property
    def _cost(self) -> float:
        """Seconds of a prompt token: least squares over the last few steps."""
        return self._cost_times_squares / self._squares
