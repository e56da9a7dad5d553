"""Generator: what both kinds of completion share on the way from a body to replies."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool

from rocforge.grammar import GrammarCompiler
from rocforge.sampling import SamplingParams
from rocforge.scheduler import Constraint
from rocforge.server.errors import APIError, refusing
from rocforge.server.jobs import Job, Jobs
from rocforge.server.schema import Sampling
from rocforge.server.settings import Settings
from rocforge.service import Service, State
from rocforge.tokenizer import Tokenizer

LONGEST_TOKEN = 256
"""Characters; a text with more than this a token of the context is refused before it is tokenized."""


class Generator:
    """Makes jobs of requests."""

    def __init__(self, service: Service, settings: Settings):
        self.service, self.settings = service, settings
        self.created = int(time.time())
        self.jobs = Jobs()
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
        job = Job(f"{prefix}-{secrets.token_hex(12)}", len(params))
        timeout = min(timeout or self.settings.request_timeout, self.settings.request_timeout)
        pairs = [(prompt, param) for prompt in prompts for param in params]
        try:
            with refusing("prompt"):
                for (prompt, param), constraint in zip(pairs, constraints, strict=True):
                    job.replies.append(self.service.submit(prompt, param, constraint, timeout))
        except BaseException:
            job.cancel()
            raise
        self.jobs.add(job)
        return job

    def _too_long(self, what: str) -> APIError:
        message = f"This model's maximum context length is {self.limit} tokens. However, you requested {what}."
        return APIError(message, param="messages", code="context_length_exceeded")


def _token_id(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"logit_bias has the key {text[:40]!r}; allowed are token ids")
    return int(text)
