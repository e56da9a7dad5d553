"""StepStats: what an engine's steps have taken."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class StepStats:
    """What an engine's steps have taken so far.

    Attributes:
        steps: how many there were.
        seconds: of all of them.
        longest: seconds of the longest one.
        waited: seconds that a GPU waited for the host between two steps, though there was work.
    """

    steps: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    waited: float = 0.0

    def count(self, seconds: float, waited: float) -> None:
        """Count a step."""
        self.steps += 1
        self.seconds += seconds
        self.longest = max(self.longest, seconds)
        self.waited += waited
