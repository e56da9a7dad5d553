"""Metrics: what the server counts and times, in Prometheus's text format."""

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
    """Observes a service; one of its own for each."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"rocforge_{name}_seconds", text, buckets=_SECONDS, registry=self.registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"rocforge_{name}", text, labels, registry=self.registry)

        self.first_token = histogram("time_to_first_token", "From the request to its first token.")
        self.next_token = histogram("time_between_tokens", "From one token of a request to its next.")
        self.duration = histogram("request_duration", "From the request to its end.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts whose reply has begun.")
        self.cached_tokens = counter("cached_prompt_tokens", "Of those, tokens found in the cache.")
        self.generated_tokens = counter("generated_tokens", "Tokens of replies.")
        self.requests = counter("requests", "Requests that have ended.", ("outcome",))
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
        """Report the service's queue and cache too, as they are when asked."""
        self.registry.register(_Gauges(service))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Gauges:
    def __init__(self, service: Service):
        self.service = service

    def collect(self) -> Iterator[GaugeMetricFamily]:
        service, engine = self.service, self.service.engine
        waiting = service.queue_depth
        yield _gauge("requests_waiting", "Requests that wait for their first step.", waiting)
        yield _gauge("requests_running", "Requests with a part in the steps.", max(0, service.in_flight - waiting))
        pools = [group.pool for group in engine.scheduler.state.groups] if engine else []
        blocks, free = sum(pool.blocks for pool in pools), sum(pool.free for pool in pools)
        yield _gauge("cache_blocks", "Blocks of the cache, of all groups of layers.", blocks)
        yield _gauge("cache_blocks_used", "Blocks that requests hold.", blocks - free)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"rocforge_{name}", text, value)
