"""/v1/messages: Anthropic's Messages API, over chats.

Source: https://docs.claude.com/en/api/messages
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from rocforge.server.chat import ChatCompletions
from rocforge.server.errors import JSONResponse
from rocforge.server.events import EventStream
from rocforge.server.jobs import Job, client_closed, outcome
from rocforge.server.messages_events import MessageEvents
from rocforge.server.messages_input import chat_of, thinks
from rocforge.server.messages_schema import CountTokensRequest, MessagesRequest


def add_messages(app: FastAPI, chats: ChatCompletions) -> None:
    """The routes of messages."""

    @app.post("/v1/messages", response_class=JSONResponse)
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """The assistant's next message, as Anthropic's clients ask for it."""
        return await _answer(chats, body, request)

    @app.post("/v1/messages/count_tokens", response_class=JSONResponse)
    async def count_tokens(body: CountTokensRequest) -> Response:
        """How many tokens the prompt of a message has."""
        return JSONResponse({"input_tokens": await chats.count(chat_of(body))})


async def _answer(chats: ChatCompletions, body: MessagesRequest, request: Request) -> Response:
    chat = chat_of(body, max_completion_tokens=body.max_tokens, stop=body.stop_sequences)
    job, (parser,) = await chats.submit(chat, "msg_", fits=True)
    shows = ((body.thinking and body.thinking.display) or "summarized") if thinks(body) else None
    parallel = chat.parallel_tool_calls is not False
    events = MessageEvents(job, parser, body.model, body.max_tokens, shows, parallel)
    if body.stream:
        return EventStream(job, events.events(job))
    message = await outcome(job, _whole(job, events), request)
    return client_closed() if message is None else JSONResponse(message)


async def _whole(job: Job, events: MessageEvents) -> dict[str, Any]:
    """The message at its end."""
    async for _ in events.write(job):
        pass
    events.finish()
    return events.message
