"""/v1/chat/completions: messages in, the assistant's message out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from rocforge.engine.response import GenerationResponse
from rocforge.errors import ChatTemplateError
from rocforge.server.body import parse_json
from rocforge.server.errors import APIError, JSONResponse
from rocforge.server.generation import Generator
from rocforge.server.grammars import GrammarSource
from rocforge.server.jobs import EventStream, Job, client_closed, collect, merged
from rocforge.server.logprobs import chat_logprobs
from rocforge.server.schema import ChatCompletionRequest, Message, NamedTool
from rocforge.server.tools import HarmonyFormat, Parsed, Parser, PlainParser, ToolFormat, format_of


class ChatCompletions:
    """Answers requests for chat completions."""

    def __init__(self, generator: Generator):
        self._generator = generator

    async def __call__(self, body: ChatCompletionRequest, request: Request) -> Response:
        generator = self._generator
        generator.check_model(body.model)
        format = self._format(body)
        count = None
        if body.top_logprobs is not None and not body.logprobs:
            raise APIError("top_logprobs needs logprobs: true", param="top_logprobs")
        if body.logprobs:
            count = body.top_logprobs or 0
        most = body.max_completion_tokens or body.max_tokens or generator.settings.max_tokens
        params = generator.params(body, most, count)
        with generator.deadline(body.timeout):
            prompt = await self._prompt(body, tools=format is not None)
            job = await generator.submit("chatcmpl", [prompt], params, self._grammar(body, format), body.timeout)
        answer = _Answer(job, body, generator, [_parser(format, self._template) for _ in params])
        if body.stream:
            return EventStream(job, answer.chunks())
        pieces = await collect(job, request)
        return client_closed() if pieces is None else JSONResponse(answer.whole(pieces))

    @property
    def _template(self) -> str:
        template = self._generator.settings.chat_template or self._generator.tokenizer.chat_template
        if template is None:
            message = "the model has no chat template; start the server with --chat-template, or use /v1/completions"
            raise APIError(message, code="no_chat_template")
        return template

    def _format(self, body: ChatCompletionRequest) -> ToolFormat | None:
        """The format of tool calls; None without tools."""
        template = self._template
        if not body.tools:
            if body.tool_choice not in (None, "none", "auto"):
                raise APIError("tool_choice needs tools", param="tool_choice")
            return None
        if body.tool_choice == "none":
            return None
        format = format_of(template)
        if format is None:
            raise APIError(
                "the model's chat template does not support tools", param="tools", code="unsupported_parameter"
            )
        return format

    async def _prompt(self, body: ChatCompletionRequest, tools: bool) -> list[int]:
        generator = self._generator
        messages = await run_in_threadpool(lambda: [_plain(message) for message in body.messages])
        definitions = [tool.model_dump(exclude_none=True) for tool in body.tools or ()] if tools else None
        variables = dict(body.chat_template_kwargs or {})
        if body.reasoning_effort is not None:
            variables["reasoning_effort"] = body.reasoning_effort
        if reserved := variables.keys() & {"messages", "tools", "chat_template", "tokenize", "add_generation_prompt"}:
            raise APIError(f"chat_template_kwargs must not set {min(reserved)!r}", param="chat_template_kwargs")
        render = partial(
            generator.tokenizer.render_chat,
            messages,
            definitions,
            chat_template=generator.settings.chat_template,
            **variables,
        )
        text, literal = await generator.render(render)
        ids = await generator.encode(text, add_special_tokens=False, literal=literal)
        if not ids:
            raise ChatTemplateError("the chat template renders these messages to an empty prompt")
        return ids

    def _grammar(self, body: ChatCompletionRequest, format: ToolFormat | None) -> GrammarSource | None:
        """That of response_format, regex or grammar, or of a required tool call."""
        grammar = self._generator.grammar(body)
        if format is None or body.tool_choice in (None, "auto", "none"):
            return grammar
        if grammar is not None:
            raise APIError("a required tool call excludes response_format, regex and grammar", param="tool_choice")
        functions = [tool.function.model_dump(exclude_none=True) for tool in body.tools or ()]
        if isinstance(body.tool_choice, NamedTool):
            functions = [f for f in functions if f["name"] == body.tool_choice.function.name]
            if not functions:
                raise APIError(
                    f"tool_choice is {body.tool_choice.function.name!r}, which is not in tools", param="tools"
                )
        return GrammarSource("lark", format.lark(self._generator.compiler, functions))


def _parser(format: ToolFormat | None, template: str) -> Parser:
    """Models of the harmony format write in channels without tools too."""
    if format is None and isinstance(harmony := format_of(template), HarmonyFormat):
        format = harmony
    return PlainParser() if format is None else format.parser()


def _plain(message: Message) -> dict[str, Any]:
    """A message in the form of templates: content as text, arguments of calls as objects."""
    plain = message.model_dump(exclude_none=True)
    content = plain.get("content")
    if isinstance(content, list):
        plain["content"] = "".join(part["text"] for part in content)
    plain.setdefault("content", "")
    for call in plain.get("tool_calls", ()):
        try:
            call["function"]["arguments"] = parse_json(call["function"]["arguments"])
        except ValueError as error:
            raise APIError(f"arguments of a tool call are not JSON: {error}", param="messages") from error
    return plain


class _Answer:
    """A job's replies in OpenAI's shapes."""

    def __init__(self, job: Job, body: ChatCompletionRequest, generator: Generator, parsers: list[Parser]):
        self.job, self.body, self.generator, self.parsers = job, body, generator, parsers
        self._calls = [0] * len(parsers)

    def whole(self, replies: list[list[GenerationResponse]]) -> dict[str, Any]:
        """The completion."""
        choices = [self._choice(index, pieces) for index, pieces in enumerate(replies)]
        return {**self._head("chat.completion"), "choices": choices, "usage": self.job.usage}

    def _choice(self, index: int, pieces: list[GenerationResponse]) -> dict[str, Any]:
        parser = self.parsers[index]
        parts = [parser.add("".join(piece.text for piece in pieces)), parser.finish()]
        calls = [call.as_dict() for part in parts for call in part.calls]
        content = "".join(part.content for part in parts)
        reasoning = "".join(part.reasoning for part in parts)
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

    async def chunks(self) -> AsyncIterator[list[dict[str, Any]]]:
        """The chunks of a stream, in batches."""
        yield [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(len(self.parsers))]
        async for index, pieces in merged(self.job):
            yield [chunk for piece in pieces for chunk in self._chunks_of(index, piece)]
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield [{**self._head("chat.completion.chunk"), "choices": [], "usage": self.job.usage}]

    def _chunks_of(self, index: int, piece: GenerationResponse) -> list[dict[str, Any]]:
        parser, reason = self.parsers[index], piece.finish_reason
        parts = [parser.add(piece.text)] + ([parser.finish()] if reason else [])
        deltas = [delta for part in parts for delta in self._deltas(index, part)]
        logprobs = chat_logprobs(self.generator.tokenizer, [piece]) if self.body.logprobs else None
        if logprobs and logprobs["content"] and not deltas:
            deltas = [{"content": ""}]
        chunks = [self._chunk(index, delta) for delta in deltas]
        if chunks:
            chunks[0]["choices"][0]["logprobs"] = logprobs
        if reason:
            reason = "tool_calls" if self._calls[index] and reason == "stop" else reason
            chunks.append(self._chunk(index, {}, reason))
        return chunks

    def _deltas(self, index: int, part: Parsed) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        if part.reasoning:
            deltas.append({"reasoning_content": part.reasoning})
        if part.content:
            deltas.append({"content": part.content})
        for call in part.calls:
            deltas.append({"tool_calls": [{"index": self._calls[index], **call.as_dict()}]})
            self._calls[index] += 1
        return deltas

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self.body.stream_options and self.body.stream_options.include_usage:
            chunk["usage"] = None
        return chunk

    def _head(self, kind: str) -> dict[str, Any]:
        name = self.generator.settings.model_name
        return {"id": self.job.id, "object": kind, "created": self.job.created, "model": name}
