"""create_app: the HTTP endpoints over a service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from rocforge import __version__
from rocforge.engine.service import State
from rocforge.server import errors
from rocforge.server.backend import Backend
from rocforge.server.body import JSONRoute
from rocforge.server.chat import ChatCompletions
from rocforge.server.completions import Completions
from rocforge.server.embeddings import Embeddings
from rocforge.server.errors import APIError, JSONResponse
from rocforge.server.generation import Generator
from rocforge.server.hosts import Hosts
from rocforge.server.infill import Infill
from rocforge.server.jobs import Jobs, first_answer, latest_first
from rocforge.server.kept_responses import add_kept_responses
from rocforge.server.key import Key
from rocforge.server.limits import Limits
from rocforge.server.messages import add_messages
from rocforge.server.metrics import Metrics
from rocforge.server.page import page
from rocforge.server.prefix import Prefix
from rocforge.server.props import props as model_props
from rocforge.server.request_id import HEADER, RequestId
from rocforge.server.rerank import Rerank
from rocforge.server.responses import add_responses
from rocforge.server.schema import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    InfillRequest,
    RerankRequest,
    TokenizeRequest,
)
from rocforge.server.settings import Settings

_ERROR = {"content": {"application/json": {"example": APIError("what was wrong").body}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request is invalid, or the queue is full", **_ERROR},
    503: {"description": "The model is not loaded", **_ERROR},
}


def create_app(backend: Backend, settings: Settings, metrics: Metrics) -> FastAPI:
    """The ASGI application over an engine, which the caller starts and stops, and its metrics."""
    app = endpoints(backend, settings, metrics, Jobs())
    guard(app, settings, metrics)
    app.add_middleware(RequestId)
    return app


def bare_app(settings: Settings) -> FastAPI:
    """An application without endpoints, which answers errors as the API does."""
    servers = [{"url": settings.root_path}] if settings.root_path else None
    app = FastAPI(
        title="rocforge",
        docs_url=None,
        redoc_url=None,
        responses=_RESPONSES,
        servers=servers,
        strict_content_type=False,  # JSONRequest looks at it
    )
    errors.install(app)
    app.state.settings, app.state.parsing = settings, anyio.CapacityLimiter(1)
    app.router.route_class = JSONRoute
    return app


def guard(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """Put before an application what all requests have to pass; `metrics` counts those in progress."""
    if settings.api_key is not None:
        app.add_middleware(Key, key=settings.api_key)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[HEADER, "retry-after"],
        )
    app.add_middleware(Hosts, allowed=settings.allowed_hosts)
    app.add_middleware(
        Limits, max_header_bytes=settings.max_header_bytes, max_requests=settings.max_connections, metrics=metrics
    )
    if settings.root_path:
        app.add_middleware(Prefix, prefix=settings.root_path)


def endpoints(backend: Backend, settings: Settings, metrics: Metrics, jobs: Jobs) -> FastAPI:
    """The endpoints over an engine, for whose requests `jobs` is; their `state.generator` makes those."""
    app, generator = bare_app(settings), Generator(backend, settings, jobs)
    app.state.generator = generator
    backend.answer_with(jobs.answer)
    chats = ChatCompletions(generator)
    _add_generation(app, generator, chats)
    add_responses(app, generator, chats)
    add_kept_responses(app, jobs, backend.ask)
    add_messages(app, chats)
    _add_tokens(app, generator)
    add_requests(app, jobs, backend.ask)
    _add_state(app, generator, metrics)
    return app


def _add_generation(app: FastAPI, generator: Generator, chat: ChatCompletions) -> None:
    complete, infill = Completions(generator), Infill(generator)
    embed, rerank = Embeddings(generator), Rerank(generator)

    @app.post("/v1/completions", response_class=JSONResponse)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """The text that follows a prompt."""
        return await complete(body, request)

    @app.post("/v1/chat/completions", response_class=JSONResponse)
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        """The assistant's next message."""
        return await chat(body, request)

    @app.post("/infill", response_class=JSONResponse)
    async def fill_in(body: InfillRequest, request: Request) -> Response:
        """The text between two texts, as llama.cpp's clients ask for it."""
        return await infill(body, request)

    @app.post("/v1/embeddings", response_class=JSONResponse)
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """A vector of each text."""
        return await embed(body, request)

    @app.post("/v1/rerank", response_class=JSONResponse)
    async def rerank_documents(body: RerankRequest, request: Request) -> Response:
        """Documents by how well they answer a query."""
        return await rerank(body, request)

    for path in ("/v2/rerank", "/rerank", "/v1/reranking", "/reranking"):  # Cohere's, vLLM's and llama.cpp's
        app.post(path, response_class=JSONResponse, include_in_schema=False)(rerank_documents)

    @app.get("/v1/models", response_class=JSONResponse)
    async def models() -> Response:
        """The model that is served, alone and with each of its adapters."""
        found = [_model(generator, name) for name in generator.models]
        return JSONResponse({"object": "list", "data": found})

    @app.get("/v1/models/{name:path}", response_class=JSONResponse)
    async def model(name: str) -> Response:
        """A model by name."""
        generator.check_model(name)
        return JSONResponse(_model(generator, name))


def _model(generator: Generator, name: str) -> dict[str, Any]:
    parent = {"parent": generator.settings.model_name} if generator.models[name] else {}
    return {**parent, **model_entry(name, generator.created, generator.backend, generator.settings.chat_template)}


def model_entry(name: str, created: int, backend: Backend, template: str | None = None) -> dict[str, Any]:
    """What /v1/models says of a model; `template` is instead of its own."""
    tokenizer = backend.tokenizer
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "rocforge",
        "context_length": backend.limit or None,
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "chat_template": None if tokenizer is None else bool(template or tokenizer.chat_template),
    }


def _add_tokens(app: FastAPI, generator: Generator) -> None:
    @app.post("/tokenize", response_class=JSONResponse)
    async def tokenize(body: TokenizeRequest) -> Response:
        """The token ids of a text."""
        generator.check_model(body.model or generator.settings.model_name)
        options = {"add_special_tokens": body.add_special, "parse_special_tokens": body.parse_special}
        ids = await generator.encode(body.content, **options)
        return JSONResponse({"tokens": ids, "count": len(ids)})

    @app.post("/detokenize", response_class=JSONResponse)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        generator.check_model(body.model or generator.settings.model_name)
        with errors.refusing("tokens"):
            return JSONResponse({"content": await run_in_threadpool(generator.tokenizer.decode, body.tokens)})


def add_requests(app: FastAPI, jobs: Jobs, ask: Callable[..., Awaitable[list[Any]]]) -> None:
    """The endpoints about requests, of which other processes are asked by `ask`."""

    async def find(question: str, id: str) -> Response:
        status = await first_answer(jobs, ask, question, id)
        if status is None:
            raise APIError(
                f"unknown request {id!r}; only recent ones are kept", 404, param="id", code="unknown_request"
            )
        return JSONResponse(status)

    @app.get("/v1/requests", response_class=JSONResponse)
    async def requests() -> Response:
        """The status of requests in flight, and of recent ones."""
        found = jobs.statuses()
        for others in await ask("statuses"):
            found = latest_first(found + others)
        return JSONResponse({"object": "list", "data": found})

    @app.get("/v1/requests/{id}", response_class=JSONResponse)
    async def status(id: str) -> Response:
        """The status of a request, by the id of its completion."""
        return await find("status", id)

    @app.delete("/v1/requests/{id}", response_class=JSONResponse)
    async def cancel(id: str) -> Response:
        """Cancel a request; no effect once it has ended."""
        return await find("cancel", id)


def _add_state(app: FastAPI, generator: Generator, metrics: Metrics) -> None:
    backend = generator.backend

    @app.get("/props", response_class=JSONResponse)
    async def props() -> Response:
        """What clients of llama.cpp's server ask about the model and the defaults."""
        return JSONResponse(model_props(generator))

    add_common(app, metrics.text)

    @app.get("/health", response_class=JSONResponse)
    async def health() -> Response:
        """Liveness: 503 once the engine has failed."""
        state = backend.state
        body = {"status": "error" if state is State.FAILED else "ok", "state": state.value}
        return JSONResponse(body, 503 if state is State.FAILED else 200)

    @app.get("/ready", response_class=JSONResponse)
    async def ready() -> Response:
        """Readiness: 503 while the model loads and while the server stops."""
        state = backend.state
        return JSONResponse({"state": state.value}, 200 if state is State.READY else 503)


def add_common(app: FastAPI, numbers: Callable[[], bytes]) -> None:
    """The endpoints that are the same for one model and several; `numbers` gives those of /metrics."""

    @app.get("/version", response_class=JSONResponse)
    async def version() -> Response:
        """rocforge's."""
        return JSONResponse({"version": __version__})

    @app.get("/metrics")
    async def metrics_text() -> Response:
        """Counters, times and gauges, in Prometheus's text format."""
        return metrics_response(numbers())

    @app.get("/", include_in_schema=False)
    async def chat_page() -> Response:
        """The chat page."""
        return page()


def metrics_response(text: bytes) -> Response:
    """Numbers in Prometheus's text format."""
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
