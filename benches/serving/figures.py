"""Figures of a load from the times at which its tokens came.

Counted is what happens within the timed window: tokens that arrive in it, prompts whose first token arrives in it, gaps
between two arrivals in it, steps that begin and end in it. What comes before, while the load builds up, is not, nor
what is still in flight at its end. Requests that have waited for their first token until then are counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Trace:
    """What one request's client saw. Times in seconds of one clock.

    Attributes:
        submitted: when it was sent, or came by its arrival process.
        prompt_tokens: of the prompt.
        arrivals: when its text came, piece by piece.
        tokens: how many it was given in all, where the server says so; else each arrival is one token.
        finished: when it ended, or None; also where its client left.
        cancelled: whether its client left.
        error: what it ended with, or None.
    """

    submitted: float
    prompt_tokens: int
    arrivals: list[float] = field(default_factory=list)
    tokens: int | None = None
    finished: float | None = None
    cancelled: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Window:
    """The timed part of a run."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def __contains__(self, time: float) -> bool:
        return self.start < time <= self.end


def figures(traces: Sequence[Trace], window: Window, steps: Sequence[tuple[float, float]] = ()) -> dict[str, Any]:
    """The figures of a run.

    Args:
        traces: of all its requests.
        window: which part of it counts.
        steps: when the engine's steps began and ended, where they are known.

    Returns:
        Rates per second, times in milliseconds; None where nothing was seen.
    """
    scale = _tokens_an_arrival(traces)
    output, prompts, first, gaps = 0.0, 0, [], []
    for trace in traces:
        weight = trace.tokens / len(trace.arrivals) if trace.tokens and trace.arrivals else scale
        output += weight * sum(time in window for time in trace.arrivals)
        if trace.arrivals and trace.arrivals[0] in window:
            first.append(trace.arrivals[0] - trace.submitted)
            prompts += trace.prompt_tokens
        gaps += [b - a for a, b in zip(trace.arrivals, trace.arrivals[1:], strict=False) if a in window and b in window]
    ended = [trace for trace in traces if trace.finished is not None and trace.finished in window]
    waiting = [window.end - trace.submitted for trace in traces if _waits(trace, window)]
    errors = [trace.error for trace in traces if trace.error]
    lasted = [end - start for start, end in steps if start in window and end in window]
    return {
        "seconds": window.seconds,
        "output_tokens_per_second": output / window.seconds,
        "total_tokens_per_second": (output + prompts) / window.seconds,
        "requests_per_second": len(ended) / window.seconds,
        "ttft_ms": percentiles(first),
        "gap_ms": percentiles(gaps),
        "step_ms": percentiles(lasted),
        "finished": len(ended),
        "cancelled": sum(trace.cancelled for trace in ended),
        "waiting": len(waiting),
        "waiting_ms": max(waiting) * 1e3 if waiting else None,
        "errors": len(errors),
        "error": errors[0] if errors else None,
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """p50, p99 and longest in milliseconds, interpolated between neighbours; None of nothing."""
    if not len(seconds):
        return None
    p50, p99, longest = np.percentile(np.asarray(seconds) * 1e3, [50, 99, 100])
    return {"p50": float(p50), "p99": float(p99), "max": float(longest)}


def _tokens_an_arrival(traces: Sequence[Trace]) -> float:
    """Over those requests of which the server said how many tokens they were given; 1 where it said so of none."""
    known = [trace for trace in traces if trace.tokens and trace.arrivals]
    arrivals = sum(len(trace.arrivals) for trace in known)
    return sum(trace.tokens or 0 for trace in known) / arrivals if arrivals else 1.0


def _waits(trace: Trace, window: Window) -> bool:
    """Whether a request waits for its first token at the end of the window."""
    came = trace.arrivals[0] if trace.arrivals else trace.finished
    return trace.submitted <= window.end and (came is None or came > window.end)
