"""JSON of requests and answers.

Bodies of requests are read in bounded time and memory, and refused before anything large is built from them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import anyio
import numpy as np
import orjson
from fastapi import HTTPException, Request
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.responses import Response

MAX_DEPTH = 64
MAX_PARTS = 1 << 17
"""Arrays, objects and members of objects in one text: each costs far more memory than its few bytes of text."""
INLINE_BYTES = 1 << 16
"""Longer bodies are parsed in a thread, one at a time, so that the event loop waits for one of them at most."""
_OTHERS = bytes(set(range(256)) - set(b'[]{}:"'))
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1


def parse_json(text: str | bytes) -> Any:
    """Parse JSON in UTF-8 by RFC 8259: no NaN, no lone surrogates, no byte order mark.

    Takes time linear in the text's length, for any text.

    Raises:
        ValueError: it is not JSON, nested too deeply, or has too many parts.
    """
    data = text.encode() if isinstance(text, str) else text
    depth, parts = _measure(data) if len(data) > MAX_DEPTH else (0, 0)  # a short text has no room for more
    if depth > MAX_DEPTH:
        raise ValueError(f"JSON nested more than {MAX_DEPTH} levels deep")
    if parts > MAX_PARTS:
        raise ValueError(f"JSON with {parts} arrays, objects and members of objects; at most {MAX_PARTS} are allowed")
    return from_json(data, allow_inf_nan=False)


def parse_object(text: str) -> dict[str, Any]:
    """The object of a JSON text; {} where it is none, such as a text that a token limit cut off."""
    try:
        found = parse_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def dump_json(value: Any) -> bytes:
    """JSON of a value, in UTF-8; in ASCII where it has lone surrogates, which a client may have sent."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _measure(text: bytes) -> tuple[int, int]:
    """Levels of nesting, and number of parts, of a JSON text."""
    structure = text.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, delete=_OTHERS)
    code = np.frombuffer(structure, np.uint8)
    code = code[np.cumsum(code == ord('"'), dtype=np.int32) % 2 == 0]  # outside of strings
    levels = np.cumsum(_STEPS[code], dtype=np.int32)
    return int(levels.max(initial=0)), int(np.count_nonzero((_STEPS[code] > 0) | (code == ord(":"))))


class JSONRequest(Request):
    """A request whose body is JSON, bounded in size, time and complexity.

    Reading it raises HTTPException: 415, 413, 408 or 400.
    """

    async def stream(self) -> AsyncGenerator[bytes, None]:
        most = self.app.state.settings.max_body_bytes
        size = int(self.headers.get("content-length", 0))
        if size <= most:
            size = 0
            async for part in super().stream():
                size += len(part)
                if size > most:
                    break
                yield part
        if size > most:
            raise HTTPException(413, f"the body is larger than {most} bytes")

    async def body(self) -> bytes:
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        unnamed = not media_type and "origin" not in self.headers
        # pages of other origins may send other types, and none, without asking first, and browsers name their origin
        if media_type != "application/json" and not unnamed:
            raise HTTPException(415, f"Content-Type is {media_type!r}; allowed is application/json")
        seconds = self.app.state.settings.client_timeout
        try:
            with anyio.fail_after(seconds):
                return await super().body()
        except TimeoutError:
            message = f"the body did not arrive in {seconds:g} seconds"
            raise HTTPException(408, message, {"Connection": "close"}) from None

    async def json(self) -> Any:
        body = await self.body()
        try:
            if len(body) <= INLINE_BYTES:
                return parse_json(body)
            return await anyio.to_thread.run_sync(parse_json, body, limiter=self.app.state.parsing)
        except ValueError as error:
            raise HTTPException(400, f"invalid body: {error}") from error


class JSONRoute(APIRoute):
    """FastAPI's, with JSONRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(JSONRequest(request.scope, request.receive))

        return handle
