"""Prefix: an ASGI middleware for servers behind a proxy that serves them under a path."""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class Prefix:
    """Passes requests on without the prefix, whether the proxy has taken it off or not.

    The prefix alone is redirected to its "/", to which the URLs of the chat page are relative.

    Args:
        app: the next application.
        prefix: such as "/llm".
    """

    def __init__(self, app: ASGIApp, prefix: str):
        self.app, self._prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == self._prefix and scope["method"] in ("GET", "HEAD"):
            return await RedirectResponse(f"{self._prefix}/", 308)(scope, receive, send)
        if path.startswith(f"{self._prefix}/"):
            raw = scope["raw_path"].removeprefix(self._prefix.encode())
            scope = {**scope, "path": path.removeprefix(self._prefix), "raw_path": raw}
        await self.app(scope, receive, send)
