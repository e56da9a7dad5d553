"""Key: an ASGI middleware that checks the API key."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rocforge.server.errors import APIError
from rocforge.server.limits import PROBES


class Key:
    """Answers 401 where the bearer token is not the key; the chat page and PROBES are open.

    Args:
        app: the next application.
        key: the API key.
    """

    def __init__(self, app: ASGIApp, key: str):
        self.app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ").encode()
        if scope["path"] in ("/", *PROBES) or hmac.compare_digest(given, self._key):
            return await self.app(scope, receive, send)
        await APIError("Incorrect API key provided", 401, code="invalid_api_key").response(scope, receive, send)
