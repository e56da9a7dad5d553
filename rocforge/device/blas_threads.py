"""BLAS threads on a CPU: no more than there are processors free.

Threads of BLAS wait for each other by spinning. Where another process takes the processor of one, the others spin until
it is back, at every product: two threads on one free processor take ten times as long as one thread.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from threadpoolctl import ThreadpoolController

PERIOD = 0.25
"""Seconds between two looks at the processors: many ticks of the kernel's counters, which are of 10 ms."""

TOLERANCE = 0.15
"""Of a processor, that may be used by others and still counts as free."""


class _Times(NamedTuple):
    """Seconds: of the clock; that this process's processors were idle, or worked for it."""

    now: float
    ours: float


class FreeProcessors:
    """How many processors other processes leave to this one, of those that it may use: a mean over the last PERIOD.

    Args:
        stat: Linux's file with the times of each processor. Where it cannot be read, all count as free.
        quota: Linux's file with the quota of this process's control group, which a container's limit is.
    """

    def __init__(self, stat: str = "/proc/stat", quota: str = "/sys/fs/cgroup/cpu.max"):
        self._stat, self._quota = Path(stat), Path(quota)
        self._last, self._free = self._times(), 1

    def count(self) -> int:
        """At least 1; 1 until PERIOD has passed."""
        if self._last is None:
            return len(os.sched_getaffinity(0))
        if time.monotonic() - self._last.now >= PERIOD and (times := self._times()) is not None:
            free = (times.ours - self._last.ours) / (times.now - self._last.now)
            self._last, self._free = times, max(1, int(min(free + TOLERANCE, self._allowed())))
        return self._free

    def _times(self) -> _Times | None:
        allowed = {f"cpu{index}" for index in os.sched_getaffinity(0)}
        try:
            lines = [line.split() for line in self._stat.read_text().splitlines()]
        except OSError:
            return None
        # name, user, nice, system, idle, iowait, ...
        ticks = sum(int(line[4]) + int(line[5]) for line in lines if line and line[0] in allowed)
        return _Times(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK") + time.process_time())

    def _allowed(self) -> float:
        """The processors that the quota is worth."""
        try:
            quota, period = self._quota.read_text().split()
        except OSError:
            return float("inf")
        return float("inf") if quota == "max" else int(quota) / int(period)


class BlasThreads:
    """Limits the threads of every BLAS that is loaded, whichever NumPy has, while work is under way.

    What the user has set, by OPENBLAS_NUM_THREADS, threadpoolctl or the like, is never exceeded, and set back.

    Args:
        free: says how many processors are free.
    """

    def __init__(self, free: FreeProcessors):
        self._free, self._limiting = free, threading.Lock()
        self._controller = ThreadpoolController().select(user_api="blas")

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """For the work within. The limit is the process's: of threads that work at a time, the first sets it."""
        if not self._limiting.acquire(blocking=False):
            yield
            return
        try:
            free = self._free.count()
            above = {lib.prefix: free for lib in self._controller.lib_controllers if lib.num_threads > free}
            with self._controller.limit(limits=above):
                yield
        finally:
            self._limiting.release()


blas_threads = BlasThreads(FreeProcessors())
"""Of this process: its first look is at the import, so that it knows the load once a model has been read."""
