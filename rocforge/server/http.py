"""HTTPServer: uvicorn with an application, and what that serves."""

from __future__ import annotations

import asyncio
import copy
import math
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from rocforge.server.listeners import BACKLOG
from rocforge.server.protocol import protocol
from rocforge.server.settings import Settings

SPARE = 16
"""Connections beyond those that may have a request in progress, for the probes."""


class Served(Protocol):
    """What an application needs while it runs."""

    async def start(self) -> None:
        """Called once, before anything else."""

    async def stop(self, drain: float) -> None:
        """Refuse further requests, give those in flight so many seconds to finish, and fail the rest."""


class HTTPServer(uvicorn.Server):
    """Starts what it serves as it starts and stops it as it stops, with signals as in `serve`.

    Args:
        served: an engine's backend, or several.
        create: makes the application, by the settings with as many connections as there may be.
        settings: the server's.
        log_level: uvicorn's.
    """

    def __init__(self, served: Served, create: Callable[[Settings], ASGIApp], settings: Settings, log_level: str):
        connections = _connections(settings.max_connections)
        config = uvicorn.Config(
            create(replace(settings, max_connections=connections)),
            http=protocol(settings.client_timeout, connections + SPARE),
            ws="none",
            lifespan="off",
            log_level=log_level,
            log_config=_log_config(),
            server_header=False,
            backlog=max(1, connections // 8),  # asyncio accepts so many before it lets one be closed
            timeout_keep_alive=math.ceil(settings.client_timeout),
            timeout_graceful_shutdown=math.ceil(settings.grace) + 1,
            h11_max_incomplete_event_size=settings.max_header_bytes,
        )
        super().__init__(config)
        self._served, self._grace = served, settings.grace

    def handle_exit(self, number: int, frame: Any) -> None:
        if self.should_exit:
            os._exit(128 + number)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._served.start()
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio has set it to what it accepts at a time

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping = asyncio.ensure_future(self._served.stop(self._grace))
        # after what is left of requests has been ended
        asyncio.get_running_loop().call_later(self._grace + 0.5, self._abort)
        await super().shutdown(sockets)
        await stopping

    def _abort(self) -> None:
        """Abort connections whose clients stopped sending a request or reading a response."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _connections(wanted: int) -> int:
    """As many as fit in half of the process's file descriptors; raises the soft limit as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * (wanted + SPARE)
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft // 2 - SPARE))


def _log_config() -> dict[str, Any]:
    """uvicorn's, but the log of requests goes to stderr like the rest."""
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    return config
