"""Job: a client's request with a reply for each choice; its status, and what its replies bring."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from rocforge.engine.reply import Progress, Reply
from rocforge.engine.response import GenerationResponse
from rocforge.server.errors import CLIENT_CLOSED_REQUEST
from rocforge.server.response_store import QUESTIONS, ResponseStore

T = TypeVar("T")


@dataclass
class Job:
    """A client's request: one reply for each choice, `choices` for each prompt."""

    id: str
    choices: int
    replies: list[Reply] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))

    def cancel(self) -> None:
        for reply in self.replies:
            reply.cancel()

    @property
    def ended(self) -> bool:
        """Whether all its replies have."""
        return all(reply.ended for reply in self.replies)

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens, in OpenAI's shape; a prompt counts once however many choices it has."""
        prompts = self.replies[:: self.choices]
        prompt = sum(reply.prompt_tokens for reply in prompts)
        completion = sum(reply.completion_tokens for reply in self.replies)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(reply.cached_tokens for reply in prompts)},
        }

    @property
    def status(self) -> dict[str, Any]:
        """The body of /v1/requests/{id}."""
        states = [reply.progress for reply in self.replies]
        worst = (Progress.RUNNING, Progress.QUEUED, Progress.FAILED, Progress.CANCELLED, Progress.FINISHED)
        usage = self.usage
        return {
            "id": self.id,
            "object": "request",
            "created": self.created,
            "status": next(state.value for state in worst if state in states),
            "choices": len(self.replies),
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "finish_reasons": [reply.finish_reason for reply in self.replies],
        }


class Jobs:
    """Jobs by id while they are in progress, and the status of ended ones.

    Args:
        kept_bytes: limit for the statuses of ended jobs, as JSON; the oldest go first.

    Attributes:
        responses: those that are kept.
    """

    def __init__(self, kept_bytes: int = 1 << 18):
        self._kept_bytes, self.responses = kept_bytes, ResponseStore()
        self._in_progress: dict[str, Job] = {}
        self._ended: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def add(self, job: Job) -> None:
        self._settle()
        self._in_progress[job.id] = job

    def cancel(self, id: str) -> None:
        """Cancel a job; no effect on unknown or ended ones."""
        if id in self._in_progress:
            self._in_progress[id].cancel()

    def answer(self, question: str, id: str) -> Any:
        """What a question is answered: "statuses", or "status" or "cancel" of a request, None if unknown; or one about
        responses."""
        if question in QUESTIONS:
            return self.responses.answer(question, id)
        if question == "statuses":
            return self.statuses()
        if question == "cancel":
            self.cancel(id)
        return self.status(id)

    def status(self, id: str) -> dict[str, Any] | None:
        """Of a job; None if it is unknown or its status was dropped."""
        if id in self._in_progress:
            return self._in_progress[id].status
        return json.loads(self._ended[id]) if id in self._ended else None

    def statuses(self) -> list[dict[str, Any]]:
        """Of all jobs: those in progress, then ended ones, latest first in both."""
        self._settle()
        ended = map(json.loads, reversed(self._ended.values()))
        return [job.status for job in reversed(self._in_progress.values())] + list(ended)

    @property
    def tokens_in_flight(self) -> int:
        """Tokens of jobs in progress: of their prompts, and generated."""
        self._settle()
        return sum(job.usage["total_tokens"] for job in self._in_progress.values())

    def _settle(self) -> None:
        """Reduce ended jobs to their status, and drop the oldest beyond the limit."""
        for job in [job for job in self._in_progress.values() if job.ended]:
            del self._in_progress[job.id]
            self._ended[job.id] = json.dumps(job.status).encode()
            self._bytes += len(self._ended[job.id])
        while self._bytes > self._kept_bytes:
            self._bytes -= len(self._ended.popitem(last=False)[1])


async def first_answer(jobs: Jobs, others: Callable[..., Awaitable[list[Any]]], question: str, id: str) -> Any:
    """What this process answers a question, or the first other one that has an answer; `others` asks them."""
    found = jobs.answer(question, id)
    return found if found is not None else next(iter(await others(question, id)), None)


def latest_first(statuses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Statuses of several processes in the order of `Jobs.statuses`."""
    in_progress = (Progress.QUEUED.value, Progress.RUNNING.value)
    return sorted(statuses, key=lambda status: (status["status"] not in in_progress, -status["created"]))


async def collect(job: Job, request: Request) -> list[list[GenerationResponse]] | None:
    """All pieces of each reply; None if the client disconnects, which cancels the job."""
    return await outcome(job, _all_pieces(job), request)


async def outcome(job: Job, wanted: Coroutine[Any, Any, T], request: Request) -> T | None:
    """What is wanted of a job; None if the client disconnects. The job does not outlive this."""
    try:
        return await unless_gone(wanted, request)
    finally:
        job.cancel()


async def unless_gone(wanted: Coroutine[Any, Any, T], request: Request) -> T | None:
    """What is wanted; None if the client disconnects, which cancels it."""
    work = asyncio.ensure_future(wanted)
    gone = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        gone.cancel()
        work.cancel()


async def _all_pieces(job: Job) -> list[list[GenerationResponse]]:
    found: list[list[GenerationResponse]] = [[] for _ in job.replies]
    async for index, pieces in merged(job):
        found[index] += pieces
    return found


async def disconnected(receive: Receive) -> None:
    """Wait until a client whose request has been read leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


def client_closed() -> Response:
    """The response to a client that has disconnected."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def merged(job: Job) -> AsyncIterator[tuple[int, list[GenerationResponse]]]:
    """(index of the reply, its next pieces), of all replies as they arrive."""
    if len(job.replies) == 1:
        async for pieces in job.replies[0].batches():
            yield 0, pieces
        return
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def pump(index: int, reply: Reply) -> None:
        try:
            async for pieces in reply.batches():
                queue.put_nowait((index, pieces))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.ensure_future(pump(index, reply)) for index, reply in enumerate(job.replies)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
