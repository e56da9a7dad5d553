"""Key: an ASGI middleware that checks the API key."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rocforge.server.errors import APIError
from rocforge.server.limits import PROBES


class Key:
    """Answers 401 where the bearer token is not the key (RFC 6750, 3); the chat page and PROBES are open.

    Args:
        app: the next application.
        key: the API key.
    """

    def __init__(self, app: ASGIApp, key: str):
        self.app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        authorization = Headers(scope=scope).get("authorization", "")
        scheme, _, token = authorization.partition(" ")
        known = scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode("latin-1"), self._key)
        if known or scope["path"] in ("/", *PROBES):
            return await self.app(scope, receive, send)
        response = APIError("Incorrect API key provided", 401, code="invalid_api_key").response
        if scheme.lower() == "bearer":  # a request without a token is told of no error
            response.headers["WWW-Authenticate"] = 'Bearer realm="rocforge", error="invalid_token"'
        await response(scope, receive, send)
