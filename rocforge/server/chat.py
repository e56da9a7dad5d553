"""/v1/chat/completions: messages in, the assistant's message out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rocforge.engine.response import GenerationResponse
from rocforge.errors import ChatTemplateError
from rocforge.server.aliases import rename
from rocforge.server.body import dump_json
from rocforge.server.continuation import Continuation
from rocforge.server.errors import APIError, JSONResponse
from rocforge.server.events import Chunks, EventStream, completed
from rocforge.server.generation import Generator, response_rule
from rocforge.server.grammars import GrammarSource
from rocforge.server.history import History
from rocforge.server.jobs import Job, client_closed, collect, merged
from rocforge.server.logprobs import chat_logprobs
from rocforge.server.schema import ChatCompletionRequest
from rocforge.server.tools import Tools, tools_of
from rocforge.text.chat.formats import ReplyFormat, reply_format
from rocforge.text.chat.reply import Call, CountedParser, Parsed, joined
from rocforge.text.special_tokens import Span


class ChatCompletions:
    """Answers requests for chat completions."""

    def __init__(self, generator: Generator):
        self._generator = generator

    async def __call__(self, body: ChatCompletionRequest, request: Request) -> Response:
        job, parsers = await self.submit(body, "chatcmpl-")
        answer = _Answer(job, body, self._generator, parsers)
        if body.stream:
            return EventStream(job, completed(answer.events()))
        pieces = await collect(job, request)
        return client_closed() if pieces is None else JSONResponse(answer.whole(pieces))

    async def submit(
        self, body: ChatCompletionRequest, prefix: str, fits: bool = False
    ) -> tuple[Job, list[CountedParser]]:
        """The job of a chat, and a parser of each of its replies.

        Args:
            body: what is asked for.
            prefix: of the job's id.
            fits: where max_tokens exceeds what the context has room for, the context is the limit.
        """
        generator = self._generator
        rename(body)
        generator.check_model(body.model)
        tools = tools_of(body)
        format = reply_format(self._template(bool(tools.functions)), generator.settings.tool_parser)
        if tools.functions and format.calls is None:
            message = "the model's chat template does not support tools"
            raise APIError(message, param="tools", code="unsupported_parameter")
        count = None
        if body.top_logprobs is not None and not body.logprobs:
            raise APIError("top_logprobs needs logprobs: true", param="top_logprobs")
        if body.logprobs:
            count = body.top_logprobs or 0
        given = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        most = generator.settings.max_tokens if given is None else given
        if most == 0:
            raise APIError("max_tokens is 0; allowed is from 1, and -1 for no limit", param="max_tokens")
        if tools.required and body.stop:  # stop strings end content, and such a reply has none
            body = body.model_copy(update={"stop": None})
        params = generator.params(body, body.n or 1, most, count)
        with generator.deadline(body.timeout):
            prompt, text = await self._prompt(body, tools)
            if fits and len(prompt) + (most or 0) > generator.backend.limit:
                params = [replace(one, max_tokens=None) for one in params]
            opened = format.opens_thought(text)
            grammar = self._grammar(body, format, tools, opened) or self._thinking(body, format, opened)
            job = await generator.submit(prefix, [prompt], params, grammar, body.timeout)
        return job, [CountedParser(format.parser(tools.by_name, opened)) for _ in params]

    async def count(self, body: ChatCompletionRequest) -> int:
        """How many tokens the prompt of a chat has."""
        self._generator.check_model(body.model)
        return len((await self._prompt(body, tools_of(body)))[0])

    def _template(self, with_tools: bool) -> str:
        """The source of the chat template for messages with tools, or without."""
        tokenizer = self._generator.tokenizer
        own = tokenizer.tool_template if with_tools else tokenizer.chat_template
        template = self._generator.settings.chat_template or own
        if template is None:
            message = "the model has no chat template; start the server with --chat-template, or use /v1/completions"
            raise APIError(message, code="no_chat_template")
        return template

    @cached_property
    def _history(self) -> History:
        """Of chats with the model."""
        template, generator = self._template(with_tools=False), self._generator
        return History(template, lambda turns: generator.tokenizer.render_chat(turns, chat_template=template)[0])

    async def _prompt(self, body: ChatCompletionRequest, tools: Tools) -> tuple[list[int], str]:
        """Its tokens and its text."""
        generator, continuation = self._generator, _continuation(body)
        variables = _variables(body, self._budget(body))
        if reserved := variables.keys() & {"messages", "tools", "chat_template", "tokenize", "add_generation_prompt"}:
            raise APIError(f"chat_template_kwargs must not set {min(reserved)!r}", param="chat_template_kwargs")
        template, shown, begun = generator.settings.chat_template, tools.shown or None, body.add_generation_prompt

        def render(turns: list[dict[str, Any]]) -> tuple[str, list[Span]]:
            messages = continuation.messages(turns) if continuation else turns
            return generator.tokenizer.render_chat(messages, shown, begun is not False, template, **variables)

        text, literal = await generator.render(partial(self._history.render, body.messages, render))
        if continuation:
            text, literal = continuation.prompt(text, literal)
        ids = await generator.encode(text, add_special_tokens=False, literal=literal)
        if not ids:
            raise ChatTemplateError("the chat template renders these messages to an empty prompt")
        return ids, text

    def _grammar(
        self, body: ChatCompletionRequest, format: ReplyFormat, tools: Tools, opened: bool
    ) -> GrammarSource | None:
        """That of regex or grammar for the whole reply, or of response_format and required calls for parts of it."""
        grammar, content = self._generator.grammar(body), response_rule(body)
        if tools.required and not (body.regex is None and body.grammar is None):
            raise APIError("a required tool call excludes regex and grammar", param="tool_choice")
        if (body.thinking_budget or -1) >= 0 and not (body.regex is None and body.grammar is None):
            raise APIError("a budget for thinking excludes regex and grammar", param="thinking_budget")
        if content is None and not tools.required:
            return grammar
        parallel = body.parallel_tool_calls is not False
        content = None if tools.required else content
        compiler = self._generator.compiler
        return GrammarSource("lark", format.lark(compiler, opened, tools.functions, content, parallel))

    def _budget(self, body: ChatCompletionRequest) -> int | None:
        """The most tokens of a thought; None for any number."""
        budget = self._generator.settings.reasoning_budget if body.thinking_budget is None else body.thinking_budget
        return None if budget == -1 else budget

    def _thinking(self, body: ChatCompletionRequest, format: ReplyFormat, opened: bool) -> GrammarSource | None:
        """What bounds the thoughts of a reply that obeys no grammar: under one there are none."""
        budget = self._budget(body)
        wanted = None if budget is None else format.thinking(budget, opened)
        return GrammarSource("thinking", wanted) if wanted else None


def _variables(body: ChatCompletionRequest, budget: int | None) -> dict[str, Any]:
    """For the chat template: whether to think has the names of Qwen, GLM, Gemma and others, and of DeepSeek."""
    variables = dict(body.chat_template_kwargs or {})
    thinks = None
    if body.reasoning_effort is not None:
        variables["reasoning_effort"] = body.reasoning_effort
        thinks = body.reasoning_effort != "none"
    if body.thinking is not None:
        thinks = body.thinking.type == "enabled"
    if budget is not None:
        variables.setdefault("thinking_budget", budget)
        thinks = thinks if budget else False
    if thinks is not None:
        variables = {"enable_thinking": thinks, "thinking": thinks, **variables}
    return variables


def _continuation(body: ChatCompletionRequest) -> Continuation | None:
    """What continues the last message, where asked for.

    Raises:
        APIError: there is none to continue.
    """
    if not body.continue_final_message:
        return None
    if body.add_generation_prompt is not False:
        message = "continue_final_message is true; add_generation_prompt must be false with it"
        raise APIError(message, param="add_generation_prompt")
    last = body.messages[-1]
    if last.role != "assistant" or not last.content or last.tool_calls:
        message = "continue_final_message is true; the last message must be an assistant's, with content and no calls"
        raise APIError(message, param="messages")
    return Continuation()


class _Answer:
    """A job's replies in OpenAI's shapes."""

    def __init__(self, job: Job, body: ChatCompletionRequest, generator: Generator, parsers: list[CountedParser]):
        self.job, self.body, self.generator, self.parsers = job, body, generator, parsers
        self._calls = [0] * len(parsers)

    def whole(self, replies: list[list[GenerationResponse]]) -> dict[str, Any]:
        """The completion."""
        choices = [self._choice(index, pieces) for index, pieces in enumerate(replies)]
        name = self.body.model
        head = {"id": self.job.id, "object": "chat.completion", "created": self.job.created, "model": name}
        tier = {"service_tier": "default"} if self.body.service_tier else {}
        return {**head, "choices": choices, "usage": self._usage, **tier}

    @property
    def _usage(self) -> dict[str, Any]:
        reasoning = sum(parser.reasoning_tokens for parser in self.parsers)
        return {**self.job.usage, "completion_tokens_details": {"reasoning_tokens": reasoning}}

    def _choice(self, index: int, pieces: list[GenerationResponse]) -> dict[str, Any]:
        parser = self.parsers[index]
        parsed = joined([*(parser.add(piece.text) for piece in pieces), parser.finish()])
        content, reasoning = parsed.content, parsed.reasoning
        calls = [call.as_dict() for call in self._allowed(index, parsed.calls)]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not content else content,
            "refusal": None,
        }
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        reason = pieces[-1].finish_reason
        logprobs = chat_logprobs(self.generator.tokenizer, pieces) if self.body.logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": "tool_calls" if calls and reason == "stop" else reason,
        }

    async def events(self) -> AsyncIterator[bytes]:
        """The chunks of a stream as events, as many as there are at a time."""
        include_usage = self.body.stream_options is not None and bool(self.body.stream_options.include_usage)
        chunks = Chunks(self.job, "chat.completion.chunk", self.body.model, include_usage)
        first = dump_json({"role": "assistant", "content": ""})
        yield b"".join([chunks.event(_choice(index, first)) for index in range(len(self.parsers))])
        async for index, pieces in merged(self.job):
            choices = [choice for piece in pieces for choice in self._choices(index, piece)]
            if choices:
                yield b"".join(map(chunks.event, choices))
        if include_usage:
            yield chunks.usage(self._usage)

    def _choices(self, index: int, piece: GenerationResponse) -> list[bytes]:
        """A piece as the choices of its chunks."""
        parser, reason = self.parsers[index], piece.finish_reason
        deltas = self._deltas(index, parser.add(piece.text))
        if reason:
            deltas += self._deltas(index, parser.finish())
        logprobs = chat_logprobs(self.generator.tokenizer, [piece]) if self.body.logprobs else None
        if logprobs and logprobs["content"] and not deltas:
            deltas = [b'{"content":""}']
        choices = [_choice(index, delta, None if after else logprobs) for after, delta in enumerate(deltas)]
        if reason:
            reason = "tool_calls" if self._calls[index] and reason == "stop" else reason
            choices.append(_choice(index, b"{}", reason=reason))
        return choices

    def _deltas(self, index: int, part: Parsed) -> list[bytes]:
        deltas = []
        if part.reasoning:
            deltas.append(b'{"reasoning_content":%b}' % dump_json(part.reasoning))
        if part.content:
            deltas.append(b'{"content":%b}' % dump_json(part.content))
        for call in self._allowed(index, part.calls):
            said = call.as_dict() if call.name else {"function": {"arguments": call.arguments}}
            deltas.append(dump_json({"tool_calls": [{"index": self._calls[index] - 1, **said}]}))
        return deltas

    def _allowed(self, index: int, calls: Sequence[Call]) -> Iterator[Call]:
        """The calls of a choice, or parts of them, that parallel_tool_calls lets through; counts them."""
        for call in calls:
            self._calls[index] += bool(call.name)
            if self._calls[index] == 1 or self.body.parallel_tool_calls is not False:
                yield call


def _choice(index: int, delta: bytes, logprobs: dict[str, Any] | None = None, reason: str | None = None) -> bytes:
    """A chunk's choice as JSON."""
    return b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (
        index,
        delta,
        dump_json(logprobs),
        dump_json(reason),
    )
