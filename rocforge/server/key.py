"""Key: an ASGI middleware that checks the API key."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rocforge.server.errors import APIError
from rocforge.server.limits import PROBES


class Key:
    """Answers 401 where neither the bearer token (RFC 6750, 3) nor Anthropic's x-api-key is the key.

    The chat page and PROBES are open.

    Args:
        app: the next application.
        key: the API key.
    """

    def __init__(self, app: ASGIApp, key: str):
        self.app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [token] if scheme.lower() == "bearer" else []
        given += headers.getlist("x-api-key")
        known = [hmac.compare_digest(key.strip().encode("latin-1"), self._key) for key in given]
        if any(known) or scope["path"] in ("/", *PROBES):
            return await self.app(scope, receive, send)
        response = APIError("Incorrect API key provided", 401, code="invalid_api_key").response(scope["path"])
        if scheme.lower() == "bearer":  # a request without a token is told of no error
            response.headers["WWW-Authenticate"] = 'Bearer realm="rocforge", error="invalid_token"'
        await response(scope, receive, send)
