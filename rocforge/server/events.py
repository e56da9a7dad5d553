"""Server-sent events: the chunks of a stream, as bytes.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rocforge.server.body import dump_json
from rocforge.server.errors import as_api_error
from rocforge.server.jobs import Job, disconnected

PING_SECONDS = 15.0
"""The longest silence of a stream: proxies and clients close idle ones, often after 60 seconds."""


class Chunks:
    """The events of a job, which differ in their choices only.

    Args:
        job: whose they are.
        kind: their "object".
        model: the model's name.
        include_usage: whether each has a usage: null but in the last one.
    """

    def __init__(self, job: Job, kind: str, model: str, include_usage: bool):
        head = dump_json({"id": job.id, "object": kind, "created": job.created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def event(self, choice: bytes) -> bytes:
        """The event of a choice, which is JSON."""
        return self._head + choice + self._tail

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last event, without a choice."""
        return self._head + b'],"usage":' + dump_json(usage) + b"}\n\n"


def event(data: dict[str, Any]) -> bytes:
    """An event that is named by the type of its data."""
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), dump_json(data))


async def completed(events: AsyncIterator[bytes], end: bytes = b"data: [DONE]\n\n") -> AsyncIterator[bytes]:
    """The events of a completion, and what ends them: OpenAI's [DONE], or an error."""
    try:
        async for part in events:
            yield part
        yield end
    except Exception as error:
        yield b"data: " + dump_json(as_api_error(error).body) + b"\n\n"


class EventStream(Response):
    """The events of a job, which does not outlive them, nor its client.

    Args:
        job: whose they are.
        events: as bytes, as many as there are at a time; how they end says whether the job has failed.
    """

    media_type = "text/event-stream"

    def __init__(self, job: Job, events: AsyncIterator[bytes]):
        self._job, self._events = job, events
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pings = Pings(send)
        beside = [asyncio.ensure_future(pings.run()), asyncio.ensure_future(self._end_with(receive))]
        try:
            async for events in self._events:
                await pings.send(events)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._job.cancel()
            for task in beside:
                task.cancel()

    async def _end_with(self, receive: Receive) -> None:
        await disconnected(receive)
        self._job.cancel()


class Pings:
    """Sends parts of a body, and a comment whenever there has been none for PING_SECONDS.

    Args:
        send: the application's.
    """

    def __init__(self, send: Send):
        self._send, self._clock = send, asyncio.get_running_loop().time
        self._last = self._clock()

    async def send(self, body: bytes) -> None:
        self._last = self._clock()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._last + PING_SECONDS - self._clock())
            if self._clock() >= self._last + PING_SECONDS:
                await self.send(b": ping\n\n")
