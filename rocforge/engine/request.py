"""Request: a prompt being continued, and the tokens that it gets."""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from rocforge.engine.state import SequenceState
from rocforge.nn.low_rank import PlacedLoRA
from rocforge.ops.dry import WINDOW, Breakers, dry_penalties
from rocforge.ops.mirostat import Mirostat
from rocforge.ops.sampling import Logprobs, SamplingParams


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

    def accept(self, token: int) -> bool | None:
        """Note the token that was sampled. True: any may come from now on, and nothing more is asked."""

    def close(self) -> None:
        """The text has ended; a service calls it, at least once."""


@dataclass(eq=False)
class Request:
    """A prompt being continued.

    Attributes:
        prompt: token ids.
        params: how its tokens are sampled, and when it ends.
        constraint: what its text must obey; None where that is nothing, or nothing more.
        max_length: tokens of prompt and output together, at most.
        ends: tokens that end its text.
        lora: the adapter that its tokens have, or None.
        breakers: what breaks repetitions for DRY; None without it.
        mirostat: the state of that; None without it.
        output: token ids so far.
        pending: how many more are sampled by steps that are queued, whose tokens the host has not read.
        status: where it is.
        num_computed_tokens: how many of its tokens the state holds, once all queued steps have run.
        num_cached_tokens: how many of them were found in the cache when it was last admitted.
        state: what it holds of the cache.
    """

    prompt: list[int]
    params: SamplingParams
    constraint: Constraint | None = None
    max_length: int = sys.maxsize
    ends: frozenset[int] = frozenset()
    lora: PlacedLoRA | None = None
    breakers: Breakers | None = None
    mirostat: Mirostat | None = None
    output: list[int] = field(default_factory=list)
    pending: int = 0
    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    state: SequenceState = field(default_factory=SequenceState)

    @property
    def follows_text(self) -> bool:
        """Whether the host has to know its tokens before the next one is chosen."""
        return self.constraint is not None or self.breakers is not None or self.mirostat is not None

    def accept(self, token: int) -> None:
        """Tell its constraint, if any, of the token that was sampled; one that asks nothing more is dropped."""
        if self.constraint is not None and self.constraint.accept(token):
            self.constraint = None

    def penalties(self) -> Mapping[int, float]:
        """Of DRY, for the next token; those before must be known."""
        if self.breakers is None:
            return {}
        return dry_penalties(self.tokens(max(self.known - WINDOW, 0), self.known), self.params, self.breakers)

    @property
    def known(self) -> int:
        """Tokens of prompt and output that the host knows."""
        return len(self.prompt) + len(self.output)

    @property
    def length(self) -> int:
        """Tokens of prompt and output, pending ones included."""
        return len(self.prompt) + len(self.output) + self.pending

    @property
    def remaining(self) -> int:
        """Tokens that have yet to run; 1 while it decodes."""
        return self.length - self.num_computed_tokens

    @property
    def reason_to_finish(self) -> str | None:
        """Of its last known token, as in `Token`; None where it goes on."""
        if self.output and self.output[-1] in self.ends:
            return "stop"
        return "length" if self.known >= self.max_length else None

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids of positions start to stop, as far as they are known."""
        split = len(self.prompt)
        return self.prompt[start:stop] + self.output[max(0, start - split) : max(0, stop - split)]


class Token(NamedTuple):
    """One token that a step gave a request.

    Attributes:
        request: whose it is.
        id: its id.
        logprobs: where the request asks for them.
        finish_reason: None while the request goes on; "stop" at a token that ends it (which is `id`), "length" when
            max_tokens or the context is reached, "error" where its constraint failed or its logits are not finite.
        error: what failed; `id` is -1 then.
    """

    request: Request
    id: int
    logprobs: Logprobs | None
    finish_reason: str | None
    error: Exception | None = None
