"""Errors as the OpenAI API gives them: {"error": {"message", "type", "param", "code"}} with a status; of messages, as
Anthropic's does.

Sources: https://platform.openai.com/docs/guides/error-codes and https://docs.claude.com/en/api/errors
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse as _JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from rocforge.engine.reply import CancelledError, DeadlineError, EngineDeadError, QueueFullError, ServiceError
from rocforge.errors import ChatTemplateError, RocforgeError
from rocforge.server.body import dump_json
from rocforge.text.grammar import GrammarError

log = logging.getLogger("rocforge.server")
INVALID = "invalid_request_error"
CLIENT_CLOSED_REQUEST = 499
_HEADERS = {401: {"WWW-Authenticate": 'Bearer realm="rocforge"'}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}
_MESSAGES = "/v1/messages"
"""Below this path errors have Anthropic's shape."""
_ANTHROPIC = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Status -> type, where that is neither INVALID nor "api_error"."""
LONGEST_TEXT = 1000
"""Characters of a message or parameter name, which may quote the client."""


class JSONResponse(_JSONResponse):
    """JSON that can hold whatever a client sent, lone surrogates too."""

    def render(self, content: Any) -> bytes:
        return dump_json(content)


class APIError(Exception):
    """An error response."""

    def __init__(
        self, message: str, status: int = 400, type: str = INVALID, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.message, self.status, self.type, self.code = _shortened(message), status, type, code
        self.param = None if param is None else _shortened(param)

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def anthropic_body(self) -> dict[str, Any]:
        type = _ANTHROPIC.get(self.status, INVALID if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": type, "message": self.message}}

    def response(self, path: str) -> JSONResponse:
        """The response to a request for a path."""
        body = self.anthropic_body if path.startswith(_MESSAGES) else self.body
        return JSONResponse(body, self.status, _HEADERS.get(self.status))

    def closing_response(self, path: str) -> JSONResponse:
        """The response, after which the connection is closed."""
        response = self.response(path)
        response.headers["Connection"] = "close"
        return response


def unknown_model(name: str) -> APIError:
    """For a request that names a model which is not served."""
    return APIError(f"The model {name!r} does not exist", 404, param="model", code="model_not_found")


def as_api_error(error: Exception) -> APIError:
    """The response to an exception. For the server's own errors it has no details."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, QueueFullError):
        return APIError(str(error), 429, "rate_limit_error", code="queue_full")
    if isinstance(error, CancelledError):
        return APIError(str(error), CLIENT_CLOSED_REQUEST, "cancelled", code="request_cancelled")
    if isinstance(error, DeadlineError):
        return APIError(str(error), 504, "timeout_error", code="deadline_exceeded")
    if isinstance(error, EngineDeadError):
        return APIError(str(error), 500, "server_error", code="engine_dead")
    if isinstance(error, ServiceError):
        return APIError(str(error), 503, "server_error", code="not_ready")
    if isinstance(error, ChatTemplateError):
        return APIError(str(error), param="messages", code="chat_template_error")
    if isinstance(error, GrammarError):
        return APIError(str(error), code="invalid_grammar")
    log.error("a request failed", exc_info=error)
    return APIError("internal error; see the server's log", 500, "server_error")


@contextmanager
def refusing(param: str | None = None, code: str | None = None) -> Iterator[None]:
    """ValueErrors raised inside become 400 responses; those of grammars are on their own."""
    try:
        yield
    except GrammarError:
        raise
    except ValueError as error:
        raise APIError(str(error), param=_named_field(str(error)) or param, code=code) from error


def install(app: FastAPI) -> None:
    """Answer with these errors wherever an endpoint raises."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return of_validation(error.errors()).response(request.scope["path"])

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        path = request.scope["path"]
        if error.status_code == 404:
            return APIError(f"Invalid URL ({request.method} {path})", 404, code="unknown_url").response(path)
        response = APIError(str(error.detail), error.status_code).response(path)
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["Allow"] = ", ".join(sorted(_methods(request)))
        return response

    for kind in (APIError, RocforgeError, GrammarError, Exception):
        app.add_exception_handler(kind, _answer)


def _methods(request: Request) -> set[str]:
    """The methods allowed on a request's path: FastAPI has a route for each."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in routes for method in route.methods}
    return methods | {"HEAD"} if "GET" in methods else methods


async def _answer(request: Request, error: Exception) -> JSONResponse:
    return as_api_error(error).response(request.scope["path"])


def of_validation(found: Sequence[dict[str, Any]]) -> APIError:
    """The first error that pydantic found, in OpenAI's words where it has some."""
    first, param = found[0], _param(found[0])
    if first["type"] == "extra_forbidden":
        return APIError(f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    if first["type"] == "missing" and param is None:
        return APIError("The request has no body")
    if first["type"] == "missing":
        return APIError(f"Missing required parameter: '{param}'", param=param, code="missing_required_parameter")
    where = f"Invalid value for '{param}'" if param else "Invalid body"
    # a union says of each of its members why it is not that
    reasons = dict.fromkeys(error["msg"] for error in found if _param(error) == param)
    return APIError(f"{where}: {', or: '.join(reasons)}", param=param, code="invalid_value")


def _param(error: dict[str, Any]) -> str | None:
    """The field that an error of pydantic is about, without the members of unions that it passed through."""
    member = re.compile(r".*[\[\](),].*|str|int|float|bool|constrained-.*|[A-Z]\w*")
    path = [str(part) for part in error["loc"] if part != "body" and not member.fullmatch(str(part))]
    return ".".join(path) or None


def _named_field(message: str) -> str | None:
    """The field that a message of SamplingParams begins with."""
    match = re.match(r"([a-z_]+) (?:is|of|has) ", message)
    return match[1] if match else None


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
