"""RequestId: an ASGI middleware that names each request in its response."""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
_GIVEN = re.compile(r"[!-~]{1,128}")


class RequestId:
    """Adds `x-request-id` to each response, as OpenAI's server does: the client's own, or a random one.

    Args:
        app: the next application.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get(HEADER, "")
        id = given if _GIVEN.fullmatch(given) else f"req_{secrets.token_hex(16)}"

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (HEADER.encode(), id.encode())]}
            await send(message)

        await self.app(scope, receive, send_named)
