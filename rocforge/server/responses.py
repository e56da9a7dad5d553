"""/v1/responses: OpenAI's Responses API, over chats.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from rocforge.server.chat import ChatCompletions
from rocforge.server.errors import CLIENT_CLOSED_REQUEST, APIError, JSONResponse, as_api_error
from rocforge.server.events import EventStream
from rocforge.server.generation import Generator
from rocforge.server.jobs import Job, client_closed, outcome
from rocforge.server.kept_responses import KeptResponses
from rocforge.server.response_store import ResponseStore
from rocforge.server.responses_events import ResponseEvents
from rocforge.server.responses_input import Item, chat_of, items_of, offered_tools
from rocforge.server.responses_schema import CountRequest, ResponsesRequest, ToolChoice

LOGPROBS, ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"
INCLUDABLE = (LOGPROBS, ENCRYPTED, "message.input_image.image_url", "computer_call_output.output.image_url",
              "code_interpreter_call.outputs", "file_search_call.results", "web_search_call.results",
              "web_search_call.action.sources")  # fmt: skip
"""Values of `include`. What is of tools and images that are not there adds nothing."""
_ECHOED = ("instructions", "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt_cache_key",
           "safety_identifier", "user")  # fmt: skip


class Responses:
    """Answers requests for responses, and keeps them.

    Args:
        generator: of the server.
        chats: whose jobs they are.
    """

    def __init__(self, generator: Generator, chats: ChatCompletions):
        self._generator, self._chats = generator, chats
        self._kept = KeptResponses(generator.jobs, generator.backend.ask)

    async def __call__(self, body: ResponsesRequest, request: Request) -> Response:
        include = body.include or ()
        if unknown := [value for value in include if value not in INCLUDABLE]:
            message = f"include has {unknown[0]!r}; allowed are {', '.join(INCLUDABLE)}"
            raise APIError(message, param="include", code="invalid_value")
        tools, items = offered_tools(body), await self._items(body)
        wants_logprobs = LOGPROBS in include or body.top_logprobs is not None
        logprobs = {"logprobs": True, "top_logprobs": body.top_logprobs or 0} if wants_logprobs else {}
        chat = chat_of(body, items, tools, max_completion_tokens=body.max_output_tokens, **logprobs)
        job, (parser,) = await self._chats.submit(chat, "resp_")
        tokenizer = self._generator.tokenizer if wants_logprobs else None
        events = ResponseEvents(_begun(body, job), job, parser, tools.by_name, tokenizer, ENCRYPTED in include)
        answer = _Answer(job, events, items, self._generator.jobs.responses if body.store is not False else None)
        if body.stream:
            return EventStream(job, answer.events())
        response = await outcome(job, answer.whole(), request)
        return client_closed() if response is None else JSONResponse(response)

    async def count(self, body: CountRequest) -> Response:
        """How many tokens the prompt has."""
        tokens = await self._chats.count(chat_of(body, await self._items(body), offered_tools(body)))
        return JSONResponse({"object": "response.input_tokens", "input_tokens": tokens})

    async def _items(self, body: CountRequest) -> list[Item]:
        """The whole input: what came before, and what is new, with what references stand for."""
        before: list[Item] = []
        if body.previous_response_id is not None:
            try:
                record = await self._kept.record("response", body.previous_response_id)
            except APIError:
                message = f"Previous response with id {body.previous_response_id!r} not found."
                code = "previous_response_not_found"
                raise APIError(message, param="previous_response_id", code=code) from None
            before = record["input"] + record["response"]["output"]
        items = []
        for item in items_of(body):
            items.append(await self._kept.item(item["id"]) if item["type"] == "item_reference" else item)
        return before + items


def add_responses(app: FastAPI, generator: Generator, chats: ChatCompletions) -> None:
    """The routes of responses that are made."""
    responses = Responses(generator, chats)

    @app.post("/v1/responses", response_class=JSONResponse)
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        """The model's answer to an input of items."""
        return await responses(body, request)

    @app.post("/v1/responses/input_tokens", response_class=JSONResponse)
    async def input_tokens(body: CountRequest) -> Response:
        """How many tokens an input has."""
        return await responses.count(body)


class _Answer:
    """A job's reply as a response, which is kept as it begins and as it ends."""

    def __init__(self, job: Job, events: ResponseEvents, items: list[Item], store: ResponseStore | None):
        self._job, self._events, self._items, self._store = job, events, items, store
        if store:
            store.put(events.response, items)

    async def events(self) -> AsyncIterator[bytes]:
        """The events of a stream, as many as there are at a time."""
        try:
            async for part in self._events.events(self._job):
                yield part
        finally:
            self._end()

    async def whole(self) -> dict[str, Any]:
        """The response at its end."""
        try:
            async for _ in self._events.write(self._job):
                pass
            self._events.finish()
        except Exception as error:
            self._events.fail(as_api_error(error))
            raise
        finally:
            self._end()
        return self._events.response

    def _end(self) -> None:
        """Keep the response as it has ended, unless it was deleted meanwhile."""
        response = self._events.response
        if response["status"] == "in_progress":
            self._events.fail(APIError("the client has left", CLIENT_CLOSED_REQUEST, "cancelled"))
        if self._store and self._store.record(response["id"]):
            self._store.put(response, self._items)


def _begun(body: ResponsesRequest, job: Job) -> dict[str, Any]:
    """A response at its beginning."""
    format = body.text.format.model_dump(exclude_unset=True, by_alias=True) if body.text and body.text.format else None
    choice, params = body.tool_choice, job.replies[0].params
    return {
        "id": job.id,
        "object": "response",
        "created_at": job.created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        **{name: getattr(body, name) for name in _ECHOED},
        "temperature": params.temperature,
        "top_p": params.top_p,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
        "service_tier": "default",
        "store": body.store is not False,
        "text": {"format": format or {"type": "text"}, "verbosity": (body.text and body.text.verbosity) or "medium"},
        "tool_choice": choice.model_dump(exclude_unset=True) if isinstance(choice, ToolChoice) else choice or "auto",
        "tools": [tool.model_dump(exclude_unset=True) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "truncation": "disabled",
        "usage": None,
    }
