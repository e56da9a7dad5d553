"""HTTP/1.1 with limits that hold for each connection: a client that sends or reads nothing keeps none of them."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_PIECES = 8192
"""Of a body: a chunk of one byte costs as much as one of a kilobyte. TCP's smallest segments carry 4 MiB in fewer."""


class Connection(h11.Connection):
    """h11's, which refuses bodies of too many pieces."""

    _pieces = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if type(event) is h11.Request:
            self._pieces = 0
        elif type(event) is h11.Data:
            self._pieces += 1
            if self._pieces > MAX_PIECES:
                raise h11.RemoteProtocolError(f"a body of more than {MAX_PIECES} pieces")
        return event


def protocol(timeout: float, max_connections: int) -> type[H11Protocol]:
    """uvicorn's protocol for one server, with limits.

    Args:
        timeout: seconds that a client may take to send a request's headers, from its connection or from the answer
            before, and seconds in which it must read some of an answer that waits.
        max_connections: open at a time; one more takes the place of the one that has been without a request longest.
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
            transport.set_write_buffer_limits(high=0)  # what the kernel does not take is what the client does not read
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
            if self.cycle is not None:  # whose body may be what is nonsense: the application answers it no more
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
