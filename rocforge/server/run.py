"""serve: load a model and answer HTTP until a signal."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rocforge.engine.capacity import MAX_REQUESTS
from rocforge.engine.reply import ServiceError
from rocforge.engine.service import MAX_QUEUE, Service
from rocforge.server.app import create_app
from rocforge.server.backend import LocalBackend
from rocforge.server.client import EngineClient
from rocforge.server.engine_options import EngineOptions, LoadEngine
from rocforge.server.engine_process import EngineServer
from rocforge.server.http import HTTPServer
from rocforge.server.listeners import listen, listen_for_front_ends, url_of
from rocforge.server.metrics import Metrics, Table
from rocforge.server.models import model_name
from rocforge.server.settings import Settings
from rocforge.server.supervisor import Notes, Supervisor

MOST_PROCESSES = 4
"""The default's: each holds the vocabulary."""


def serve(
    model_path: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    uds: str | os.PathLike[str] | None = None,
    fd: int | None = None,
    device: str | None = None,
    devices: int | Sequence[str] | None = None,
    shares: Sequence[float] | None = None,
    context: int | None = None,
    fp16_weights: bool | None = None,
    lora: Mapping[str, tuple[str | os.PathLike[str], float]] | None = None,
    cache_tokens: int | None = None,
    cache_type_k: str | None = None,
    cache_type_v: str | None = None,
    max_batch_tokens: int | None = None,
    max_requests: int = MAX_REQUESTS,
    inter_token_ms: float | None = None,
    max_queue: int = MAX_QUEUE,
    processes: int | None = None,
    restart_engine: bool = False,
    load_engine: LoadEngine | None = None,
    settings: Settings | None = None,
    log_level: str = "info",
    progress: bool | None = None,
    on_ready: Callable[[str], Any] | None = None,
) -> None:
    """Answer HTTP until SIGTERM or SIGINT; call it in the main thread.

    The engine has a process of its own, and so have tokenizing, text and HTTP: `processes` of them, which share the
    port. This process forks them, so it must not have used a GPU, and should have no other thread.

    The server listens at once; /ready and completions answer 503 until the model is loaded. The first signal gives
    requests in flight `settings.grace` seconds to finish, fails the rest and returns; a second one ends the process at
    once, with status 128 plus the signal's number. The other processes end with this one, however it ends.

    A process for HTTP that dies is started again; its connections are lost, and its requests cancelled. If the
    engine's dies, requests in flight fail.

    Args:
        model_path, device, devices, shares, context, fp16_weights, cache_type_k, cache_type_v, progress: as in
            `rf.load`.
        host, port: where to listen; port 0 takes a free one. The host is allowed beside `settings.allowed_hosts`.
        uds: a path for a unix socket, to listen there instead.
        fd: the descriptor of a listening socket, to take that instead.
        lora: adapters that requests may ask for: name -> path and scale, as in `model.adapters.load`.
        cache_tokens, max_batch_tokens, max_requests, inter_token_ms: as in `rf.Engine`.
        max_queue: as in Service.
        processes: for HTTP; None: one for every four processors, from 1 to 4. 0: no other process at all: a thread of
            this one runs the engine.
        restart_engine: whether to start the engine's process again when it has died, in place of ending with an error.
        load_engine: gives the engine and the tokenizer in place of what model_path and the options of the engine say;
            model_path is a name only then. The engine needs what StepEngine has.
        settings: None: the defaults, with the file's name as the model's.
        log_level: of uvicorn's log on stderr: "critical", "error", "warning", "info", "debug" or "trace".
        on_ready: called with the server's URL once the model is loaded; from another thread where processes is 0.

    Raises:
        OSError: cannot listen on the address.
        EngineDeadError: the engine's process was killed.
        RocforgeError, FileNotFoundError, ...: what `rf.load` raises, after the server has stopped.
    """
    settings = settings or Settings(model_name=model_name(model_path))
    settings = replace(settings, allowed_hosts=(*settings.allowed_hosts, host))
    settings = replace(settings, adapters=(*settings.adapters, *(lora or {})))
    if processes is None:
        processes = default_processes()
    if processes < 0:
        raise ValueError(f"processes is {processes}; allowed is 0 or more")
    if restart_engine and processes == 0:
        raise ValueError("restart_engine needs a process for the engine; processes is 0")

    options = EngineOptions(
        device=device,
        devices=devices,
        shares=shares,
        context=context,
        fp16_weights=fp16_weights,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        cache_tokens=cache_tokens,
        max_batch_tokens=max_batch_tokens,
        max_requests=max_requests,
        inter_token_ms=inter_token_ms,
        progress=progress,
    )
    loading = load_engine or partial(options.load, model_path, lora or {})
    with listening(host, port, uds, fd, max(1, processes)) as listeners, contextlib.ExitStack() as stack:
        everyone = [listener for several in listeners for listener in several]
        ready = partial(on_ready or (lambda url: None), url_of(everyone[0]) + settings.root_path)
        if processes == 0:
            _serve_in_one_process(loading, max_queue, listeners[0], settings, log_level, ready)
        else:
            table, inner = Table(processes), stack.enter_context(listen_for_front_ends())
            front_ends = [
                partial(_answer_http, index, listeners, inner, settings, table, log_level, restart_engine)
                for index in range(processes)
            ]
            engine = partial(run_engine, loading, inner, everyone, max_queue, table)
            Supervisor(engine, front_ends, everyone, restart_engine, settings.grace, ready).run()


def default_processes() -> int:
    """How many processes answer HTTP: one for every four processors, from 1 to MOST_PROCESSES."""
    return max(1, min(MOST_PROCESSES, len(os.sched_getaffinity(0)) // 4))


@contextlib.contextmanager
def listening(
    host: str, port: int, uds: str | os.PathLike[str] | None, fd: int | None, processes: int
) -> Iterator[list[list[socket.socket]]]:
    """The listening sockets of each process for HTTP; a path for one is gone at the end."""
    listeners = listen(host, port, uds, fd, processes)
    try:
        yield listeners
    finally:
        for several in listeners:
            for listener in several:
                listener.close()
        if uds is not None and fd is None:
            Path(uds).unlink(missing_ok=True)


def run_engine(
    load_engine: LoadEngine,
    listener: socket.socket,
    others: list[socket.socket],
    max_queue: int,
    table: Table,
    notes: Notes,
) -> None:
    """The engine's process."""
    table.note_engine(0, 0, (0, 0))  # another one may have died
    for other in others:
        other.close()
    engine, tokenizer = load_engine()
    with engine:
        server = EngineServer(engine, tokenizer, listener, max_queue, table)
        gc.collect()
        gc.freeze()  # a collection that looks at all of a model takes longer than a step
        notes.ready()
        server.run()


def _answer_http(
    index: int,
    listeners: list[list[socket.socket]],
    inner: socket.socket,
    settings: Settings,
    table: Table,
    log_level: str,
    restart_engine: bool,
    notes: Notes,
) -> None:
    """A process for HTTP."""
    address = inner.getsockname()
    inner.close()
    close_others(listeners, index)
    metrics = Metrics(table, index)
    client = EngineClient(address, metrics, restart_engine, notes.ready)
    HTTPServer(client, partial(create_app, client, metrics=metrics), settings, log_level).run(listeners[index])


def close_others(listeners: list[list[socket.socket]], index: int) -> None:
    """Close the listening sockets of the other processes for HTTP."""
    for others in (*listeners[:index], *listeners[index + 1 :]):
        for other in others:
            other.close()


def _serve_in_one_process(
    load_engine: LoadEngine,
    max_queue: int,
    listeners: list[socket.socket],
    settings: Settings,
    log_level: str,
    on_ready: Callable[[], Any],
) -> None:
    service, metrics = observed_service(load_engine, max_queue)
    backend = LocalBackend(service)
    server = HTTPServer(backend, partial(create_app, backend, metrics=metrics), settings, log_level)
    service.start()
    threading.Thread(target=_watch, args=(service, server, on_ready), daemon=True).start()
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(listeners)
    finally:
        service.stop(timeout=settings.grace)
        for number, handler in before.items():
            signal.signal(number, handler)
    if service.error is not None:
        raise service.error


def observed_service(load_engine: LoadEngine, max_queue: int) -> tuple[Service, Metrics]:
    """A service, and the metrics of it."""
    table = Table()

    def update() -> None:
        blocks = service.engine.cache_blocks if service.engine else (0, 0)
        table.note_engine(service.queue_depth, service.in_flight, blocks)

    metrics = Metrics(table, update=update)
    service = Service(load_engine, max_queue, metrics)
    return service, metrics


def _watch(service: Service, server: HTTPServer, on_ready: Callable[[], Any]) -> None:
    """Report when the model is loaded; end the server when the service ends."""
    try:
        service.wait_until_ready()
    except ServiceError:
        pass  # serve raises the cause
    else:
        on_ready()
    service.wait()
    server.should_exit = True
