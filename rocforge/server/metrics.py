"""Metrics of a server's processes, in Prometheus's text format.

The numbers lie in memory that the processes share: a row for each that answers HTTP, which it alone writes, and one for
the engine. Any of them reports the sums, in which a process that has ended still counts.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from rocforge.engine.reply import Progress, Reply

_SECONDS = tuple(base * 10.0**power for power in range(-3, 2) for base in (1, 2, 5))
_BUCKETS = len(_SECONDS) + 1
_HISTOGRAMS = {
    "time_to_first_token": "Time to first token (TTFT).",
    "time_between_tokens": "Inter-token latency.",
    "request_duration": "Request latency, end to end.",
}
"""In seconds. Each has its buckets and its sum in a row."""
_COUNTERS = {
    "prompt_tokens": "Prompt tokens of requests with a first token.",
    "cached_prompt_tokens": "Prompt tokens found in the prefix cache.",
    "generated_tokens": "Generated tokens.",
}
_OUTCOMES = (Progress.FINISHED, Progress.CANCELLED, Progress.FAILED)
_GAUGES = {
    "requests_waiting": "Waiting requests.",
    "requests_running": "Running requests.",
    "cache_blocks": "KV cache blocks, of all groups of layers.",
    "cache_blocks_used": "KV cache blocks in use.",
}
"""Of the engine, which has them in its own row."""
_MANY = 256
"""Tokens that are counted together, and at the end of a reply."""
_HISTOGRAM_AT = {name: index * (_BUCKETS + 1) for index, name in enumerate(_HISTOGRAMS)}
_COUNTER_AT = {name: len(_HISTOGRAMS) * (_BUCKETS + 1) + index for index, name in enumerate(_COUNTERS)}
_OUTCOMES_AT = len(_HISTOGRAMS) * (_BUCKETS + 1) + len(_COUNTERS)
_IN_PROGRESS = _OUTCOMES_AT + len(_OUTCOMES)
_WIDTH = _IN_PROGRESS + 1


class Table:
    """The numbers of all processes; forks of the one that makes it share them.

    Args:
        processes: that answer HTTP.

    Attributes:
        numbers: all of them, float64.
    """

    def __init__(self, processes: int = 1):
        shared = mmap.mmap(-1, (processes + 1) * _WIDTH * 8)
        self.numbers = np.frombuffer(shared, np.float64).reshape(processes + 1, _WIDTH)
        self.rows, self._engine = self.numbers[:processes], self.numbers[processes]

    def note_engine(self, waiting: int, in_flight: int, cache_blocks: tuple[int, int]) -> None:
        """Set the engine's row: requests that wait, and in all; blocks, and those in use."""
        self._engine[: len(_GAUGES)] = (waiting, max(0, in_flight - waiting), *cache_blocks)

    @property
    def used(self) -> bool:
        """Whether there is any number but 0."""
        return bool(self.numbers.any())

    @property
    def in_progress(self) -> int:
        """HTTP requests in progress, of all processes."""
        return int(self.rows[:, _IN_PROGRESS].sum())

    def fill(self, families: dict[str, Any], labels: list[str]) -> None:
        """Add the numbers to the families of `_families`, under these values of their labels."""
        total = self.rows.sum(axis=0)
        for name, at in _HISTOGRAM_AT.items():
            counts, names = np.cumsum(total[at : at + _BUCKETS]).tolist(), [*map(str, _SECONDS), "+Inf"]
            families[name].add_metric(labels, list(zip(names, counts, strict=True)), total[at + _BUCKETS])
        for name, at in _COUNTER_AT.items():
            families[name].add_metric(labels, total[at])
        for progress, count in zip(_OUTCOMES, total[_OUTCOMES_AT:], strict=False):
            families["requests"].add_metric([*labels, progress.value], count)
        for name, value in zip(_GAUGES, self._engine, strict=False):
            families[name].add_metric(labels, value)

    def collect(self) -> Iterator[Metric]:
        """For a registry of Prometheus."""
        families = _families([])
        self.fill(families, [])
        yield from families.values()


class LabelledTables:
    """The numbers of several models, or replicas, labelled by their names; those that were never loaded have none.

    Args:
        label: "model" or "replica".
        tables: name -> its numbers.
    """

    def __init__(self, label: str, tables: Mapping[str, Table]):
        self._label, self._tables = label, tables

    def collect(self) -> Iterator[Metric]:
        """For a registry of Prometheus."""
        families = _families([self._label])
        for name, table in self._tables.items():
            if table.used:
                table.fill(families, [name])
        yield from families.values()

    def text(self) -> bytes:
        """Of all processes."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)


class ReplicaTables(LabelledTables):
    """The numbers of replicas, labelled by their names.

    Args:
        counted: of each its name, the numbers of its Table, and how many requests it got that another one had before.
    """

    def __init__(self, counted: Sequence[tuple[str, np.ndarray, int]]):
        super().__init__("replica", {name: Table(len(numbers) - 1) for name, numbers, _ in counted})
        self._retried = {name: retried for name, _, retried in counted}
        for name, numbers, _ in counted:
            self._tables[name].numbers[:] = numbers

    def collect(self) -> Iterator[Metric]:
        """For a registry of Prometheus."""
        yield from super().collect()
        text = "Requests that another replica had before."
        family = CounterMetricFamily("rocforge_requests_retried", text, labels=["replica"])
        for name, retried in self._retried.items():
            family.add_metric([name], retried)
        yield family


def _families(labels: list[str]) -> dict[str, Any]:
    """The families of metrics, without numbers."""
    found: dict[str, Any] = {}
    for name, text in _HISTOGRAMS.items():
        found[name] = HistogramMetricFamily(f"rocforge_{name}_seconds", text, labels=labels)
    for name, text in _COUNTERS.items():
        found[name] = CounterMetricFamily(f"rocforge_{name}", text, labels=labels)
    found["requests"] = CounterMetricFamily("rocforge_requests", "Ended requests.", labels=[*labels, "outcome"])
    for name, text in _GAUGES.items():
        found[name] = GaugeMetricFamily(f"rocforge_{name}", text, labels=labels)
    return found


class Metrics:
    """Observes the replies of one process.

    Args:
        table: of all processes.
        index: this one's row of it.
        update: sets the engine's row, where the engine's process does not.
    """

    def __init__(self, table: Table, index: int = 0, update: Callable[[], None] = lambda: None):
        self.table, self._row, self._update = table, table.rows[index], update
        self._gaps: list[float] = []
        self._row[_IN_PROGRESS] = 0  # a process that was here before may have died with some
        self._registry = CollectorRegistry()
        self._registry.register(table)

    def tokens(self, replies: Sequence[Reply]) -> None:
        now = time.monotonic()
        for reply in replies:
            if reply.completion_tokens > 1:
                self._gaps.append(now - reply.last_token_time)
            else:
                self._first(reply, now)
            reply.last_token_time = now
        if len(self._gaps) > _MANY:
            self._note_gaps()

    def _first(self, reply: Reply, now: float) -> None:
        self._observe("time_to_first_token", [now - reply.submitted])
        self._count("prompt_tokens", reply.prompt_tokens)
        self._count("cached_prompt_tokens", reply.cached_tokens)
        self._count("generated_tokens", 1)

    def _note_gaps(self) -> None:
        """Tokens but the first come one at a time; they are counted together."""
        gaps, self._gaps = self._gaps, []
        self._observe("time_between_tokens", gaps)
        self._count("generated_tokens", len(gaps))

    def ended(self, reply: Reply) -> None:
        self._note_gaps()
        self._row[_OUTCOMES_AT + _OUTCOMES.index(reply.progress)] += 1
        self._observe("request_duration", [time.monotonic() - reply.submitted])

    def request(self, change: int) -> None:
        """Count HTTP requests in progress."""
        self._row[_IN_PROGRESS] += change

    def updated(self) -> Table:
        """Of all processes, with the engine's row as it is now."""
        self._update()
        return self.table

    def text(self) -> bytes:
        """Of all processes."""
        self._update()
        return generate_latest(self._registry)

    def _count(self, name: str, more: int) -> None:
        self._row[_COUNTER_AT[name]] += more

    def _observe(self, name: str, seconds: list[float]) -> None:
        if seconds:
            at = _HISTOGRAM_AT[name]
            found = np.searchsorted(_SECONDS, seconds)  # a bucket has what is at most its bound
            self._row[at : at + _BUCKETS] += np.bincount(found, minlength=_BUCKETS)
            self._row[at + _BUCKETS] += sum(seconds)
