"""/infill: llama.cpp's endpoint for editors, which gives the text between two texts.

Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/server
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rocforge.engine.response import GenerationResponse
from rocforge.server.aliases import rename
from rocforge.server.body import dump_json
from rocforge.server.errors import JSONResponse
from rocforge.server.events import EventStream, completed
from rocforge.server.generation import Generator
from rocforge.server.jobs import Job, client_closed, collect, merged
from rocforge.server.schema import InfillRequest
from rocforge.text.infill import infill_prompt

REPOSITORY, FILE = "myproject", "filename"
"""What llama.cpp calls those that a request does not name."""


class Infill:
    """Answers requests to fill in."""

    def __init__(self, generator: Generator):
        self._generator = generator

    async def __call__(self, body: InfillRequest, request: Request) -> Response:
        generator = self._generator
        rename(body)
        body.model = body.model or generator.settings.model_name
        generator.check_model(body.model)
        most = -1 if body.max_tokens is None else body.max_tokens
        params = generator.params(body, 1, most or 1, None)
        with generator.deadline(body.timeout):
            prompts = [await self._prompt(body, params[0].max_tokens)]
            if most == 0:
                job = generator.unanswered("infill-", prompts, params)
            else:
                job = await generator.submit("infill-", prompts, params, generator.grammar(body), body.timeout)
        if body.stream:
            return EventStream(job, completed(_events(job, body.model), end=b""))
        pieces = await collect(job, request)
        return client_closed() if pieces is None else JSONResponse(_result(job, body.model, pieces[0]))

    async def _prompt(self, body: InfillRequest, most: int | None) -> list[int]:
        """Its tokens; what is far from the gap is left out where the context has no room for it."""
        generator = self._generator
        tokens, ids = generator.fill_in_tokens("input_suffix"), generator.encode_plain
        before: list[int] = []
        if tokens.repository is not None:
            before += [tokens.repository, *await ids(f"{REPOSITORY}\n")]
        for chunk in body.input_extra or ():
            mark = "\n\n--- snippet ---\n\n" if tokens.file is None else f"{chunk.filename}\n"
            before += [*_known(tokens.file), *await ids(mark), *await ids(chunk.text)]
        if tokens.file is not None:
            before += [tokens.file, *await ids(f"{FILE}\n")]
        prefix = await ids(body.input_prefix) + await ids(body.prompt)
        limit = generator.backend.limit
        room = limit - (most or limit // 4)
        return infill_prompt(tokens, prefix, await ids(body.input_suffix), before, generator.begin, room)


def _known(id: int | None) -> list[int]:
    return [] if id is None else [id]


def _result(job: Job, model: str, pieces: Sequence[GenerationResponse]) -> dict[str, Any]:
    """Pieces of a text, in llama.cpp's shape; the last of all says how it has ended."""
    text = {"index": 0, "content": "".join(piece.text for piece in pieces)}
    last = pieces[-1]
    if last.finish_reason is None:
        return {**text, "stop": False}
    kind = "limit" if last.finish_reason == "length" else "eos" if last.stop is None else "word"
    (reply,) = job.replies
    return {
        **text,
        "stop": True,
        "model": model,
        "stop_type": kind,
        "stopping_word": last.stop or "",
        "truncated": False,
        "tokens_evaluated": reply.prompt_tokens,
        "tokens_cached": reply.cached_tokens,
        "tokens_predicted": reply.completion_tokens,
    }


async def _events(job: Job, model: str) -> AsyncIterator[bytes]:
    """The events of a stream, as many as there are at a time."""
    async for _, pieces in merged(job):
        yield b"data: " + dump_json(_result(job, model, pieces)) + b"\n\n"
