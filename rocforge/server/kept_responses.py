"""Responses that are kept: read, listed, deleted, cancelled.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from starlette.responses import Response

from rocforge.server.errors import APIError, JSONResponse
from rocforge.server.jobs import Jobs, first_answer
from rocforge.server.responses_input import Item


class KeptResponses:
    """Answers requests about responses that are kept, by this process or another.

    Args:
        jobs: of this process.
        others: asks the others.
    """

    def __init__(self, jobs: Jobs, others: Callable[..., Awaitable[list[Any]]]):
        self._jobs, self._others = jobs, others

    async def retrieve(self, id: str) -> Response:
        """A response that is kept."""
        return JSONResponse((await self.record("response", id))["response"])

    async def input_items(self, id: str, after: str | None, limit: int, order: str) -> Response:
        """The items of its input."""
        items: list[Item] = (await self.record("response", id))["input"]
        items = items if order == "asc" else items[::-1]
        ids = [item["id"] for item in items]
        first = ids.index(after) + 1 if after in ids else 0
        shown = items[first : first + limit]
        ends = {name: shown[end]["id"] if shown else None for name, end in (("first_id", 0), ("last_id", -1))}
        return JSONResponse({"object": "list", "data": shown, **ends, "has_more": len(items) > first + limit})

    async def delete(self, id: str) -> Response:
        """Forget a response."""
        await self.record("forget response", id)
        return JSONResponse({"id": id, "object": "response", "deleted": True})

    async def cancel(self, id: str) -> Response:
        """Cancel a response in progress; no effect once it has ended."""
        response = (await self.record("response", id))["response"]
        if response["status"] == "in_progress":
            await self.ask("cancel", id)
            response["status"] = "cancelled"
        return JSONResponse(response)

    async def record(self, question: str, id: str) -> dict[str, Any]:
        """What is kept of a response, which the question may be to forget.

        Raises:
            APIError: nothing.
        """
        record = await self.ask(question, id)
        if record is None:
            raise APIError(f"Response with id {id!r} not found.", 404)
        found: dict[str, Any] = json.loads(record)
        return found

    async def item(self, id: str) -> Item:
        """An item of any of them.

        Raises:
            APIError: there is none.
        """
        found = await self.ask("item", id)
        if found is None:
            raise APIError(f"Item with id {id!r} not found.", 404, param="input")
        item: Item = json.loads(found)
        return item

    async def ask(self, question: str, id: str) -> Any:
        """The answer of this process, or of the first other one that has one."""
        return await first_answer(self._jobs, self._others, question, id)


def add_kept_responses(app: FastAPI, jobs: Jobs, others: Callable[..., Awaitable[list[Any]]]) -> None:
    """The routes of responses that are kept; as KeptResponses."""
    kept = KeptResponses(jobs, others)

    @app.get("/v1/responses/{id}", response_class=JSONResponse)
    async def response(id: str, stream: Literal["false"] = "false") -> Response:
        """A response that is kept."""
        return await kept.retrieve(id)

    @app.delete("/v1/responses/{id}", response_class=JSONResponse)
    async def delete_response(id: str) -> Response:
        """Forget a response."""
        return await kept.delete(id)

    @app.post("/v1/responses/{id}/cancel", response_class=JSONResponse)
    async def cancel_response(id: str) -> Response:
        """Cancel a response in progress; no effect once it has ended."""
        return await kept.cancel(id)

    @app.get("/v1/responses/{id}/input_items", response_class=JSONResponse)
    async def input_items(
        id: str,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        """The items of the input of a response."""
        return await kept.input_items(id, after, limit, order)
