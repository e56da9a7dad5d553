"""Calls as JSON: the formats of Qwen, Hermes, Mistral and Llama.

Sources: the chat templates of Qwen2.5 and Hermes (<tool_call>), of Mistral ([TOOL_CALLS]) and of Llama 3.1 (the whole
reply is JSON).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rocforge.text.chat.json_scanner import JSONScanner
from rocforge.text.chat.reply import Call, Parsed, Parser, StateParser
from rocforge.text.grammar import GrammarCompiler
from rocforge.text.schemas import json_rule, parameters
from rocforge.text.stream import overlap

MOST_CALLS = 16
"""In a list that a grammar makes a model write."""


@dataclass(frozen=True)
class JSONCalls:
    """Calls are JSON objects, or a list of them, after a mark.

    Attributes:
        begin, end: the marks; `end` may be "".
        key: the member that has the arguments, where a grammar makes the model write it.
        bare: a reply may begin with a call without a mark.
        listed: a grammar makes the model write a list.
    """

    begin: str
    end: str = ""
    key: str = "arguments"
    bare: bool = False
    listed: bool = False

    def parser(self, names: Collection[str]) -> Parser:
        """For a reply that may call these functions."""
        return _JSONCallParser(self, names)

    def lark(self, compiler: GrammarCompiler, tools: Sequence[Mapping[str, Any]], parallel: bool) -> str:
        """Rules for `calls`, calls of these tools, functions in OpenAI's shape: several only where `parallel`."""
        rules = []
        for i, tool in enumerate(tools):
            head = json.dumps(f'{{"name": {json.dumps(tool["name"])}, "{self.key}": ')
            rules.append(f'call_{i}: {head} arguments_{i} "}}"\narguments_{i}: {arguments_rule(tool)}\n')
        call = "call: " + " | ".join(f"call_{i}" for i in range(len(tools))) + "\n"
        if self.listed:
            more = f'(", " call){{0,{MOST_CALLS - 1}}}' if parallel else ""
            return f'calls: {compiler.literal(self.begin)} "[" call {more} "]"\n' + call + "".join(rules)
        marks = ("", "") if self.bare else (compiler.literal(f"{self.begin}\n"), compiler.literal(f"\n{self.end}"))
        return f"calls: {marks[0]} call {marks[1]}\n" + call + "".join(rules)


class _JSONCallParser(StateParser):
    """Knows where it is: outside, after a mark, within a value, or after a call."""

    def __init__(self, format: JSONCalls, names: Collection[str]):
        super().__init__(self._begun if format.bare else self._outside)
        self._format, self._names = format, names
        self._mark = "" if format.bare else format.begin  # written before the value, to be given back
        self._scanner, self._value_pieces = JSONScanner(), list[str]()

    def finish(self) -> Parsed:
        if self._state == self._outside:
            self._output.content(self._buffer)
        elif self._state != self._after:
            self._output.content("".join([self._mark, *self._value_pieces, self._buffer]))
        return self._output.finish()

    def _outside(self) -> bool:
        before, found, after = self._buffer.partition(self._format.begin)
        if found:
            self._output.content(before)
            self._buffer, self._mark, self._state = after, found, self._begun
            return True
        size = len(before) - overlap(before, self._format.begin)
        self._output.content(before[:size])
        self._buffer = before[size:]
        return False

    def _begun(self) -> bool:
        value = self._buffer.lstrip()
        if not value:
            return False
        if value[0] in "{[":
            self._scanner, self._state = JSONScanner(), self._value
        else:
            self._output.content(self._mark)
            self._state = self._outside
        return True

    def _value(self) -> bool:
        end = self._scanner.end(self._buffer)
        self._value_pieces.append(self._buffer[:end])
        self._buffer = "" if end is None else self._buffer[end:]
        if end is None:
            return False
        text = "".join(self._value_pieces)
        self._value_pieces = []
        if calls := _calls(text, self._names):
            self._output.calls(calls)
            self._mark, self._state = "", self._after
        else:
            self._output.content(self._mark + text)
            self._state = self._outside
        return True

    def _after(self) -> bool:
        text, begin, end = self._buffer.lstrip(), self._format.begin, self._format.end or ";"
        if not text or (text != end and any(mark.startswith(text) for mark in (begin, end))):
            return False
        if text.startswith(end):
            self._buffer = text[len(end) :]
            self._state = self._outside if self._format.end else self._begun
        elif text[0] in "{[" and not text.startswith(begin):
            self._state = self._begun
        else:
            self._state = self._outside
        return True


def arguments_rule(tool: Mapping[str, Any]) -> str:
    """A rule's body for the arguments of a function in OpenAI's shape."""
    return json_rule(parameters(tool.get("parameters")), strict=bool(tool.get("strict")))


def _calls(text: str, names: Collection[str]) -> tuple[Call, ...]:
    """The calls in a JSON text, one or a list, of functions that have these names; () if it is not that."""
    try:
        value = json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return ()
    calls = []
    for entry in value if isinstance(value, list) else [value]:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in names:
            return ()
        arguments = entry.get("arguments", entry.get("parameters")) or {}
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(Call(name, text))
    return tuple(calls)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
