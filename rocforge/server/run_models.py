"""serve_models: answer HTTP for several models, loaded when they are asked for."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from rocforge.device.arrays import available_memory, resolve_device
from rocforge.device.memory import amount
from rocforge.engine.core import StepEngine
from rocforge.engine.service import MAX_QUEUE
from rocforge.errors import OutOfMemoryError
from rocforge.gguf.hub import is_on_hub
from rocforge.loading.files import open_model
from rocforge.ops.types import HostArray
from rocforge.server.app import endpoints
from rocforge.server.client import EngineClient
from rocforge.server.engine_options import EngineOptions
from rocforge.server.http import HTTPServer
from rocforge.server.jobs import Jobs
from rocforge.server.listeners import listen_for_front_ends, url_of
from rocforge.server.metrics import LabelledTables, Metrics, Table
from rocforge.server.model_clients import ModelClients
from rocforge.server.model_pool import MODELS_MAX
from rocforge.server.model_supervisor import ModelSupervisor
from rocforge.server.models import Model
from rocforge.server.router import create_router
from rocforge.server.run import close_others, default_processes, listening, run_engine
from rocforge.server.settings import Settings
from rocforge.server.supervisor import Notes
from rocforge.text.tokenizer import Tokenizer


def serve_models(
    models: Sequence[Model],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    uds: str | os.PathLike[str] | None = None,
    fd: int | None = None,
    models_max: int = MODELS_MAX,
    options: EngineOptions,
    max_queue: int = MAX_QUEUE,
    processes: int | None = None,
    settings: Settings,
    log_level: str = "info",
    on_ready: Callable[[str], Any] | None = None,
) -> None:
    """Answer HTTP for several models until SIGTERM or SIGINT; call it in the main thread.

    A model is loaded when a request names it, into a process of its own, and unloaded, the one first that was not used
    longest, once `models_max` are loaded or the memory does not hold more. Requests for a model that is being loaded
    wait; those of one that is to be unloaded finish first. A model that does not load, or whose engine dies, is told to
    those who asked for it; the next request loads it again.

    Args:
        models_max: models that are loaded at a time; 0: as many as the memory holds.
        options: of the engines; its `models` is set.
        host, port, uds, fd, max_queue, settings, log_level, on_ready: as in `serve`; the server is ready at once.
        processes: for HTTP, as in `serve`, 1 or more.

    Raises:
        OSError: cannot listen on the address.
    """
    settings = replace(settings, allowed_hosts=(*settings.allowed_hosts, host))
    if models_max < 0:
        raise ValueError(f"models_max is {models_max}; allowed is 0 or more")
    if processes is None:
        processes = default_processes()
    if processes < 1:
        raise ValueError(f"processes is {processes}; several models need 1 or more")
    options = replace(options, models=min(models_max or len(models), len(models)))
    names, sizes = [model.name for model in models], {model.name: model.nbytes for model in models}
    tables, in_progress = {name: Table(processes) for name in names}, Table(processes)
    uses = np.frombuffer(mmap.mmap(-1, 8 * processes * len(names))).reshape(processes, len(names))
    with listening(host, port, uds, fd, processes) as listeners, contextlib.ExitStack() as stack:
        inner = {name: stack.enter_context(listen_for_front_ends()) for name in names}
        everyone = [listener for several in listeners for listener in several]
        front_ends = [
            partial(_answer_http, index, listeners, inner, settings, tables, in_progress, uses[index], log_level)
            for index in range(processes)
        ]
        engines = {
            model.name: partial(_run_engine, model, options, sizes, inner, everyone, max_queue, tables[model.name])
            for model in models
        }
        ready = partial(on_ready or (lambda url: None), url_of(everyone[0]) + settings.root_path)
        column = {name: index for index, name in enumerate(names)}
        paths = {model.name: model.path for model in models}
        ModelSupervisor(
            engines,
            lambda name: check_file(paths[name]),
            lambda name: tables[name].note_engine(0, 0, (0, 0)),
            models_max,
            lambda name: uses[:, column[name]].max(),
            front_ends,
            everyone,
            settings.grace,
            ready,
        ).run()


def _run_engine(
    model: Model,
    options: EngineOptions,
    sizes: dict[str, int],
    inner: dict[str, socket.socket],
    everyone: list[socket.socket],
    max_queue: int,
    table: Table,
    loaded: list[str],
    notes: Notes,
) -> None:
    """A model's engine's process, beside others that are loaded."""
    others = [*everyone, *(listener for name, listener in inner.items() if name != model.name)]

    def load() -> tuple[StepEngine, Tokenizer]:
        if resolve_device(options.device) == "cpu":
            check_host_memory(model, sum(sizes[name] for name in loaded), available_memory())
        return options.load(model.path, {})

    run_engine(load, inner[model.name], others, max_queue, table, notes)


def check_file(path: str) -> None:
    """Raise what is wrong with the header of a model on this machine."""
    if not is_on_hub(path):
        with open_model(path):
            pass


def check_host_memory(model: Model, taken: int, available: int) -> None:
    """Raise an OutOfMemoryError where a CPU's memory does not hold a model's file beside those of others.

    Files are mapped, so they do not count as used: without this, models would drive each other's pages out.
    """
    if taken and model.nbytes + taken > available:
        raise OutOfMemoryError(
            f"{model.name} takes {amount(model.nbytes)}, other loaded models {amount(taken)}, of {amount(available)}"
        )


def _answer_http(
    index: int,
    listeners: list[list[socket.socket]],
    inner: dict[str, socket.socket],
    settings: Settings,
    tables: dict[str, Table],
    in_progress: Table,
    uses: HostArray,
    log_level: str,
    notes: Notes,
) -> None:
    """A process for HTTP."""
    addresses = {name: listener.getsockname() for name, listener in inner.items()}
    for listener in inner.values():
        listener.close()
    close_others(listeners, index)
    jobs, metrics = Jobs(), {name: Metrics(table, index) for name, table in tables.items()}

    def connect(name: str, on_ready: Callable[[], None]) -> EngineClient:
        return EngineClient(addresses[name], metrics[name], restarts=False, on_ready=on_ready)

    def endpoints_of(name: str, client: EngineClient) -> Any:
        return endpoints(client, replace(settings, model_name=name), metrics[name], jobs)

    first = next(iter(addresses))
    described = endpoints_of(first, connect(first, lambda: None))
    clients = ModelClients(list(addresses), notes, uses, connect, endpoints_of)
    requests, numbers = Metrics(in_progress, index), LabelledTables("model", tables)

    def create(settings: Settings) -> Any:
        return create_router(clients, described, jobs, numbers, settings, requests)

    HTTPServer(clients, create, settings, log_level).run(listeners[index])
