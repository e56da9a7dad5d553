"""HTTP/1.1 with a time limit on headers: a client that sends them a byte at a time holds no connection."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol(header_timeout: float) -> type[H11Protocol]:
    """uvicorn's protocol, closing connections whose first request is not there after so many seconds.

    For later requests on the connection uvicorn's own `timeout_keep_alive` counts from the last answer to the first
    byte, and this one from then on.
    """

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start_timer()

        def connection_lost(self, error: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(error)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waiting_for_headers = self.cycle is None or self.cycle.response_complete
            if not waiting_for_headers:
                self._stop_timer()
            elif self._timer is None:
                self._start_timer()

        def _start_timer(self) -> None:
            self._timer = self.loop.call_later(header_timeout, self._close)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _close(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return Protocol
