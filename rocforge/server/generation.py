"""Generator: what both kinds of completion share, from request body to replies."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import anyio
from anyio import to_thread
from starlette.concurrency import run_in_threadpool

from rocforge.engine.breakers import with_breakers
from rocforge.engine.defaults import file_defaults
from rocforge.engine.reply import DeadlineError, Reply
from rocforge.engine.service import State
from rocforge.ops.sampling import SamplingParams
from rocforge.server.backend import Backend
from rocforge.server.errors import APIError, refusing, unknown_model
from rocforge.server.grammars import GrammarSource
from rocforge.server.jobs import Job, Jobs
from rocforge.server.schema import Sampling
from rocforge.server.settings import Settings
from rocforge.text.grammar import GrammarCompiler
from rocforge.text.schemas import ANY_OBJECT, json_rule
from rocforge.text.tokenizer import Tokenizer
from rocforge.text.vocabulary import FillInTokens

Rendered = TypeVar("Rendered")
DEFAULT_TEMPERATURE = 1.0
"""The OpenAI API's."""
INLINE_TEXT = 2048
"""Characters of a text that is tokenized within the event loop: another thread would take longer."""
LONGEST_TOKEN = 256
"""Characters a token: a text longer than this times the context is refused before it is tokenized."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Cancel what is awaited inside after so many seconds.

    Raises:
        DeadlineError: they are over.
    """
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError:
        raise DeadlineError(f"the request timed out after {seconds:g} seconds") from None


class Generator:
    """Makes jobs of requests, and adds them to `jobs`."""

    def __init__(self, backend: Backend, settings: Settings, jobs: Jobs):
        self.backend, self.settings, self.jobs = backend, settings, jobs
        self.created = int(time.time())
        self._compiler: GrammarCompiler | None = None
        self._rendering = anyio.CapacityLimiter(len(os.sched_getaffinity(0)))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's, once it is loaded.

        Raises:
            APIError: it is not, or the service has ended.
        """
        tokenizer = self.backend.tokenizer
        if tokenizer is None or self.backend.state is not State.READY:
            raise APIError(f"the model is not ready: {self.backend.state.value}", 503, "server_error", code="not_ready")
        return tokenizer

    @property
    def models(self) -> dict[str, str | None]:
        """What clients may name as the model: the served one, and it with each of its adapters -> that adapter."""
        served = self.settings.model_name
        return {served: None, **{f"{served}:{adapter}": adapter for adapter in self.settings.adapters}}

    def check_model(self, name: str) -> None:
        """Raises APIError for any name that is none of `models`."""
        if name not in self.models:
            raise unknown_model(name)

    def adapter(self, body: Sampling) -> str | None:
        """The adapter of a request, by its model or its lora."""
        self.check_model(body.model)
        chosen = self.models[body.model]
        if body.lora is None or body.lora == chosen:
            return chosen
        if chosen is not None:
            raise APIError(f"lora is {body.lora!r}, and the model's adapter {chosen!r}", param="lora")
        if body.lora not in self.settings.adapters:
            known = ", ".join(self.settings.adapters) or "none"
            raise APIError(f"lora is {body.lora!r}; allowed are {known}", 404, param="lora", code="adapter_not_found")
        return body.lora

    async def encode(self, text: str, **options: Any) -> list[int]:
        """Token ids; those of a long text are computed in another thread."""
        if len(text) > LONGEST_TOKEN * self.backend.limit:
            raise self._too_long(f"a text of {len(text)} characters")
        if len(text) <= INLINE_TEXT:
            return self.tokenizer.encode(text, **options)
        return await run_in_threadpool(self.tokenizer.encode, text, **options)

    async def encode_plain(self, text: str) -> list[int]:
        """The ids of a part of a prompt, in which no text stands for a control token."""
        return await self.encode(text, add_special_tokens=False, parse_special_tokens=False)

    async def prompts(self, prompt: Any) -> list[list[int]]:
        """The token ids of each of one or several texts or lists of ids."""
        return [await self.encode(one) if isinstance(one, str) else one for one in each(prompt)]

    def fill_in_tokens(self, param: str) -> FillInTokens:
        """The model's.

        Raises:
            APIError: it has none.
        """
        tokens = self.tokenizer.fill_in_tokens
        if tokens is None:
            message = f"{param} needs a model that fills in the middle, and this one has no tokens for it"
            raise APIError(message, param=param, code="unsupported_parameter")
        return tokens

    @property
    def begin(self) -> list[int]:
        """The ids that the tokenizer puts before each text."""
        tokenizer = self.tokenizer
        return [id for id in tokenizer.encode("")[:1] if id == tokenizer.bos_token_id]

    def check_length(self, tokens: int, param: str, reply: int = 1) -> None:
        """Raises APIError where a prompt of so many tokens does not fit into the context, with a reply of so many."""
        if tokens + reply > self.backend.limit:
            raise self._too_long(f"{tokens} tokens in the {param}")

    def forget(self) -> None:
        """Free what was made for the tokenizer: another one may come."""
        self._compiler = None

    @property
    def compiler(self) -> GrammarCompiler:
        """For the model's tokenizer, to write grammars with."""
        if self._compiler is None:
            self._compiler = GrammarCompiler(self.tokenizer)
        return self._compiler

    async def render(self, template: Callable[[], Rendered]) -> Rendered:
        """Render a chat template in another thread."""
        return await to_thread.run_sync(template, abandon_on_cancel=True, limiter=self._rendering)

    def deadline(self, timeout: float | None) -> AbstractContextManager[None]:
        """Cancel what is awaited inside when the request's time is over."""
        return time_limit(self._seconds(timeout))

    def grammar(self, body: Sampling) -> GrammarSource | None:
        """What each text must obey, from response_format, regex or grammar."""
        wanted = [
            GrammarSource(kind, source)
            for kind, source in (("regex", body.regex), ("lark", body.grammar))
            if source is not None
        ]
        if rule := response_rule(body):
            wanted.append(GrammarSource("lark", f"start: json\njson: {rule}"))
        if len(wanted) > 1:
            raise APIError("only one of response_format, regex and grammar is allowed", param="response_format")
        return wanted[0] if wanted else None

    @property
    def sampling(self) -> dict[str, Any]:
        """Fields of SamplingParams where a request does not say."""
        return {"temperature": DEFAULT_TEMPERATURE, **file_defaults(self.tokenizer), **self.settings.sampling}

    def params(
        self, body: Sampling, choices: int, max_tokens: int | None, logprobs: int | None
    ) -> list[SamplingParams]:
        """Parameters of each of the choices. With a seed, choice i has seed + i. A max_tokens of -1 is no limit."""
        if choices > self.settings.max_choices:
            raise APIError(f"n is {choices}; allowed is up to {self.settings.max_choices}", param="n")
        given = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
                         "repetition_penalty", "stop", "stop_token_ids", "min_tokens", "ignore_eos",
                         "top_n_sigma", "typical_p", "xtc_probability", "xtc_threshold", "mirostat", "mirostat_tau",
                         "mirostat_eta", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
                         "dry_sequence_breakers")
            if (value := getattr(body, name)) is not None
        }  # fmt: skip
        lora = self.adapter(body)
        with refusing():
            bias = {_token_id(token): value for token, value in (body.logit_bias or {}).items()}
            shared = {**self.sampling, **given}
            return [
                SamplingParams(
                    **shared,
                    max_tokens=None if max_tokens == -1 else max_tokens,
                    logprobs=logprobs,
                    logit_bias=bias,
                    lora=lora,
                    seed=None if body.seed is None else body.seed + choice,
                )
                for choice in range(choices)
            ]

    async def submit(
        self,
        prefix: str,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        grammar: GrammarSource | None,
        timeout: float | None,
    ) -> Job:
        """Submit each prompt with each of its params; all or none."""
        structured = grammar is not None and grammar.kind != "thinking"
        for name in ("ignore_eos", "min_tokens"):
            if structured and getattr(params[0], name):
                raise APIError(f"{name} excludes structured output and required calls", param=name)
        most = self.settings.max_choices
        if len(prompts) * len(params) > most:
            raise APIError(f"prompts times n is {len(prompts) * len(params)}; allowed is up to {most}", param="n")
        limit, asked = self.backend.limit, params[0].max_tokens
        for prompt in prompts:
            if asked is not None and len(prompt) + asked > limit:
                raise self._too_long(f"{len(prompt)} tokens in the prompt and {asked} in the completion")
            self.check_length(len(prompt), "prompt")
        if params[0].dry_multiplier:  # its texts are looked for in the whole vocabulary
            params = [await run_in_threadpool(with_breakers, one, self.tokenizer) for one in params]
        with refusing("prompt"):
            replies = await self.backend.submit(prompts, params, grammar, self._seconds(timeout))
        return self._job(prefix, len(params), replies)

    def unanswered(self, prefix: str, prompts: Sequence[list[int]], params: Sequence[SamplingParams]) -> Job:
        """A job of replies without tokens, for max_tokens 0."""
        return self._job(prefix, len(params), [Reply.empty(prompt, one) for prompt in prompts for one in params])

    def _job(self, prefix: str, choices: int, replies: list[Reply]) -> Job:
        job = Job(f"{prefix}{secrets.token_hex(12)}", choices, replies)
        self.jobs.add(job)
        return job

    def _seconds(self, timeout: float | None) -> float:
        return min(timeout or self.settings.request_timeout, self.settings.request_timeout)

    def _too_long(self, what: str) -> APIError:
        message = f"This model's maximum context length is {self.backend.limit} tokens. However, you requested {what}."
        return APIError(message, param="messages", code="context_length_exceeded")


def response_rule(body: Sampling) -> str | None:
    """The body of a grammar's rule for the JSON that response_format asks for."""
    format = body.response_format
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return json_rule(ANY_OBJECT)
    if format.json_schema is None:
        raise APIError("Missing required parameter: 'response_format.json_schema'", param="response_format")
    return json_rule(format.json_schema.schema_ or ANY_OBJECT, strict=bool(format.json_schema.strict))


def each(prompt: Any) -> list[Any]:
    """The prompts, texts or token ids, of one or several."""
    return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


def _token_id(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"logit_bias has key {text[:40]!r}; allowed are token ids")
    return int(text)
