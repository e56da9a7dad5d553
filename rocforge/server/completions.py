"""/v1/completions: text or token ids in, the text that follows out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rocforge.engine.response import GenerationResponse
from rocforge.server.body import dump_json
from rocforge.server.errors import APIError, JSONResponse
from rocforge.server.events import Chunks, EventStream
from rocforge.server.generation import Generator
from rocforge.server.jobs import Job, client_closed, collect, merged
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
            return EventStream(job, answer.events())
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
        choices = []
        for index, pieces in enumerate(replies):
            text, reason = "".join(piece.text for piece in pieces), pieces[-1].finish_reason
            logprobs = self._logprobs(index, pieces)
            choices.append({"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason})
        name = self.body.model
        head = {"id": self.job.id, "object": "text_completion", "created": self.job.created, "model": name}
        return {**head, "choices": choices, "usage": self.job.usage}

    async def events(self) -> AsyncIterator[bytes]:
        """The chunks of a stream as events, as many as there are at a time."""
        include_usage = self.body.stream_options is not None and bool(self.body.stream_options.include_usage)
        chunks = Chunks(self.job, "text_completion", self.body.model, include_usage)
        async for index, pieces in merged(self.job):
            if events := b"".join([chunks.event(self._choice(index, piece)) for piece in pieces if _shows(piece)]):
                yield events
        if include_usage:
            yield chunks.usage(self.job.usage)

    def _choice(self, index: int, piece: GenerationResponse) -> bytes:
        """A piece as JSON."""
        return b'{"text":%b,"index":%d,"logprobs":%b,"finish_reason":%b}' % (
            dump_json(piece.text),
            index,
            dump_json(self._logprobs(index, [piece])),
            dump_json(piece.finish_reason),
        )

    def _logprobs(self, index: int, pieces: list[GenerationResponse]) -> dict[str, Any] | None:
        """Of the next pieces of a choice, where asked for."""
        if self.body.logprobs is None:
            return None
        report = completion_logprobs(self.generator.tokenizer, pieces, self._written[index])
        self._written[index] += sum(len(piece.text) for piece in pieces)
        return report


def _shows(piece: GenerationResponse) -> bool:
    return bool(piece.text or piece.finish_reason or piece.logprobs)
