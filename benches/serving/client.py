"""Clients in other processes: streams of /v1/completions at any OpenAI-compatible URL.

Each process runs an event loop whose connections read server-sent events as bytes and note when they came. How busy the
busiest of them was is among the figures: near 1, the clients are what was measured, and it takes more of them.
Connections are kept and used again, as OpenAI's clients do.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from serving.figures import Trace, Window, figures
from serving.load import Job, Load, Source

SCHEMA = {"type": "array", "items": {"type": "integer"}, "minItems": 1000}
"""Of constrained requests: long enough for any of them."""
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
"""Each a token of most vocabularies, with the blank before it."""
TEMPERATURE = 0.7
POLL = 0.05
"""Seconds between two looks at whether the run is over."""


@dataclass(frozen=True)
class Endpoint:
    """A server under test.

    Attributes:
        url: up to, and without, /v1.
        model: the name under which it serves.
        vocabulary: prompts have token ids under it.
        text: whether prompts are words in place of token ids.
        key: bearer token, or None.
    """

    url: str
    model: str
    vocabulary: int
    text: bool = False
    key: str | None = None

    def address(self) -> tuple[str, int]:
        """Host and port.

        Raises:
            ValueError: the URL is none of HTTP.
        """
        parts = urlsplit(self.url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"the URL is {self.url}; allowed is http://HOST[:PORT]")
        return parts.hostname, parts.port or 80

    def request(self, job: Job) -> bytes:
        """Head and body of a request."""
        prompt = " ".join(WORDS[id % len(WORDS)] for id in job.prompt) if self.text else job.prompt
        body: dict[str, Any] = {"model": self.model, "prompt": prompt, "max_tokens": job.tokens, "seed": job.index}
        body |= {
            "ignore_eos": not job.constrained,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": TEMPERATURE,
        }
        if job.constrained:
            schema = {"name": "numbers", "schema": SCHEMA}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        data = json.dumps(body).encode()
        host, port = self.address()
        head = f"POST {urlsplit(self.url).path.rstrip('/')}/v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\n"
        head += f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


class Connection(asyncio.Protocol):
    """A connection, for one stream after another."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._rest, self._last_chunk, self._refusal = b"", False, b""
        self._trace = Trace(0, 0)
        self._cancel_after: int | None = None
        self._done: asyncio.Future[bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    async def stream(self, request: bytes, trace: Trace, cancel_after: int | None) -> bool:
        """Send a request, and note in the trace what comes. Returns whether the connection can be used again."""
        assert self.transport
        self._trace, self._cancel_after = trace, cancel_after
        self._rest, self._last_chunk, self._refusal = b"", False, b""
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        try:
            return await self._done
        finally:
            self._done = None

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._refusal:
            self._refused(data)
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for index, line in enumerate(lines):
            if self._done is None or self._done.done():
                return  # it has left, or failed
            if line.startswith(b"data:"):
                self._event(line, now)
            elif line == b"0\r":
                self._last_chunk = True
            elif self._last_chunk and line == b"\r":
                self._end(True)
            elif line.startswith(b"HTTP/1.") and b" 200 " not in line:
                self._refused(b"\n".join([*lines[index:], self._rest]))
                return

    def connection_lost(self, error: Exception | None) -> None:
        if self._done and self._trace.finished is None:
            self._fail(f"the connection was lost: {error or 'closed by the server'}")
        self._end(False)

    def leave(self) -> None:
        """Close it, whatever is still to come."""
        if self.transport:
            self.transport.abort()

    def _event(self, line: bytes, now: float) -> None:
        trace = self._trace
        if line.startswith((b"data: [DONE]", b"data:[DONE]")):
            trace.finished = now
        elif b'"completion_tokens"' in line:
            usage = json.loads(line[5:])["usage"]
            trace.tokens, trace.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        elif line.startswith((b'data: {"error"', b'data:{"error"')):
            self._fail(line[5:].decode(errors="replace").strip())
        elif b'"text":""' not in line and b'"text": ""' not in line and b'"choices":[]' not in line:
            trace.arrivals.append(now)
            if len(trace.arrivals) == self._cancel_after:
                trace.cancelled, trace.finished = True, now
                self._end(False)

    def _refused(self, data: bytes) -> None:
        """Part of a response that is no stream: its status and body are the error."""
        self._refusal += data
        head, _, body = self._refusal.partition(b"\r\n\r\n")
        if body or b"content-length: 0" in head.lower():
            self._fail(f"{head.splitlines()[0].decode(errors='replace')}: {body[:500].decode(errors='replace')}")

    def _fail(self, why: str) -> None:
        self._trace.error, self._trace.finished = why, time.perf_counter()
        self._end(False)

    def _end(self, reusable: bool) -> None:
        if self._done and not self._done.done():
            self._done.set_result(reusable)


class Clients:
    """The clients of one process.

    Args:
        endpoint: where requests go.
        load: this process's part of it.
    """

    def __init__(self, endpoint: Endpoint, load: Load):
        self.endpoint, self.load = endpoint, load
        self.traces: list[Trace] = []
        self._idle: list[Connection] = []
        self._live: set[asyncio.Task[None]] = set()

    async def run(self, ended: Any, stop: Any) -> None:
        """Make requests until `stop` is set, or none is left; count in `ended` those that ended."""
        source = Source(self.load, self.endpoint.vocabulary, time.perf_counter())
        while not stop.is_set() and (self._live or not source.exhausted):
            now = time.perf_counter()
            for job, at in source.due(now, len(self._live)):
                self._live.add(asyncio.create_task(self._ask(job, at)))
            if self._live:
                done, self._live = await asyncio.wait(
                    self._live, timeout=source.wait(now) or POLL, return_when="FIRST_COMPLETED"
                )
                for task in done:
                    task.result()
                with ended.get_lock():
                    ended.value += len(done)
            else:
                await asyncio.sleep(source.wait(now))
        for task in self._live:
            task.cancel()
        await asyncio.gather(*self._live, return_exceptions=True)

    async def _ask(self, job: Job, at: float) -> None:
        trace = Trace(at, len(job.prompt))
        self.traces.append(trace)
        connection = self._idle.pop() if self._idle else None
        reusable = False
        try:
            if connection is None or connection.transport is None or connection.transport.is_closing():
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(Connection, *self.endpoint.address())
            reusable = await connection.stream(self.endpoint.request(job), trace, job.cancel_after)
        except OSError as error:
            trace.error = str(error)
        finally:
            if reusable and connection:
                self._idle.append(connection)
            elif connection:
                connection.leave()
        if trace.error:
            await asyncio.sleep(POLL)  # a server that refuses requests is not asked without pause


def measure(endpoint: Endpoint, load: Load, processes: int, cpu: Callable[[], float] = lambda: 0.0) -> dict[str, Any]:
    """The figures of a load on a server.

    Args:
        endpoint: where it is.
        load: what comes.
        processes: of clients.
        cpu: gives the seconds of CPU time that the server has taken so far, where it can be known.
    """
    processes = min(processes, load.concurrency or load.at_once or processes)
    with _started(endpoint, load, processes) as (ended, traces, busy):
        begin = now = time.perf_counter()
        start, before = None if load.warmup else begin, cpu()
        while now < (start or now) + load.duration and not (load.at_once and ended.value >= load.at_once):
            time.sleep(POLL)
            now = time.perf_counter()
            if start is None and (ended.value >= load.warmup or now > begin + load.seconds):
                start, before = now, cpu()
        spent = cpu() - before
    if load.at_once and ended.value >= load.at_once:
        now = max(trace.finished or begin for trace in traces)
    shares = {"server_cpu_seconds": spent, "client_busy": max(busy)}
    return figures(traces, Window(start or begin, now)) | shares


@contextmanager
def _started(endpoint: Endpoint, load: Load, processes: int) -> Iterator[tuple[Any, list[Trace], list[float]]]:
    """Client processes that make a load, and how many of its requests have ended.

    What they saw, and the share of the time in which each was busy, is there afterwards.
    """
    context = multiprocessing.get_context("spawn")
    ended, stop, results = context.Value("l", 0), context.Event(), context.Queue()
    ready = context.Barrier(processes + 1)
    workers = [
        context.Process(target=_work, args=(endpoint, load.part(i, processes), ready, ended, stop, results))
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    traces: list[Trace] = []
    busy: list[float] = []
    try:
        ready.wait(60)
        yield ended, traces, busy
        stop.set()
        for _ in workers:
            seen, share = results.get(timeout=60)
            traces += seen
            busy.append(share)
    finally:
        for worker in workers:
            worker.join(5)
            worker.kill()


def _work(endpoint: Endpoint, load: Load, ready: Any, ended: Any, stop: Any, results: Any) -> None:
    """The main function of a client process."""
    clients = Clients(endpoint, load)
    ready.wait(60)
    start, before = time.perf_counter(), time.process_time()
    with suppress(KeyboardInterrupt):
        asyncio.run(clients.run(ended, stop))
    results.put((clients.traces, (time.process_time() - before) / (time.perf_counter() - start)))
