"""serve: load a model and answer HTTP until a signal."""

from __future__ import annotations

import asyncio
import copy
import math
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from threadpoolctl import threadpool_limits

from rocforge.engine.engine import Engine
from rocforge.engine.reply import ServiceError
from rocforge.engine.service import Service
from rocforge.load import load
from rocforge.server.app import create_app
from rocforge.server.metrics import Metrics
from rocforge.server.protocol import protocol
from rocforge.server.settings import Settings
from rocforge.text.tokenizer import Tokenizer

BACKLOG = 1024
"""Connections that the kernel queues until they are accepted."""
SPARE = 16
"""Connections beyond those that may have a request in progress, for the probes."""


def serve(
    model_path: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    device: str | None = None,
    context: int | None = None,
    fp16_weights: bool | None = None,
    cache_tokens: int | None = None,
    max_batch_tokens: int = 512,
    max_requests: int = 256,
    max_queue: int = 256,
    settings: Settings | None = None,
    log_level: str = "info",
    progress: bool = False,
    on_ready: Callable[[str], Any] | None = None,
) -> None:
    """Answer HTTP until SIGTERM or SIGINT; call it in the main thread.

    The server listens at once; /ready and completions answer 503 until the model is loaded. The first signal gives
    requests in flight `settings.grace` seconds to finish, fails the rest and returns; a second one ends the process at
    once, with status 128 plus the signal's number.

    Args:
        model_path, device, context, fp16_weights, progress: as in `rf.load`.
        host, port: where to listen; port 0 takes a free one. The host is allowed beside `settings.allowed_hosts`.
        cache_tokens, max_batch_tokens, max_requests: as in `rf.Engine`.
        max_queue: as in Service.
        settings: None: the defaults, with the file's name as the model's.
        log_level: of uvicorn's log on stderr: "critical", "error", "warning", "info", "debug" or "trace".
        on_ready: called with the server's URL, from another thread, once the model is loaded.

    Raises:
        OSError: cannot listen on the address.
        RocforgeError, FileNotFoundError, ...: what `rf.load` raises, after the server has stopped.
    """
    settings = settings or Settings(model_name=model_name(model_path))
    settings = replace(settings, allowed_hosts=(*settings.allowed_hosts, host))

    def load_engine() -> tuple[Engine, Tokenizer]:
        model, tokenizer = load(model_path, device, context, progress, fp16_weights)
        if model.device == "cpu":
            # BLAS threads wait for each other, so one that shares its core with the HTTP side stalls all of them
            threadpool_limits(max(1, len(os.sched_getaffinity(0)) - 1))
        return Engine(model, tokenizer.eog_token_ids, cache_tokens, max_batch_tokens, max_requests), tokenizer

    with _listen(host, port) as listener:
        service = Service(load_engine, max_queue, Metrics())
        server = _Server(service, settings, log_level)
        service.start()
        threading.Thread(target=_watch, args=(service, server, _url(listener), on_ready), daemon=True).start()
        before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            server.run([listener])
        finally:
            service.stop(timeout=settings.grace)
            for number, handler in before.items():
                signal.signal(number, handler)
    if service.error is not None:
        raise service.error


def model_name(path: str | os.PathLike[str]) -> str:
    """A model's default name, from its file."""
    return Path(path).name.removesuffix(".gguf")


class _Server(uvicorn.Server):
    """uvicorn, which stops its service as it stops, with signals as in `serve`."""

    def __init__(self, service: Service, settings: Settings, log_level: str):
        connections = _connections(settings.max_connections)
        config = uvicorn.Config(
            create_app(service, replace(settings, max_connections=connections)),
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
        self._service, self._grace = service, settings.grace

    def handle_exit(self, number: int, frame: Any) -> None:
        if self.should_exit:
            os._exit(128 + number)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio has set it to what it accepts at a time

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        stopping = loop.run_in_executor(None, self._service.stop, self._grace, self._grace + 1)
        loop.call_later(self._grace + 0.5, self._abort)  # after the service has ended what is left of its requests
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


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _watch(service: Service, server: uvicorn.Server, url: str, on_ready: Callable[[str], Any] | None) -> None:
    """Report when the model is loaded; end the server when the service ends."""
    try:
        service.wait_until_ready()
    except ServiceError:
        pass  # serve raises the cause
    else:
        if on_ready is not None:
            on_ready(url)
    service.wait()
    server.should_exit = True
