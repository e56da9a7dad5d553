"""Generator: what both kinds of completion share, from request body to replies."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import anyio
from anyio import to_thread
from starlette.concurrency import run_in_threadpool

from rocforge.engine.reply import DeadlineError, QueueFullError
from rocforge.engine.request import Constraint
from rocforge.engine.service import Service, State
from rocforge.ops.sampling import SamplingParams
from rocforge.server.errors import APIError, refusing
from rocforge.server.jobs import Job, Jobs
from rocforge.server.schema import Sampling
from rocforge.server.settings import Settings
from rocforge.text.grammar import Grammar, GrammarCompiler
from rocforge.text.tokenizer import Tokenizer

Rendered = TypeVar("Rendered")
LONGEST_TOKEN = 256
"""Characters a token: a text longer than this times the context is refused before it is tokenized."""
MAX_GRAMMARS = 256
"""Constrained texts in progress: each has a process."""


class Generator:
    """Makes jobs of requests."""

    def __init__(self, service: Service, settings: Settings):
        self.service, self.settings = service, settings
        self.created = int(time.time())
        self.jobs = Jobs()
        self._compiler: GrammarCompiler | None = None
        self._grammars: WeakSet[Grammar] = WeakSet()
        processors = len(os.sched_getaffinity(0))
        self._compiling, self._rendering = anyio.CapacityLimiter(processors), anyio.CapacityLimiter(processors)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's, once it is loaded.

        Raises:
            APIError: it is not, or the service has ended.
        """
        tokenizer = self.service.tokenizer
        if tokenizer is None or self.service.state is not State.READY:
            raise APIError(f"the model is not ready: {self.service.state.value}", 503, "server_error", code="not_ready")
        return tokenizer

    @property
    def limit(self) -> int:
        """Tokens of prompt and reply together."""
        engine = self.service.engine
        return engine.limit if engine else 0

    def check_model(self, name: str) -> None:
        """Raises APIError for any name but the served model's."""
        if name != self.settings.model_name:
            raise APIError(f"The model {name!r} does not exist", 404, param="model", code="model_not_found")

    async def encode(self, text: str, **options: Any) -> list[int]:
        """Token ids, computed in another thread."""
        if len(text) > LONGEST_TOKEN * self.limit:
            raise self._too_long(f"a text of {len(text)} characters")
        return await run_in_threadpool(self.tokenizer.encode, text, **options)

    @property
    def compiler(self) -> GrammarCompiler:
        """For the model's tokenizer."""
        if self._compiler is None:
            self._compiler = GrammarCompiler(self.tokenizer)
        return self._compiler

    async def compile(self, kind: str, source: Any, count: int) -> list[Grammar]:
        """A grammar for each of `count` texts, made by the method `kind` of GrammarCompiler."""
        if sum(not grammar.closed for grammar in self._grammars) + count > MAX_GRAMMARS:
            raise QueueFullError(f"too many constrained requests; at most {MAX_GRAMMARS} texts run at a time")

        def compiled() -> list[Grammar]:
            grammar = getattr(self.compiler, kind)(source)
            return [grammar, *(grammar.copy() for _ in range(count - 1))]

        grammars = await to_thread.run_sync(compiled, abandon_on_cancel=True, limiter=self._compiling)
        self._grammars.update(grammars)
        return grammars

    async def render(self, template: Callable[[], Rendered]) -> Rendered:
        """Render a chat template in another thread."""
        return await to_thread.run_sync(template, abandon_on_cancel=True, limiter=self._rendering)

    @contextmanager
    def deadline(self, timeout: float | None) -> Iterator[None]:
        """Cancel what is awaited inside when the request's time is over."""
        seconds = self._seconds(timeout)
        try:
            with anyio.fail_after(seconds):
                yield
        except TimeoutError:
            raise DeadlineError(f"the request timed out after {seconds:g} seconds") from None

    async def constraints(self, body: Sampling, count: int) -> Sequence[Constraint | None]:
        """The constraint of each text, from response_format, regex or grammar."""
        wanted: list[tuple[str, Any]] = [
            (kind, source) for kind, source in (("regex", body.regex), ("lark", body.grammar)) if source
        ]
        format = body.response_format
        if format is not None and format.type == "json_object":
            wanted.append(("json_schema", {"type": "object"}))
        elif format is not None and format.type == "json_schema":
            if format.json_schema is None:
                raise APIError("Missing required parameter: 'response_format.json_schema'", param="response_format")
            wanted.append(("json_schema", format.json_schema.schema_))
        if len(wanted) > 1:
            raise APIError("only one of response_format, regex and grammar is allowed", param="response_format")
        if wanted and body.ignore_eos:
            raise APIError("ignore_eos excludes structured output", param="ignore_eos")
        return await self.compile(*wanted[0], count) if wanted else [None] * count

    def params(self, body: Sampling, max_tokens: int | None, logprobs: int | None) -> list[SamplingParams]:
        """Parameters of each of the n choices. With a seed, choice i has seed + i."""
        if body.n and body.n > self.settings.max_choices:
            raise APIError(f"n is {body.n}; allowed is up to {self.settings.max_choices}", param="n")
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
        """Submit each prompt with each of its params; all or none."""
        most = self.settings.max_choices
        if len(prompts) * len(params) > most:
            raise APIError(f"prompts times n is {len(prompts) * len(params)}; allowed is up to {most}", param="n")
        limit, asked = self.limit, params[0].max_tokens
        for prompt in prompts:
            if asked is not None and len(prompt) + asked > limit:
                raise self._too_long(f"{len(prompt)} tokens in the prompt and {asked} in the completion")
            if len(prompt) >= limit:
                raise self._too_long(f"{len(prompt)} tokens in the prompt")
        job = Job(f"{prefix}-{secrets.token_hex(12)}", len(params))
        pairs = [(prompt, param) for prompt in prompts for param in params]
        try:
            with refusing("prompt"):
                for (prompt, param), constraint in zip(pairs, constraints, strict=True):
                    job.replies.append(self.service.submit(prompt, param, constraint, self._seconds(timeout)))
        except BaseException:
            job.cancel()
            raise
        self.jobs.add(job)
        return job

    def _seconds(self, timeout: float | None) -> float:
        return min(timeout or self.settings.request_timeout, self.settings.request_timeout)

    def _too_long(self, what: str) -> APIError:
        message = f"This model's maximum context length is {self.limit} tokens. However, you requested {what}."
        return APIError(message, param="messages", code="context_length_exceeded")


def _token_id(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"logit_bias has key {text[:40]!r}; allowed are token ids")
    return int(text)
