"""/v1/completions: text or token ids in, the text that follows out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rocforge.engine.response import GenerationResponse
from rocforge.server.errors import APIError, JSONResponse
from rocforge.server.generation import Generator
from rocforge.server.jobs import EventStream, Job, client_closed, collect, merged
from rocforge.server.logprobs import completion_logprobs
from rocforge.server.schema import CompletionRequest

DEFAULT_MAX_TOKENS = 16
"""The OpenAI API's."""


class Completions:
    """Answers requests for completions."""

    def __init__(self, generator: Generator):
        self._generator = generator

    async def __call__(self, body: CompletionRequest, request: Request) -> Response:
        generator = self._generator
        generator.check_model(body.model)
        params = generator.params(body, body.max_tokens or DEFAULT_MAX_TOKENS, body.logprobs)
        with generator.deadline(body.timeout):
            prompts = await self._prompts(body.prompt)
            job = await generator.submit("cmpl", prompts, params, generator.grammar(body), body.timeout)
        answer = _Answer(job, body, generator)
        if body.stream:
            return EventStream(job, answer.chunks())
        pieces = await collect(job, request)
        return client_closed() if pieces is None else JSONResponse(answer.whole(pieces))

    async def _prompts(self, prompt: Any) -> list[list[int]]:
        many = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        if len(many) > self._generator.settings.max_choices:
            most = self._generator.settings.max_choices
            raise APIError(f"{len(many)} prompts; at most {most} are allowed", param="prompt")
        return [await self._generator.encode(one) if isinstance(one, str) else one for one in many]


class _Answer:
    """A job's replies in OpenAI's shapes."""

    def __init__(self, job: Job, body: CompletionRequest, generator: Generator):
        self.job, self.body, self.generator = job, body, generator
        self._written = [0] * len(job.replies)

    def whole(self, replies: list[list[GenerationResponse]]) -> dict[str, Any]:
        """The completion."""
        choices = [self._choice(index, pieces) for index, pieces in enumerate(replies)]
        return {**self._head(), "choices": choices, "usage": self.job.usage}

    async def chunks(self) -> AsyncIterator[list[dict[str, Any]]]:
        """The chunks of a stream, in batches."""
        include_usage = self.body.stream_options is not None and self.body.stream_options.include_usage
        usage = {"usage": None} if include_usage else {}
        async for index, pieces in merged(self.job):
            choices = [self._choice(index, [piece]) for piece in pieces if _shows(piece)]
            yield [{**self._head(), "choices": [choice], **usage} for choice in choices]
        if include_usage:
            yield [{**self._head(), "choices": [], "usage": self.job.usage}]

    def _choice(self, index: int, pieces: list[GenerationResponse]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        logprobs = None
        if self.body.logprobs is not None:
            logprobs = completion_logprobs(self.generator.tokenizer, pieces, self._written[index])
        self._written[index] += len(text)
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": pieces[-1].finish_reason}

    def _head(self) -> dict[str, Any]:
        name = self.generator.settings.model_name
        return {"id": self.job.id, "object": "text_completion", "created": self.job.created, "model": name}


def _shows(piece: GenerationResponse) -> bool:
    return bool(piece.text or piece.finish_reason or piece.logprobs)
