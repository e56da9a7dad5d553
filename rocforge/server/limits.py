"""Limits: an ASGI middleware that refuses excess requests and ambiguous framing."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rocforge.server.errors import APIError
from rocforge.server.metrics import Metrics

PROBES = ("/health", "/ready")
"""Answered however busy the server is, and without the key."""


class Limits:
    """Answers refused requests and closes their connection; passes the others on.

    HEAD is passed on as GET: uvicorn drops the body.

    Args:
        app: the next application.
        max_header_bytes: of the target and the headers together.
        max_requests: in progress at a time, in all processes; PROBES are always passed on.
        metrics: counts them.
    """

    def __init__(self, app: ASGIApp, max_header_bytes: int, max_requests: int, metrics: Metrics):
        self.app, self.max_header_bytes, self.max_requests = app, max_header_bytes, max_requests
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._refusal(scope)
        if error is not None:
            return await error.closing_response(scope["path"])(scope, receive, send)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        self._metrics.request(1)
        try:
            await self.app(scope, receive, send)
        finally:
            self._metrics.request(-1)

    def _refusal(self, scope: Scope) -> APIError | None:
        headers = Headers(scope=scope)
        if not scope["http_version"].startswith("1."):
            return APIError(f"HTTP/{scope['http_version']} is not supported; use HTTP/1.1", 505)
        if "transfer-encoding" in headers and "content-length" in headers:  # RFC 9112, 6.3: may be an attack
            return APIError("a request must not have both Content-Length and Transfer-Encoding")
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(map(_size, scope["headers"]))
        if size > self.max_header_bytes:
            return APIError(f"target and headers have {size} bytes; at most {self.max_header_bytes} are allowed", 431)
        if self._metrics.table.in_progress >= self.max_requests and scope["path"] not in PROBES:
            message = f"{self.max_requests} requests are in progress, which is the limit"
            return APIError(message, 503, "server_error", code="too_many_requests")
        return None


def _size(header: tuple[bytes, bytes]) -> int:
    """Bytes of a header's line."""
    name, value = header
    return len(name) + len(value) + len(b": \r\n")
