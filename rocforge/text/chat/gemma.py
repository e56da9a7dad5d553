"""The calls of FunctionGemma and Gemma 4: call:NAME{key:value}, with marks around strings. Source: their templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rocforge.text.chat.calls import LONGEST_HEAD, NAME
from rocforge.text.chat.reply import Functions, Parsed, Parser, StateParser, begins
from rocforge.text.chat.typed import ArgumentTypes, literal, separated
from rocforge.text.grammar import GrammarCompiler
from rocforge.text.schemas import listed_values
from rocforge.text.stream import overlap

_HEAD = re.compile(rf"\s*call:\s*({NAME})\s*\{{")
_NESTED = 8
"""Objects in objects of which a grammar knows the members."""
_COMMON = r"""any: text | "true" | "false" | "null" | number | list | object
number: /-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?/
integer: /-?(0|[1-9][0-9]{0,15})/
list: "[" (any ("," any){0,15})? "]"
object: "{" (member ("," member){0,15})? "}"
member: /[A-Za-z_][A-Za-z0-9_]{0,63}/ ":" any
"""


@dataclass(frozen=True)
class GemmaCalls:
    """How calls are written.

    Attributes:
        begin, end: the marks of a call.
        quote: the mark before and after a string.
    """

    begin: str
    end: str
    quote: str

    def parser(self, functions: Functions) -> Parser:
        """For a reply that may call these functions."""
        return _GemmaCallParser(self, functions)

    def lark(self, compiler: GrammarCompiler, tools: Sequence[Mapping[str, Any]], parallel: bool) -> str:
        """Rules for `calls`, a call of one of these tools, functions in OpenAI's shape."""
        one = f"{compiler.literal(f'{self.begin}call:')} call {compiler.literal(self.end)}"
        either, quote = " | ".join(f"call_{i}" for i in range(len(tools))), compiler.literal(self.quote)
        rules = [f"calls: {one}\ncall: {either}\n{_COMMON}"]
        if quote == json.dumps(self.quote):
            rules.append(f"text: {quote} rest\nrest[suffix={quote}]: /(?s:.*)/\n")
        else:  # a special token, at which the text ends by itself
            rules.append(f"text: {quote} /(?s:.*)/ {quote}\n")
        for i, tool in enumerate(tools):
            types = ArgumentTypes(tool)
            rules.append(
                f"call_{i}: {json.dumps(tool['name'])} {self._object(quote, types, types.declared, _NESTED)}\n"
            )
        return "".join(rules)

    def _object(self, quote: str, types: ArgumentTypes, schema: Mapping[str, Any], depth: int) -> str:
        """A rule's body for an object of a schema that declares members."""
        properties, required = schema.get("properties") or {}, schema.get("required") or ()
        names = sorted(properties, key=lambda name: name not in required)
        members = [f"{json.dumps(f'{name}:')} {self._value(quote, types, properties[name], depth)}" for name in names]
        return f'"{{" {separated(members, sum(name in required for name in names), ",")} "}}"'

    def _value(self, quote: str, types: ArgumentTypes, schema: Any, depth: int) -> str:
        """A rule's body for a value of a schema."""
        schema = types.resolved(schema)
        values = listed_values(schema)
        if values is not None:
            texts = [
                f"{quote} {json.dumps(v)} {quote}" if isinstance(v, str) else json.dumps(json.dumps(v)) for v in values
            ]
            return f"({' | '.join(texts)})"
        kinds = types.kinds(schema)
        if not kinds or not depth:
            return "any"
        bodies = {"string": "text", "null": '"null"', "boolean": '("true" | "false")', "array": "list"}
        if isinstance(schema.get("items"), Mapping):
            item = self._value(quote, types, schema["items"], depth - 1)
            bodies["array"] = f'"[" ({item} ("," {item}){{0,15}})? "]"'
        if schema.get("properties"):
            bodies["object"] = self._object(quote, types, schema, depth - 1)
        return f"({' | '.join(bodies.get(kind, kind) for kind in sorted(kinds))})"


class _GemmaCallParser(StateParser):
    """Knows where it is: outside, before a call, before a key or a value, within a value, or after a call."""

    def __init__(self, format: GemmaCalls, functions: Functions):
        super().__init__(self._outside)
        self._format, self._functions = format, functions
        self._open, self._first = list[str](), True  # the brackets around, and whether nothing is in the innermost yet

    def finish(self) -> Parsed:
        if self._state in (self._outside, self._name):
            self._output.content(self._held + self._buffer)
        elif self._state == self._string:
            self._output.string(self._buffer)
        elif self._state == self._scalar:
            self._output.arguments(self._buffer)
        elif self._state == self._entry:
            self._output.cut_member(self._buffer.strip(", \t\r\n"), self._first)
        return self._output.finish()

    def _outside(self) -> bool:
        return self._until([self._format.begin], self._name)

    def _name(self) -> bool:
        found = _HEAD.match(self._buffer[:LONGEST_HEAD])
        if not found and "{" not in self._buffer and len(self._buffer) < LONGEST_HEAD:
            return False
        if not found or found[1] not in self._functions:
            return self._give_back(self._outside)
        self._buffer = self._buffer[found.end() :]
        self._call(found[1], self._entry)
        return self._opened("{")

    def _opened(self, bracket: str) -> bool:
        """An object or a list begins."""
        self._open.append(bracket)
        self._output.arguments(bracket)
        self._first, self._state = True, self._entry
        return True

    def _entry(self) -> bool:
        """Within an object or a list: another entry, or the end."""
        text = self._buffer.lstrip(", \t\r\n")
        if not text:
            return False
        self._buffer = text
        if text[0] in "}]":
            self._output.arguments("}" if self._open.pop() == "{" else "]")
            self._buffer, self._first = text[1:], False
            self._state = self._entry if self._open else self._ended
        elif self._open[-1] == "[":
            self._output.arguments("" if self._first else ", ")
            self._state = self._value
        else:
            key, colon, rest = text.partition(":")
            if not colon:
                return False
            self._output.member(key.replace(self._format.quote, "").strip(), self._first)
            self._buffer, self._state = rest, self._value
        self._first = False
        return True

    def _value(self) -> bool:
        text, quote = self._buffer.lstrip(), self._format.quote
        mark = begins(text, [quote, "{", "["])
        if mark is None:
            return False
        self._buffer = text[len(mark) :]
        if mark in ("{", "["):
            return self._opened(mark)
        if mark:
            self._output.arguments('"')
        self._state = self._string if mark else self._scalar
        return True

    def _string(self) -> bool:
        text, end, after = self._buffer.partition(self._format.quote)
        size = len(text) if end else len(text) - overlap(text, self._format.quote)
        self._output.string(text[:size])
        self._buffer = after if end else text[size:]
        if end:
            self._output.arguments('"')
            self._state = self._entry
        return bool(end)

    def _scalar(self) -> bool:
        """A value without marks: a number, a name, or a text."""
        found = re.search(r"[,}\]]", self._buffer)
        if found is None:
            return False
        text = self._buffer[: found.start()].strip()
        value = literal(text)
        self._output.arguments(value[1] if value else json.dumps(text, ensure_ascii=False))
        self._buffer, self._state = self._buffer[found.start() :], self._entry
        return True

    def _ended(self) -> bool:
        """After a call: its mark."""
        return self._past(self._format.end, self._outside)
