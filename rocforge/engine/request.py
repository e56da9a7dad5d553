"""Request: a prompt being continued."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rocforge.engine.state import SequenceState
from rocforge.ops.sampling import SamplingParams


class Status(enum.Enum):
    """The state of a request."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Constraint(Protocol):
    """A logits processor for a request's text, such as a grammar. Its errors fail this request only."""

    def bits(self) -> np.ndarray[Any, Any]:
        """Which tokens may come next: uint32, a bit for each token from the least significant on. Those past its end
        may not."""

    def accept(self, token: int) -> None:
        """Note the token that was sampled."""

    def close(self) -> None:
        """The text has ended; a service calls it, at least once."""


@dataclass(eq=False)
class Request:
    """A prompt being continued.

    Attributes:
        prompt: token ids.
        params: how its tokens are sampled, and when it ends.
        constraint: what its text must obey, or None.
        output: token ids so far.
        status: where it is.
        num_computed_tokens: how many of its tokens the state holds.
        num_cached_tokens: how many of them were found in the cache when it was last admitted.
        state: what it holds of the cache.
    """

    prompt: list[int]
    params: SamplingParams
    constraint: Constraint | None = None
    output: list[int] = field(default_factory=list)
    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    state: SequenceState = field(default_factory=SequenceState)

    @property
    def length(self) -> int:
        """Tokens of prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def remaining(self) -> int:
        """Tokens that have yet to run; 1 while it decodes."""
        return self.length - self.num_computed_tokens

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids of positions start to stop."""
        split = len(self.prompt)
        return self.prompt[start:stop] + self.output[max(0, start - split) : max(0, stop - split)]
