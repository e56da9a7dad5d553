"""Front: the HTTP endpoints before the replicas of a model on a Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rocforge.engine.core import StepEngine
from rocforge.engine.reply import EngineDeadError, ServiceError
from rocforge.engine.service import State
from rocforge.server.app import add_requests, bare_app, endpoints, guard, metrics_response
from rocforge.server.backend import LocalBackend
from rocforge.server.body import JSONRequest, dump_json
from rocforge.server.errors import JSONResponse, as_api_error
from rocforge.server.events import event
from rocforge.server.generation import time_limit
from rocforge.server.jobs import Jobs, client_closed, unless_gone
from rocforge.server.kept_responses import add_kept_responses
from rocforge.server.metrics import Metrics, ReplicaTables, Table
from rocforge.server.ray_router import ask_all
from rocforge.server.router import seconds_of
from rocforge.server.routing import prefix_of
from rocforge.server.run import observed_service
from rocforge.server.settings import Settings
from rocforge.text.tokenizer import Tokenizer

log = logging.getLogger("rocforge.server")
TRIES = 3
"""Replicas that a request may end without having sent anything; it may be the request that ends them."""
_SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client")
"""What a replica is told of a request."""


class Front:
    """Checks requests, as a server's process for HTTP does, and passes each on to the replica that has its prefix.

    A request whose replica ends before it has sent anything goes to another one; a stream that has begun ends with an
    error.

    Args:
        replicas: of Replica.
        settings: the server's.
    """

    def __init__(self, replicas: DeploymentHandle, settings: Settings):
        self._replicas, self._answering = replicas, replicas.options(stream=True)
        self._settings = settings

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """For Ray Serve."""
        settings, jobs = self._settings, Jobs()
        app, metrics = bare_app(settings), Metrics(Table())
        self._described = endpoints(LocalBackend(observed_service(_nothing, 1)[0]), settings, metrics, jobs)
        app.openapi = self._described.openapi  # type: ignore[method-assign]
        add_requests(app, jobs, self._ask)
        add_kept_responses(app, jobs, self._ask)
        self._add_state(app)
        app.router.default = self._pass_on
        guard(app, settings, metrics)

        async def http_alone(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await app(scope, receive, send)

        return http_alone

    async def _ask(self, question: str, argument: str = "") -> list[Any]:
        return await ask_all(self._replicas, "ask", question, argument)

    def _add_state(self, app: FastAPI) -> None:
        @app.get("/health")
        async def health() -> Response:
            """Liveness, and the state of each replica."""
            return JSONResponse({"status": "ok", "replicas": dict(await ask_all(self._replicas, "state"))})

        @app.get("/ready")
        async def ready() -> Response:
            """Readiness: 503 while there is no replica that serves."""
            states = {state for _, state in await ask_all(self._replicas, "state")}
            state = State.READY if State.READY.value in states else State.STARTING
            return JSONResponse({"state": state.value}, 200 if state is State.READY else 503)

        @app.get("/metrics")
        async def metrics_text() -> Response:
            """Those of each replica, in Prometheus's text format."""
            return metrics_response(ReplicaTables(await ask_all(self._replicas, "numbers")).text())

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request by a replica."""
        scope = {name: value for name, value in scope.items() if name != "router"}
        if not any(route.matches(scope)[0] is Match.FULL for route in self._described.routes):
            return await self._described(scope, receive, send)  # which says that there is no such thing
        request, fields, body = JSONRequest(scope, receive), None, b""
        if request.method == "POST":
            fields, body = await request.json(), await request.body()
        prefix = prefix_of(scope["path"], fields)
        asked = seconds_of(fields.get("timeout")) if isinstance(fields, Mapping) else float("inf")
        answer = Answer({name: scope[name] for name in _SCOPE}, send)
        passing = self._until_answered(answer, body, prefix, min(asked, self._settings.request_timeout))
        if await unless_gone(passing, request) is None and not answer.begun:
            await client_closed()(scope, receive, send)

    async def _until_answered(self, answer: Answer, body: bytes, prefix: str, seconds: float) -> bool:
        """Pass a request on until it is answered.

        Raises:
            DeadlineError: nobody has answered in that many seconds.
            EngineDeadError: so many replicas have ended meanwhile.
            ServiceError: there are none.
        """
        for tried in range(TRIES):
            messages = self._answering.answer.remote(answer.scope, body, again=tried > 0, prefix=prefix)
            try:
                with time_limit(seconds):
                    await answer.take(await anext(messages))
                async for batch in messages:
                    await answer.take(batch)
                return True
            except DeploymentUnavailableError as error:
                raise ServiceError(str(error)) from error
            except RayActorError as error:
                dead = EngineDeadError("the replica that had the request has ended")
                if answer.begun:
                    await answer.fail(dead)
                    return True
                if tried == TRIES - 1:
                    raise dead from error
                log.warning("a replica has ended; its request goes to another one")
            finally:
                messages.cancel()
        raise AssertionError("the last try returns or raises")


class Answer:
    """The answer to a request, as it is passed on. Its head waits for the first part of its body.

    Args:
        scope: the request's.
        send: as ASGI has it.

    Attributes:
        begun: whether the client has got something.
    """

    def __init__(self, scope: Scope, send: Send):
        self.scope, self.begun = scope, False
        self._send = send
        self._head: Message = {}

    async def take(self, messages: list[Message]) -> None:
        """Pass messages on."""
        for message in messages:
            if message["type"] == "http.response.start":
                self._head = message
                continue
            if not self.begun:
                self.begun = True
                await self._send(self._head)
            await self._send(message)

    async def fail(self, error: Exception) -> None:
        """End what has begun: a stream with an event, in the shape of its API; else the connection, by the error."""
        types = [value for name, value in self._head["headers"] if name == b"content-type"]
        if not any(type.startswith(b"text/event-stream") for type in types):
            raise error
        found, path = as_api_error(error), self.scope["path"]
        if path == "/v1/messages":
            last = event(found.anthropic_body)
        elif path == "/v1/responses":
            last = event({"type": "error", "code": found.code, "message": found.message, "param": None})
        else:
            last = b"data: " + dump_json(found.body) + b"\n\n"
        await self._send({"type": "http.response.body", "body": last, "more_body": False})


def _nothing() -> tuple[StepEngine, Tokenizer]:
    raise AssertionError("the service of what is only described is never started")
