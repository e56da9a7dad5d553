"""create_router: the HTTP endpoints over several models, each request for the one that it names."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from rocforge.engine.service import State
from rocforge.server.app import add_common, add_requests, bare_app, guard, model_entry
from rocforge.server.body import JSONRequest
from rocforge.server.errors import APIError, JSONResponse, unknown_model
from rocforge.server.generation import time_limit
from rocforge.server.jobs import Jobs, client_closed, unless_gone
from rocforge.server.kept_responses import add_kept_responses
from rocforge.server.metrics import LabelledTables, Metrics
from rocforge.server.model_clients import ModelClient, ModelClients
from rocforge.server.request_id import RequestId
from rocforge.server.settings import Settings


def create_router(
    clients: ModelClients, described: FastAPI, jobs: Jobs, tables: LabelledTables, settings: Settings, metrics: Metrics
) -> FastAPI:
    """The ASGI application over several models.

    Args:
        clients: the models, which the caller starts and stops.
        described: the endpoints of any model, to know which there are.
        jobs: requests of all models.
        tables: numbers of the models.
        settings: the server's.
        metrics: counts requests in progress.
    """
    app = bare_app(settings)
    app.openapi = described.openapi  # type: ignore[method-assign]
    _add_models(app, clients)
    add_requests(app, jobs, clients.ask)
    add_kept_responses(app, jobs, clients.ask)
    add_common(app, tables.text)
    _add_state(app, clients)
    app.router.default = Dispatch(clients.models, described, settings.request_timeout)
    guard(app, settings, metrics)
    app.add_middleware(RequestId)
    return app


def _add_models(app: FastAPI, clients: ModelClients) -> None:
    created = int(time.time())

    @app.get("/v1/models")
    async def models() -> Response:
        """The models, with their state."""
        found = [_entry(name, created, model) for name, model in clients.models.items()]
        return JSONResponse({"object": "list", "data": found})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """A model by name."""
        return JSONResponse(_entry(name, created, named(clients.models, name)))


def _entry(name: str, created: int, model: ModelClient) -> dict[str, Any]:
    """What /v1/models says of a model; its status is as llama.cpp's."""
    failed = {"failed": True, "error": model.error} if model.error else {}
    return {**model_entry(name, created, model.client), "status": {"value": model.state.value, **failed}}


def _add_state(app: FastAPI, clients: ModelClients) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Liveness, and the state of each model."""
        states = {name: model.state.value for name, model in clients.models.items()}
        return JSONResponse({"status": "ok", "state": clients.state.value, "models": states})

    @app.get("/ready")
    async def ready() -> Response:
        """Readiness: 503 while the server stops. Models are loaded when they are asked for."""
        return JSONResponse({"state": clients.state.value}, 200 if clients.state is State.READY else 503)


class Dispatch:
    """An ASGI application that passes each request on to the endpoints of the model that it names.

    Requests with a body name it there, others by `?model=`. Those to a model that is not loaded wait for it.

    Args:
        models: by name.
        described: has the same endpoints.
        request_timeout: seconds that a request waits at most; it may ask for less.
    """

    def __init__(self, models: Mapping[str, ModelClient], described: FastAPI, request_timeout: float):
        self._models, self._described, self._request_timeout = models, described, request_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = {name: value for name, value in scope.items() if name != "router"}
        if not any(route.matches(scope)[0] is Match.FULL for route in self._described.routes):
            return await self._described(scope, receive, send)  # which says that there is no such thing
        request = JSONRequest(scope, receive)
        fields = await self._fields(request)
        model = named(self._models, fields["model"])
        async with contextlib.AsyncExitStack() as stack:
            with time_limit(min(seconds_of(fields.get("timeout")), self._request_timeout)):
                endpoints = await unless_gone(stack.enter_async_context(model.use()), request)
            if endpoints is None:
                return await client_closed()(scope, receive, send)
            await endpoints(
                scope, replayed(await request.body(), receive) if request.method == "POST" else receive, send
            )

    async def _fields(self, request: JSONRequest) -> Mapping[str, Any]:
        """The fields of a body, or of a query; "model" is one of them."""
        fields = await request.json() if request.method == "POST" else request.query_params
        if not isinstance(fields, Mapping) or not isinstance(fields.get("model"), str):
            message = "Missing required parameter: 'model'"
            raise APIError(message, param="model", code="missing_required_parameter")
        return fields


def named(models: Mapping[str, ModelClient], name: str) -> ModelClient:
    """The model of that name.

    Raises:
        APIError: there is none.
    """
    if name not in models:
        raise unknown_model(name)
    return models[name]


def seconds_of(timeout: Any) -> float:
    """A request's time limit; infinite where it has none, or no valid one, which its endpoint will refuse."""
    return timeout if isinstance(timeout, (int, float)) and timeout > 0 else float("inf")


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read, and then what follows."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return first.pop() if first else await receive()

    return receive_again
