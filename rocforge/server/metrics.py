"""Metrics of the server, in Prometheus's text format."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from rocforge.engine.reply import Progress, Reply
from rocforge.engine.response import GenerationResponse
from rocforge.engine.service import Service

_SECONDS = tuple(base * 10.0**power for power in range(-3, 2) for base in (1, 2, 5))


class Metrics:
    """Observes one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"rocforge_{name}_seconds", text, buckets=_SECONDS, registry=self.registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"rocforge_{name}", text, labels, registry=self.registry)

        self.first_token = histogram("time_to_first_token", "Time to first token (TTFT).")
        self.next_token = histogram("time_between_tokens", "Inter-token latency.")
        self.duration = histogram("request_duration", "Request latency, end to end.")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests with a first token.")
        self.cached_tokens = counter("cached_prompt_tokens", "Prompt tokens found in the prefix cache.")
        self.generated_tokens = counter("generated_tokens", "Generated tokens.")
        self.requests = counter("requests", "Ended requests.", ("outcome",))
        for progress in (Progress.FINISHED, Progress.CANCELLED, Progress.FAILED):
            self.requests.labels(progress.value)
        self._last: dict[Reply, float] = {}

    def token(self, reply: Reply, piece: GenerationResponse) -> None:
        now = time.monotonic()
        last = self._last.get(reply)
        self._last[reply] = now
        self.generated_tokens.inc()
        if last is None:
            self.first_token.observe(now - reply.submitted)
            self.prompt_tokens.inc(reply.prompt_tokens)
            self.cached_tokens.inc(reply.cached_tokens)
        else:
            self.next_token.observe(now - last)

    def ended(self, reply: Reply) -> None:
        self._last.pop(reply, None)
        self.requests.labels(reply.progress.value).inc()
        self.duration.observe(time.monotonic() - reply.submitted)

    def watch(self, service: Service) -> None:
        """Report gauges of the service's queue and KV cache too."""
        self.registry.register(_Gauges(service))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Gauges:
    def __init__(self, service: Service):
        self.service = service

    def collect(self) -> Iterator[GaugeMetricFamily]:
        service, engine = self.service, self.service.engine
        waiting = service.queue_depth
        yield _gauge("requests_waiting", "Waiting requests.", waiting)
        yield _gauge("requests_running", "Running requests.", max(0, service.in_flight - waiting))
        pools = [group.pool for group in engine.scheduler.state.groups] if engine else []
        blocks, free = sum(pool.blocks for pool in pools), sum(pool.free for pool in pools)
        yield _gauge("cache_blocks", "KV cache blocks, of all groups of layers.", blocks)
        yield _gauge("cache_blocks_used", "KV cache blocks in use.", blocks - free)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"rocforge_{name}", text, value)
