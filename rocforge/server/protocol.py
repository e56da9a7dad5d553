"""HTTP/1.1 with limits on each connection: clients that stop sending or reading are disconnected."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CHUNKS = 8192
"""Chunks of a body: one of a byte costs as much as one of a kilobyte. TCP's smallest segments carry 4 MiB in fewer."""


class Connection(h11.Connection):
    """h11's, which refuses bodies of too many chunks, and writes those of streams faster."""

    _chunks = 0
    _sends_chunks = False

    def send(self, event: Any) -> Any:
        """The bytes of an event. A part of a body has a dozen of h11's calls to go through, which change nothing."""
        if type(event) is h11.Data and self._sends_chunks and self.our_state is h11.SEND_BODY:
            return b"%x\r\n%b\r\n" % (len(event.data), event.data) if event.data else b""
        data = super().send(event)
        if type(event) is h11.Response:
            self._sends_chunks = data is not None and b"\r\ntransfer-encoding: chunked\r\n" in data.lower()
        return data

    def next_event(self) -> Any:
        event = super().next_event()
        if type(event) is h11.Request:
            self._chunks = 0
        elif type(event) is h11.Data:
            self._chunks += 1
            if self._chunks > MAX_CHUNKS:
                raise h11.RemoteProtocolError(f"a body of more than {MAX_CHUNKS} chunks")
        return event


def protocol(timeout: float, max_connections: int) -> type[H11Protocol]:
    """uvicorn's protocol for one server, with limits.

    Args:
        timeout: seconds for a client to send a request's headers, from its connection or its previous response, and
            to read some of a pending response.
        max_connections: open at a time; a new one replaces the one that has been idle longest.
    """
    idle: dict[H11Protocol, None] = {}  # without a request in progress, or with what is left of an answer, oldest first

    class Protocol(H11Protocol):
        _headers: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            max_head = self.config.h11_max_incomplete_event_size
            assert max_head is not None
            self.conn = Connection(h11.SERVER, max_head)

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # whatever the kernel does not accept, the client has not read
            self._note_progress()
            if len(self.connections) > max_connections:
                longest = next(iter(idle))  # where all others have requests in progress, this one
                del idle[longest]
                longest.transport.abort()

        def connection_lost(self, error: Exception | None) -> None:
            self._stop("_headers")
            self._stop("_reading")
            idle.pop(self, None)
            super().connection_lost(error)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._note_progress()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._note_progress()

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None:  # its body may be the invalid part: the application must not answer it
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                super().send_400_response(msg)
            else:
                self.transport.close()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_reading()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop("_reading")

        def _note_progress(self) -> None:
            """Whether there is a request in progress may have changed."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop("_headers")
                idle.pop(self, None)
                return
            idle.setdefault(self)
            if self._headers is None and not self.transport.is_closing():
                self._headers = self.loop.call_later(timeout, self.transport.close)  # once the answer is read

        def _watch_reading(self) -> None:
            waiting = self.transport.get_write_buffer_size()

            def check() -> None:
                if self.transport.get_write_buffer_size() < waiting:
                    self._watch_reading()
                else:
                    self.transport.abort()

            self._reading = self.loop.call_later(timeout, check)

        def _stop(self, name: str) -> None:
            timer = getattr(self, name)
            if timer is not None:
                timer.cancel()
                setattr(self, name, None)

    return Protocol
