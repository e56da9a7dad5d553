"""Tool calls: the format of each family of models, parsed from streamed text.

Sources: the chat templates of Qwen2.5 and Hermes (<tool_call>), of Mistral ([TOOL_CALLS]) and of Llama 3.1 (the whole
reply is JSON); the harmony format of gpt-oss, https://github.com/openai/harmony.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rocforge.text.grammar import GrammarCompiler
from rocforge.text.stream import overlap


@dataclass(frozen=True)
class Call:
    """A function to call; `arguments` is JSON text."""

    name: str
    arguments: str

    def as_dict(self) -> dict[str, Any]:
        """In OpenAI's shape; the id has nine letters and digits, on which Mistral's template insists."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": secrets.token_hex(5)[:9], "type": "function", "function": function}


@dataclass(frozen=True)
class Parsed:
    """A parsed piece of a reply: content, reasoning, and complete calls."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


class Parser(Protocol):
    """Splits a reply's text; text that may begin a call is buffered until that is clear."""

    def add(self, text: str) -> Parsed:
        """What this text makes final."""

    def finish(self) -> Parsed:
        """What is still buffered; no text follows."""


class PlainParser:
    """For replies without calls: all is content."""

    def add(self, text: str) -> Parsed:
        return Parsed(text)

    def finish(self) -> Parsed:
        return Parsed()


class MarkedFormat:
    """Calls are JSON between two marks; without a second mark, a list of calls after the first."""

    def __init__(self, begin: str, end: str):
        self.begin, self.end = begin, end

    def parser(self) -> Parser:
        return _MarkedParser(self.begin, self.end)

    def lark(self, compiler: GrammarCompiler, tools: Sequence[dict[str, Any]]) -> str:
        """A grammar of replies that are calls of these tools, functions in OpenAI's shape."""
        schema = _any_call(tools, "arguments")
        if not self.end:
            schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 16}
        rule = f"start: {compiler.literal(self.begin)} call"
        return f"{rule} {compiler.literal(self.end) if self.end else ''}\ncall: %json {json.dumps(schema)}\n"


class _MarkedParser:
    def __init__(self, begin: str, end: str):
        self._begin, self._end = begin, end
        self._buffer, self._inside, self._called = "", False, False

    def add(self, text: str) -> Parsed:
        self._buffer += text
        content, calls = "", tuple[Call, ...]()
        while True:
            mark = self._end if self._inside else self._begin
            before, found, after = self._buffer.partition(mark) if mark else (self._buffer, "", "")
            if not found:
                break
            if not self._inside:
                content += self._outside(before)
            elif parsed := _calls(before):
                calls, self._called = calls + parsed, True
            else:
                content += self._begin + before + self._end
            self._buffer, self._inside = after, not self._inside
        if not self._inside:
            keep = overlap(self._buffer, self._begin)
            content += self._outside(self._buffer[: len(self._buffer) - keep])
            self._buffer = self._buffer[len(self._buffer) - keep :]
        return Parsed(content, calls=calls)

    def finish(self) -> Parsed:
        if not self._inside:
            return Parsed(self._buffer)
        calls = _calls(self._buffer)
        return Parsed(calls=calls) if calls else Parsed(self._begin + self._buffer)

    def _outside(self, text: str) -> str:
        """White space between calls is not content."""
        return "" if self._called and not text.strip() else text


class JSONFormat:
    """A call is the whole reply, a JSON object with a name and parameters."""

    def parser(self) -> Parser:
        return _JSONParser()

    def lark(self, compiler: GrammarCompiler, tools: Sequence[dict[str, Any]]) -> str:
        return f"start: %json {json.dumps(_any_call(tools, 'parameters'))}\n"


class _JSONParser:
    _TAG = "<|python_tag|>"

    def __init__(self) -> None:
        self._buffer, self._plain = "", False

    def add(self, text: str) -> Parsed:
        if self._plain:
            return Parsed(text)
        self._buffer += text
        start = self._buffer.lstrip()
        if start and not start.startswith(("{", self._TAG)) and not self._TAG.startswith(start):
            self._plain = True
            return Parsed(self._buffer)
        return Parsed()

    def finish(self) -> Parsed:
        if self._plain:
            return Parsed()
        calls = _calls(self._buffer.strip().removeprefix(self._TAG))
        return Parsed(calls=calls) if calls else Parsed(self._buffer)


class HarmonyFormat:
    """Messages in channels: `analysis` is reasoning, a message to a function is a call, the rest is content."""

    def parser(self) -> Parser:
        return _HarmonyParser()

    def lark(self, compiler: GrammarCompiler, tools: Sequence[dict[str, Any]]) -> str:
        rules = []
        for index, tool in enumerate(tools):
            schema = json.dumps(tool.get("parameters", {"type": "object"}))
            to = json.dumps(f"<|channel|>commentary to=functions.{tool['name']} <|constrain|>json<|message|>")
            rules.append(f"call_{index}: {to} arguments_{index}\narguments_{index}: %json {schema}\n")
        return f"start: {' | '.join(f'call_{index}' for index in range(len(tools)))}\n" + "".join(rules)


class _HarmonyParser:
    _MESSAGE = "<|message|>"
    _ENDS = re.compile(r"<\|(?:end|start|call|return)\|>")

    def __init__(self) -> None:
        self._buffer = ""
        self._header: str | None = None

    def add(self, text: str) -> Parsed:
        self._buffer += text
        parsed = Parsed()
        while True:
            if self._header is None:
                header, found, after = self._buffer.partition(self._MESSAGE)
                if not found:
                    return parsed
                self._header, self._buffer = header, after
            end = self._ENDS.search(self._buffer)
            if end is None:
                return _joined(parsed, self._final())
            parsed = _joined(parsed, self._message(self._buffer[: end.start()]))
            self._buffer, self._header = self._buffer[end.end() :], None

    def finish(self) -> Parsed:
        text, self._buffer = self._buffer, ""
        return Parsed() if self._header is None else self._message(text)

    def _final(self) -> Parsed:
        if self._function() is not None:
            return Parsed()
        keep = max(overlap(self._buffer, mark) for mark in ("<|end|>", "<|start|>", "<|call|>", "<|return|>"))
        text, self._buffer = self._buffer[: len(self._buffer) - keep], self._buffer[len(self._buffer) - keep :]
        return self._message(text)

    def _message(self, text: str) -> Parsed:
        function = self._function()
        if function is not None:
            return Parsed(calls=(Call(function, text.strip()),))
        return Parsed(reasoning=text) if "<|channel|>analysis" in (self._header or "") else Parsed(text)

    def _function(self) -> str | None:
        match = re.search(r"to=functions\.([\w.-]+)", self._header or "")
        return match[1] if match else None


ToolFormat = MarkedFormat | JSONFormat | HarmonyFormat


def format_of(template: str) -> ToolFormat | None:
    """The format of calls in models with this chat template; None if it does not support tools."""
    if "<|channel|>" in template and "<|message|>" in template:
        return HarmonyFormat()
    if "tools" not in template:
        return None
    if "[TOOL_CALLS]" in template:
        return MarkedFormat("[TOOL_CALLS]", "")
    if "<tool_call>" not in template and "parameters" in template:
        return JSONFormat()
    return MarkedFormat("<tool_call>", "</tool_call>")


def _any_call(tools: Sequence[dict[str, Any]], arguments: str) -> dict[str, Any]:
    """The JSON schema of a call of one of the tools."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, arguments: tool.get("parameters", {"type": "object"})},
            "required": ["name", arguments],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return {"anyOf": calls}


def _calls(text: str) -> tuple[Call, ...]:
    """The calls in a JSON text, one or a list; () if it is not that."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    calls = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            return ()
        arguments = entry.get("arguments", entry.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(Call(entry["name"], text))
    return tuple(calls)


def _joined(a: Parsed, b: Parsed) -> Parsed:
    return Parsed(a.content + b.content, a.reasoning + b.reasoning, a.calls + b.calls)
