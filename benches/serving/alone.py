"""The engine alone: its steps and its requests in this process, without text and HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable

import rocforge as rf
from rocforge.engine.request import Constraint, Request
from rocforge.engine.stats import StepStats
from serving.client import TEMPERATURE
from serving.figures import Trace, Window, figures
from serving.load import Job, Load, Source


class EngineRun:
    """One load on an engine.

    Args:
        engine: at rest.
        load: what comes.
        constraint: gives a constraint for each request that has one.
    """

    def __init__(self, engine: rf.Engine, load: Load, constraint: Callable[[], Constraint] | None = None):
        self.engine, self.load, self._constraint = engine, load, constraint
        self.traces: list[Trace] = []
        self.steps: list[tuple[float, float]] = []
        self._live: dict[Request, tuple[Job, Trace]] = {}
        self._ended = 0
        engine.stats = StepStats()

    def run(self) -> Window:
        """Run it to the end of its timed window; the engine is at rest again."""
        begin = now = time.perf_counter()
        start = None if self.load.warmup else begin
        source = Source(self.load, self.engine.model.config.vocabulary, begin)
        while (self._live or not source.exhausted) and now < (start or now) + self.load.duration:
            for job, at in source.due(now, len(self._live)):
                self._begin(job, at)
            if self.engine.busy:
                self._step()
            else:
                time.sleep(source.wait(now))
            now = time.perf_counter()
            if start is None and (self._ended >= self.load.warmup or now > begin + self.load.seconds):
                start, self.engine.stats = now, StepStats()
        self.engine.cancel_all()
        for request in list(self._live):
            self._end(request)
        return Window(start or begin, now)

    def _begin(self, job: Job, at: float) -> None:
        constraint = self._constraint() if job.constrained and self._constraint else None
        ending = {"max_tokens": job.tokens, "ignore_eos": constraint is None}
        params = rf.SamplingParams(temperature=TEMPERATURE, seed=job.index, **ending)
        trace = Trace(at, len(job.prompt))
        self.traces.append(trace)
        self._live[self.engine.add(job.prompt, params, constraint)] = job, trace

    def _step(self) -> None:
        began = time.perf_counter()
        tokens = self.engine.step()
        now = time.perf_counter()
        self.steps.append((began, now))
        for token in tokens:
            job, trace = self._live[token.request]
            if token.error:
                trace.error = str(token.error)
            else:
                trace.arrivals.append(now)
            if len(trace.arrivals) == job.cancel_after and not token.finish_reason:
                self.engine.cancel(token.request)
                trace.cancelled = True
            if token.finish_reason or trace.cancelled:
                trace.finished = now
                self._end(token.request)

    def _end(self, request: Request) -> None:
        self._ended += 1
        del self._live[request]
        if request.constraint:
            request.constraint.close()


def measure(engine: rf.Engine, load: Load, constraint: Callable[[], Constraint] | None = None) -> dict[str, object]:
    """The figures of a load on an engine, and the share of the time in which a GPU waited for the host."""
    run = EngineRun(engine, load, constraint)
    window, stats = run.run(), engine.stats
    host = stats.waited / (stats.waited + stats.seconds) if stats.steps else None
    return figures(run.traces, window, run.steps) | {"host_share": host}
