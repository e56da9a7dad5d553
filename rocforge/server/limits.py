"""Limits: an ASGI middleware that bounds what a client may send and how long it may take.

It reads the whole body, in bounded size and time, before anything else sees the request.
"""

from __future__ import annotations

import hmac
import re

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rocforge.server.errors import APIError
from rocforge.server.settings import Settings

MAX_DEPTH = 64
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = re.compile(rb"[][{}]")
OPEN_PATHS = ("/", "/health", "/ready")
"""What needs no key."""


class Limits:
    """Refuses requests without the key, and bodies too big, too slow or too deep; drops clients that do not read."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        send = self._timed(send)
        try:
            self._authorize(scope)
            with anyio.fail_after(self.settings.client_timeout):
                body = await self._body(scope, receive)
            check_depth(body)
        except _Gone:
            return
        except TimeoutError:
            error = APIError(f"the body did not arrive in {self.settings.client_timeout:g} seconds", 408)
            return await error.response(scope, receive, send)
        except APIError as error:
            return await error.response(scope, receive, send)
        await self.app(scope, _replay(body, receive), send)

    def _authorize(self, scope: Scope) -> None:
        key = self.settings.api_key
        if key is None or scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS":
            return
        given = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise APIError("Incorrect API key provided", 401, code="invalid_api_key")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        most = self.settings.max_body_bytes
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > most:
            raise self._too_large()
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > most:
                raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> APIError:
        return APIError(f"the body is larger than {self.settings.max_body_bytes} bytes", 413)

    def _timed(self, send: Send) -> Send:
        """`send`, which waits while the client does not read: not for ever."""

        async def timed(message: Message) -> None:
            try:
                with anyio.fail_after(self.settings.client_timeout):
                    await send(message)
            except TimeoutError:
                raise OSError("the client does not read what it asked for") from None

        return timed


class _Gone(Exception):
    """The client has closed the connection."""


def check_depth(body: bytes) -> None:
    """Refuse JSON nested more deeply than any honest request, which parsers recurse on.

    Raises:
        APIError: it is.
    """
    depth = 0
    for match in _BRACKETS.finditer(_STRING.sub(b"", body)):
        depth += 1 if match[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise APIError(f"the body is nested more than {MAX_DEPTH} levels deep")


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
