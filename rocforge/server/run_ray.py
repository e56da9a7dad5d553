"""serve_on_ray: a model's replicas on a Ray cluster, by Ray Serve, until a signal."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, RequestRouterConfig

from rocforge.engine.service import MAX_QUEUE
from rocforge.errors import RocforgeError
from rocforge.gguf.hub import is_on_hub
from rocforge.server.engine_options import EngineOptions, LoadEngine
from rocforge.server.listeners import http_url
from rocforge.server.models import Model
from rocforge.server.ray_cards import RayMachines
from rocforge.server.ray_front import Front
from rocforge.server.ray_replica import Replica
from rocforge.server.run_models import check_file
from rocforge.server.settings import Settings

log = logging.getLogger("rocforge.server")
FULL = 0.5
"""Tokens in flight, by those that the KV cache holds, that a replica is to have; more replicas are started for more."""
DELETING = 20.0
"""Seconds beyond the grace that the end may take."""
_LOGS = {"log_level": "WARNING"}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def serve_on_ray(
    model: Model,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    replicas: tuple[int, int] = (1, 1),
    lora: Mapping[str, tuple[str | os.PathLike[str], float]] | None = None,
    options: EngineOptions,
    max_queue: int = MAX_QUEUE,
    settings: Settings,
    autoscaling: Mapping[str, Any] | None = None,
    on_ready: Callable[[str], Any] | None = None,
) -> None:
    """Answer HTTP by replicas of a model on a Ray cluster until SIGTERM or SIGINT; call it in the main thread.

    The cluster is that of RAY_ADDRESS, or the one of this machine; where there is none, one is started, which ends with
    this process. SIGUSR1 replaces all replicas, a few at a time, and no request is lost. The first other signal gives
    requests in flight `settings.grace` seconds; a second one ends the process at once, and leaves the
    application to a cluster that this process has not started.

    Args:
        model: every machine finds it under the same path.
        host, port: where Ray Serve listens on each machine that has a replica; port 0 takes a free one. Where it runs
            already, its own count.
        replicas: the fewest and the most. Each takes a GPU, or as many as options.devices says, where options.device is
            "gpu", or None and the cluster has any; else as many processors. Several are of one machine where one has
            them free, else of several.
        options, lora, max_queue, settings: of each replica, as in `serve`. `settings.root_path` is the application's
            route, and tells several on one cluster apart.
        autoscaling: further fields of Ray Serve's AutoscalingConfig.
        on_ready: called with the URL once a replica serves.

    Raises:
        RocforgeError: the replicas do not start, or there is such an application already.
        GGUFError, FileNotFoundError, ...: what is wrong with the model's file.
    """
    check_file(model.path)
    settings = replace(settings, allowed_hosts=(*settings.allowed_hosts, host))
    settings = replace(settings, adapters=(*settings.adapters, *(lora or {})))
    with contextlib.ExitStack() as ending, _cluster() as is_own:
        options, bundles = _placed(options)
        name = "rocforge" + settings.root_path.replace("/", "-")
        if name in serve.status().applications:
            raise RocforgeError(
                f"this cluster has an application {name!r} already; another root_path makes another one, and Ray's "
                f"serve.delete({name!r}) ends that one"
            )
        url = _listen(host, port) + settings.root_path
        adapters = {name: (_everywhere(file), scale) for name, (file, scale) in (lora or {}).items()}
        load = partial(options.load, _everywhere(model.path), adapters)
        scaling = {"min_replicas": replicas[0], "max_replicas": replicas[1], **(autoscaling or {})}
        app = application(name, load, max_queue, settings, bundles, scaling)
        signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        try:
            _deploy(app, name, settings.root_path)
            with _signals(signals):
                (on_ready or (lambda url: None))(url)
                while signals.get() == signal.SIGUSR1:
                    try:
                        _deploy(app, name, settings.root_path)
                    except RocforgeError as error:
                        log.error("%s", error)
                ending.enter_context(_bounded(settings.grace + DELETING))
                _stop(name, settings.grace)
                if not is_own:
                    serve.delete(name)
        except BaseException:
            if not is_own:
                serve.delete(name)
            raise


def application(
    name: str,
    load: LoadEngine,
    max_queue: int,
    settings: Settings,
    bundles: Sequence[dict[str, float]],
    autoscaling: Mapping[str, Any],
) -> serve.Application:
    """The application of Ray Serve: a Front before replicas.

    Args:
        name: the application's.
        load, max_queue, settings: as in Replica.
        bundles: the resources of each of a replica's cards.
        autoscaling: fields of AutoscalingConfig.
    """
    common = {
        "graceful_shutdown_timeout_s": settings.request_timeout,
        "max_ongoing_requests": settings.max_connections,
    }
    policy = AutoscalingPolicy(policy_function=replicas_for_load)
    replicas = serve.deployment(Replica).options(
        autoscaling_config=AutoscalingConfig(policy=policy, **autoscaling),
        request_router_config=RequestRouterConfig(request_router_class="rocforge.server.ray_router:PrefixRouter"),
        ray_actor_options={"num_cpus": bundles[0]["CPU"], "num_gpus": bundles[0]["GPU"]},
        **({"placement_group_bundles": bundles, "placement_group_strategy": "PACK"} if len(bundles) > 1 else {}),
        health_check_period_s=2,
        **common,
    )
    fronts = serve.deployment(serve.ingress()(Front)).options(
        num_replicas=autoscaling["max_replicas"],  # passing a stream on takes about as long as writing it
        ray_actor_options={"num_cpus": 0},
        **common,
    )
    return fronts.bind(replicas.bind(load, max_queue, settings, name), settings)


def replicas_for_load(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """How many replicas there should be, for how full they are; Ray Serve keeps it within the bounds."""
    load = sum((context.aggregated_metrics or {}).get("load", {}).values())
    return max(1, math.ceil(load / FULL)), {}


@contextlib.contextmanager
def _cluster() -> Iterator[bool]:
    """A connection to a cluster; whether it is one of this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS") or "auto"
    is_own = address == "local"
    if not is_own:
        try:
            ray.init(address, logging_level=logging.WARNING)
        except ConnectionError:
            if address != "auto":
                raise
            is_own = True
    if is_own:
        ray.init("local", include_dashboard=False, logging_level=logging.WARNING)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        yield is_own
    finally:
        ray.shutdown()


def _placed(options: EngineOptions) -> tuple[EngineOptions, list[dict[str, float]]]:
    """How the engine of a replica is made, and the resources of its cards."""
    devices = options.devices
    cards = 1 if devices is None else devices if isinstance(devices, int) else len(devices)
    on_cpu = options.device == "cpu" or (not isinstance(devices, int) and "cpu" in (devices or ()))
    has_gpus = options.device == "gpu" or cards > 1 or ray.cluster_resources().get("GPU", 0) > 0
    on_cpu = on_cpu or not has_gpus
    if cards > 1:
        options = replace(options, device=None, devices=None, machines=partial(RayMachines, cards, on_cpu))
    else:
        options = replace(options, device="cpu" if on_cpu else "gpu", devices=None)
    return options, [{"CPU": 1, "GPU": 0 if on_cpu else 1}] * cards


def _everywhere(path: str | os.PathLike[str]) -> str:
    """A path for processes that have other working directories; names of the Hub stay."""
    return os.fspath(path) if is_on_hub(path) else os.path.abspath(path)


def _listen(host: str, port: int) -> str:
    """Start Ray Serve where it does not run, and give its URL."""
    if serve.status().proxies:
        return "Ray Serve's address"
    if port == 0:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
            port = free.getsockname()[1]
    serve.start(http_options={"host": host, "port": port}, logging_config=_LOGS)
    return http_url(host, port)


def _deploy(app: serve.Application, name: str, route: str) -> None:
    """Deploy an application, or replace the one of that name, replica by replica.

    Raises:
        RocforgeError: it does not start.
    """
    try:
        serve.run(app, name=name, route_prefix=route or "/", logging_config=_LOGS)
    except RuntimeError as error:
        raise RocforgeError(f"the replicas do not start: {_reason(name) or error}") from error


def _reason(name: str) -> str:
    """The last line of what Ray Serve says of an application's replicas."""
    application = serve.status().applications.get(name)
    replicas = application.deployments.get(Replica.__name__) if application else None
    return replicas.message.strip().rpartition("\n")[2] if replicas else ""


def _stop(name: str, grace: float) -> None:
    """Let the replicas of an application finish their requests, and fail the rest."""
    with contextlib.suppress(Exception):  # replicas that have ended have nothing left to stop
        replicas = serve.get_deployment_handle(Replica.__name__, name)
        replicas.broadcast("stop", grace).results(timeout_s=grace + 2)


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """End the process after so many seconds: Ray waits for a cluster that has been killed."""
    late = threading.Timer(seconds, os._exit, (1,))
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


@contextlib.contextmanager
def _signals(received: queue.SimpleQueue[int]) -> Iterator[None]:
    """Put signals into a queue; the second that ends the process does so at once."""
    ending = False

    def handle(number: int, frame: Any) -> None:
        nonlocal ending
        if ending:
            os._exit(128 + number)
        ending = number != signal.SIGUSR1
        received.put(number)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
