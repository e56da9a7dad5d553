"""/v1/completions: text or token ids in, the text that follows out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from rocforge.engine.response import GenerationResponse
from rocforge.server.aliases import rename
from rocforge.server.body import dump_json
from rocforge.server.errors import APIError, JSONResponse, refusing
from rocforge.server.events import Chunks, EventStream, completed
from rocforge.server.generation import Generator, each
from rocforge.server.jobs import Job, client_closed, collect, merged
from rocforge.server.logprobs import completion_logprobs, prompt_logprobs
from rocforge.server.schema import CompletionRequest
from rocforge.text.infill import infill_prompt

DEFAULT_MAX_TOKENS = 16
"""The OpenAI API's."""


class Completions:
    """Answers requests for completions."""

    def __init__(self, generator: Generator):
        self._generator = generator

    async def __call__(self, body: CompletionRequest, request: Request) -> Response:
        generator = self._generator
        rename(body)
        generator.check_model(body.model)
        _check(body, generator.settings.max_choices)
        n, count = body.n or 1, body.logprobs
        choices = body.best_of or n
        if choices > n and count is None:
            count = 0  # the best are known by them
        most = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        params = generator.params(body, choices, most or 1, count)
        with generator.deadline(body.timeout):
            if body.suffix is None:
                prompts = await generator.prompts(body.prompt)
            else:
                prompts = await self._filled_in(each(body.prompt), body.suffix)
            echoes = await run_in_threadpool(self._echoes, body) if body.echo else [""] * len(prompts)
            before = [_Echo(text) for text in echoes]
            if body.echo and body.logprobs is not None:
                await self._report(body, prompts, before)
            grammar = generator.grammar(body)
            if most == 0:
                job = generator.unanswered("cmpl-", prompts, params)
            else:
                job = await generator.submit("cmpl-", prompts, params, grammar, body.timeout)
        answer = _Answer(job, body, generator, before)
        if body.stream:
            return EventStream(job, completed(answer.events()))
        pieces = await collect(job, request)
        return client_closed() if pieces is None else JSONResponse(answer.whole(pieces))

    async def _filled_in(self, prompts: list[Any], suffix: str) -> list[list[int]]:
        """The token ids of prompts after which the model writes what is between them and a suffix."""
        generator = self._generator
        tokens = generator.fill_in_tokens("suffix")
        after = await generator.encode_plain(suffix)
        before = [await generator.encode_plain(one) if isinstance(one, str) else one for one in prompts]
        return [infill_prompt(tokens, ids, after, begin=generator.begin) for ids in before]

    async def _report(self, body: CompletionRequest, prompts: list[list[int]], before: list[_Echo]) -> None:
        """Add the log-probabilities of prompts to what stands before their texts."""
        generator, top = self._generator, body.logprobs or 0
        for ids in prompts:
            generator.check_length(len(ids), "prompt")
        with refusing("prompt"):
            scores = await generator.backend.score(prompts, top, generator.adapter(body))
        ends = np.cumsum([len(ids) - 1 for ids in prompts])
        for echo, ids, own in zip(before, prompts, np.split(scores, ends[:-1]), strict=True):
            echo.logprobs = await run_in_threadpool(prompt_logprobs, generator.tokenizer, ids, own, echo.text)

    def _echoes(self, body: CompletionRequest) -> list[str]:
        """The texts of the prompts."""
        decode = self._generator.tokenizer.decode
        with refusing("prompt"):
            return [prompt if isinstance(prompt, str) else decode(prompt) for prompt in each(body.prompt)]


def _check(body: CompletionRequest, max_choices: int) -> None:
    """Raises APIError where fields of this endpoint are not supported, or not together, or ask for too much."""
    if (prompts := len(each(body.prompt))) > max_choices:
        raise APIError(f"{prompts} prompts; at most {max_choices} are allowed", param="prompt")
    n, best_of = body.n or 1, body.best_of or body.n or 1
    if body.echo and body.suffix is not None and body.logprobs is not None:
        raise APIError("echo with suffix and logprobs is not supported", param="echo", code="unsupported_parameter")
    if best_of < n:
        raise APIError(f"best_of is {best_of}; allowed is from n, {n}", param="best_of")
    if body.stream and best_of > n:
        raise APIError(f"best_of is {best_of}; with stream allowed is n, {n}", param="best_of")


@dataclass
class _Echo:
    """What stands before a text: its prompt, with the report of its tokens where that is wanted, or nothing."""

    text: str = ""
    logprobs: dict[str, Any] | None = None


class _Answer:
    """A job's replies in OpenAI's shapes.

    `echoes`: what stands before the texts of each prompt.
    """

    def __init__(self, job: Job, body: CompletionRequest, generator: Generator, echoes: list[_Echo]):
        self.job, self.body, self.generator = job, body, generator
        self._before = [echo for echo in echoes for _ in range(job.choices)]
        self._written = [len(echo.text) for echo in self._before]

    def whole(self, replies: list[list[GenerationResponse]]) -> dict[str, Any]:
        """The completion."""
        choices: list[dict[str, Any]] = []
        for reply in self._best(replies):
            pieces, index = replies[reply], len(choices)
            text, reason = "".join(piece.text for piece in pieces), pieces[-1].finish_reason
            text, logprobs = self._before[reply].text + text, self._logprobs(reply, pieces)
            choices.append({"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason})
        name = self.body.model
        head = {"id": self.job.id, "object": "text_completion", "created": self.job.created, "model": name}
        return {**head, "choices": choices, "usage": self.job.usage}

    def _best(self, replies: list[list[GenerationResponse]]) -> list[int]:
        """The replies to give: of each prompt those n whose tokens have the highest mean log-probability."""
        n, each = self.body.n or 1, self.job.choices
        if n == each:
            return [*range(len(replies))]
        means = [fmean([p.logprobs.token for p in pieces if p.logprobs] or [0]) for pieces in replies]
        prompts = (range(first, first + each) for first in range(0, len(replies), each))
        return [reply for own in prompts for reply in sorted(own, key=lambda reply: -means[reply])[:n]]

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
        text, logprobs = self._before[index].text + piece.text, self._logprobs(index, [piece])
        self._before[index] = _Echo()
        return b'{"text":%b,"index":%d,"logprobs":%b,"finish_reason":%b}' % (
            dump_json(text),
            index,
            dump_json(logprobs),
            dump_json(piece.finish_reason),
        )

    def _logprobs(self, index: int, pieces: list[GenerationResponse]) -> dict[str, Any] | None:
        """Of the next pieces of a choice, where asked for."""
        if self.body.logprobs is None:
            return None
        report = completion_logprobs(self.generator.tokenizer, pieces, self._written[index])
        self._written[index] += sum(len(piece.text) for piece in pieces)
        before = self._before[index].logprobs
        return {name: before[name] + report[name] for name in report} if before else report


def _shows(piece: GenerationResponse) -> bool:
    return bool(piece.text or piece.finish_reason or piece.logprobs)
