"""Pacer: how many prompt tokens a step may take while other requests decode."""

from __future__ import annotations

SLOWDOWN = 1.75
"""The allowed time of a step with prompt tokens, relative to one without; low enough that noise stays below 2."""
LOOK_EVERY = 32
"""One step in this many takes no prompt tokens, so that the time without stays known under constant prefill."""
GROWTH = 1.5
MEMORY = 0.8
OUTLIER = 4.0


class Pacer:
    """Keeps long prompts from stalling decoding requests, by the measured times of the steps.

    Least squares over the last few steps gives the cost of a prompt token beyond a step without any; the number of
    prompt tokens in the next step follows, growing by at most half at a time.

    Args:
        most: maximum prompt tokens a step.
    """

    def __init__(self, most: int):
        self.most = most
        self._share = min(8.0, float(most))
        self._plain_seconds, self._plain_decodes, self._since_plain = 0.0, 0, 0
        self._cost_times_squares, self._squares = 0.0, 0.0

    def share(self, decodes: int) -> int:
        """How many prompt tokens a step may take beside `decodes` decoding requests, at least one."""
        measured = self._plain_decodes
        if self._since_plain >= LOOK_EVERY or not measured <= 2 * decodes <= 4 * measured:
            return 0
        return int(self._share)

    def observe(self, seconds: float, decodes: int, prompt_tokens: int) -> None:
        """Record the time of a step with `decodes` decoding requests and that many prompt tokens."""
        if decodes and prompt_tokens:
            self._observe_mixed(seconds, prompt_tokens)
        elif decodes:
            steady = self._plain_decodes == decodes
            self._plain_seconds += (1 - MEMORY if steady else 1.0) * (seconds - self._plain_seconds)
            self._plain_decodes, self._since_plain = decodes, 0

    def _observe_mixed(self, seconds: float, prompt_tokens: int) -> None:
        self._since_plain += 1
        extra = min(max(seconds - self._plain_seconds, 0.0), OUTLIER * self._plain_seconds)
        self._cost_times_squares = MEMORY * self._cost_times_squares + prompt_tokens * extra
        self._squares = MEMORY * self._squares + prompt_tokens**2
        allowed = (SLOWDOWN - 1) * self._plain_seconds
        fitting = allowed * self._squares / max(self._cost_times_squares, 1e-12)
        self._share = min(max(min(fitting, self._share * GROWTH), 1.0), float(self.most))
