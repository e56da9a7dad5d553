"""What both kinds of completion share: parameters, replies, their merging, their end."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from rocforge.generate import GenerationResponse
from rocforge.grammar import GrammarCompiler
from rocforge.reply import Progress, Reply
from rocforge.sampling import SamplingParams
from rocforge.scheduler import Constraint
from rocforge.server.errors import CLIENT_CLOSED_REQUEST, APIError, as_api_error, refusing
from rocforge.server.schema import Sampling
from rocforge.server.settings import Settings
from rocforge.service import Service, State
from rocforge.tokenizer import Tokenizer

KEPT = 1024
"""Ended jobs whose status can still be asked for."""
LONGEST_TOKEN = 256
"""Characters; a text with more than this a token of the context is refused before it is tokenized."""


@dataclass
class Job:
    """A client's request: one reply for each choice."""

    id: str
    replies: list[Reply]
    created: int = field(default_factory=lambda: int(time.time()))

    def cancel(self) -> None:
        for reply in self.replies:
            reply.cancel()

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens, in OpenAI's shape; a prompt counts once however many choices it has."""
        prompts = {id(reply.prompt): reply for reply in self.replies}.values()
        prompt = sum(len(reply.prompt) for reply in prompts)
        completion = sum(reply.completion_tokens for reply in self.replies)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(reply.cached_tokens for reply in prompts)},
        }

    @property
    def status(self) -> dict[str, Any]:
        """What /v1/requests/{id} says."""
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


class Generator:
    """Makes jobs of requests, and remembers them by id."""

    def __init__(self, service: Service, settings: Settings):
        self.service, self.settings = service, settings
        self.created = int(time.time())
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self._compiler: GrammarCompiler | None = None
        self._compiling = anyio.Lock()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's, once it is loaded.

        Raises:
            APIError: it is not, or the service has ended.
        """
        if self.service.state is not State.READY:
            raise APIError(f"the model is not ready: {self.service.state.value}", 503, "server_error", code="not_ready")
        return self.service.tokenizer

    @property
    def limit(self) -> int:
        """Tokens of prompt and reply together."""
        engine = self.service.engine
        return engine.limit if engine else 0

    def check_model(self, name: str) -> None:
        """Raises APIError where it is not the one that is served."""
        if name != self.settings.model_name:
            raise APIError(f"The model {name!r} does not exist", 404, param="model", code="model_not_found")

    async def encode(self, text: str, **options: Any) -> list[int]:
        """Token ids, computed in another thread."""
        if len(text) > LONGEST_TOKEN * self.limit:
            raise self._too_long(f"a text of {len(text)} characters")
        return await run_in_threadpool(self.tokenizer.encode, text, **options)

    async def compiler(self) -> GrammarCompiler:
        """For the model's tokenizer, made on first use in another thread."""
        async with self._compiling:
            if self._compiler is None:
                self._compiler = await run_in_threadpool(GrammarCompiler, self.tokenizer)
            return self._compiler

    async def compile(self, kind: str, source: Any) -> Constraint:
        """A grammar by that method of GrammarCompiler, in another thread."""
        return await run_in_threadpool(getattr(await self.compiler(), kind), source)

    async def constraints(self, body: Sampling, count: int) -> list[Constraint | None]:
        """What the texts must obey by response_format, regex or grammar: one for each."""
        wanted = [(kind, source) for kind, source in (("regex", body.regex), ("lark", body.grammar)) if source]
        format = body.response_format
        if format is not None and format.type == "json_object":
            wanted.append(("json_schema", {"type": "object"}))
        elif format is not None and format.type == "json_schema":
            if format.json_schema is None:
                raise APIError("Missing required parameter: 'response_format.json_schema'", param="response_format")
            wanted.append(("json_schema", format.json_schema.schema_))
        if len(wanted) > 1:
            raise APIError("at most one of response_format, regex and grammar may be given", param="response_format")
        if wanted and body.ignore_eos:
            raise APIError("ignore_eos does not go with structured output", param="ignore_eos")
        return [await self.compile(*wanted[0]) if wanted else None for _ in range(count)]

    def params(self, body: Sampling, max_tokens: int | None, logprobs: int | None) -> list[SamplingParams]:
        """Parameters of each of the n choices. With a seed, choice i has seed + i."""
        if body.n and body.n > self.settings.max_choices:
            raise APIError(f"n is {body.n}; at most {self.settings.max_choices} choices may be asked for", param="n")
        given = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
                         "repetition_penalty", "stop", "ignore_eos")
            if (value := getattr(body, name)) is not None
        }  # fmt: skip
        with refusing():
            bias = {_token_id(token): value for token, value in (body.logit_bias or {}).items()}
            return [
                SamplingParams(
                    **{"temperature": 1.0, **given},
                    max_tokens=max_tokens,
                    logprobs=logprobs,
                    logit_bias=bias,
                    seed=None if body.seed is None else body.seed + choice,
                )
                for choice in range(body.n or 1)
            ]

    def submit(
        self,
        prefix: str,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        constraints: Sequence[Constraint | None],
        timeout: float | None,
    ) -> Job:
        """A reply for each prompt and each of its params, all or none."""
        most = self.settings.max_choices
        if len(prompts) * len(params) > most:
            raise APIError(f"prompts times n is {len(prompts) * len(params)}; at most {most} are taken", param="n")
        limit, asked = self.limit, params[0].max_tokens
        for prompt in prompts:
            if asked is not None and len(prompt) + asked > limit:
                raise self._too_long(f"{len(prompt)} tokens in the prompt and {asked} in the completion")
            if len(prompt) >= limit:
                raise self._too_long(f"{len(prompt)} tokens in the prompt")
        job = Job(f"{prefix}-{secrets.token_hex(12)}", [])
        timeout = min(timeout or self.settings.request_timeout, self.settings.request_timeout)
        pairs = [(prompt, param) for prompt in prompts for param in params]
        try:
            with refusing("prompt"):
                for (prompt, param), constraint in zip(pairs, constraints, strict=True):
                    job.replies.append(self.service.submit(prompt, param, constraint, timeout))
        except BaseException:
            job.cancel()
            raise
        self._remember(job)
        return job

    def _remember(self, job: Job) -> None:
        self.jobs[job.id] = job
        ended = [id for id, other in self.jobs.items() if all(reply.ended for reply in other.replies)]
        for id in ended[: max(0, len(ended) - KEPT)]:
            del self.jobs[id]

    def _too_long(self, what: str) -> APIError:
        message = f"This model's maximum context length is {self.limit} tokens. However, you requested {what}."
        return APIError(message, param="messages", code="context_length_exceeded")


async def collect(job: Job, request: Request) -> list[list[GenerationResponse]] | None:
    """All pieces of each reply; None, and the job cancelled, where the client goes away meanwhile."""

    async def pieces(reply: Reply) -> list[GenerationResponse]:
        return [piece async for piece in reply]

    work = asyncio.gather(*(pieces(reply) for reply in job.replies))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        gone.cancel()
        work.cancel()
        job.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def client_closed() -> Response:
    """For a client that is not there to read it."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def merged(job: Job) -> AsyncIterator[tuple[int, list[GenerationResponse]]]:
    """Index of the reply and its next pieces, of all replies as they come."""
    if len(job.replies) == 1:
        async for pieces in job.replies[0].bunches():
            yield 0, pieces
        return
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def pump(index: int, reply: Reply) -> None:
        try:
            async for pieces in reply.bunches():
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


class EventStream(StreamingResponse):
    """Server-sent events of chunks, ended by [DONE] or by an error; the job does not outlive them.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    def __init__(self, job: Job, bunches: AsyncIterator[list[dict[str, Any]]]):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_events(bunches), media_type="text/event-stream", headers=headers)
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _events(bunches: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[bytes]:
    try:
        async for chunks in bunches:
            if chunks:
                yield b"".join(map(_event, chunks))
        yield b"data: [DONE]\n\n"
    except Exception as error:
        yield _event(as_api_error(error).body)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def _token_id(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"logit_bias has the key {text[:40]!r}; allowed are token ids")
    return int(text)
