"""create_app: the HTTP endpoints over a service."""

from __future__ import annotations

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
from rocforge.server.jobs import latest_first
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
    app.add_middleware(RequestId)
    generator = Generator(backend, settings)
    chats = ChatCompletions(generator)
    _add_generation(app, generator, chats)
    add_responses(app, generator, chats)
    add_kept_responses(app, generator.jobs, backend.ask)
    add_messages(app, chats)
    _add_tokens(app, generator)
    _add_requests(app, generator)
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
        return JSONResponse({"object": "list", "data": [_model(generator, name) for name in generator.models]})

    @app.get("/v1/models/{name:path}", response_class=JSONResponse)
    async def model(name: str) -> Response:
        """A model by name."""
        generator.check_model(name)
        return JSONResponse(_model(generator, name))


def _model(generator: Generator, name: str) -> dict[str, Any]:
    settings, tokenizer = generator.settings, generator.backend.tokenizer
    parent = {"parent": settings.model_name} if generator.models[name] else {}
    return {
        **parent,
        "id": name,
        "object": "model",
        "created": generator.created,
        "owned_by": "rocforge",
        "context_length": generator.backend.limit or None,
        "chat_template": None if tokenizer is None else bool(settings.chat_template or tokenizer.chat_template),
    }


def _add_tokens(app: FastAPI, generator: Generator) -> None:
    @app.post("/tokenize", response_class=JSONResponse)
    async def tokenize(body: TokenizeRequest) -> Response:
        """The token ids of a text."""
        options = {"add_special_tokens": body.add_special, "parse_special_tokens": body.parse_special}
        ids = await generator.encode(body.content, **options)
        return JSONResponse({"tokens": ids, "count": len(ids)})

    @app.post("/detokenize", response_class=JSONResponse)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        with errors.refusing("tokens"):
            return JSONResponse({"content": await run_in_threadpool(generator.tokenizer.decode, body.tokens)})


def _add_requests(app: FastAPI, generator: Generator) -> None:
    jobs, backend = generator.jobs, generator.backend
    backend.answer_with(jobs.answer)

    async def find(question: str, id: str) -> Response:
        status = jobs.answer(question, id)
        if status is None:
            status = next(iter(await backend.ask(question, id)), None)
        if status is None:
            raise APIError(
                f"unknown request {id!r}; only recent ones are kept", 404, param="id", code="unknown_request"
            )
        return JSONResponse(status)

    @app.get("/v1/requests", response_class=JSONResponse)
    async def requests() -> Response:
        """The status of requests in flight, and of recent ones."""
        found = jobs.statuses()
        for others in await backend.ask("statuses"):
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

    @app.get("/version", response_class=JSONResponse)
    async def version() -> Response:
        """rocforge's."""
        return JSONResponse({"version": __version__})

    @app.get("/metrics")
    async def metrics_text() -> Response:
        """Counters, times and gauges, in Prometheus's text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

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

    @app.get("/", include_in_schema=False)
    async def chat_page() -> Response:
        """The chat page."""
        return page()
