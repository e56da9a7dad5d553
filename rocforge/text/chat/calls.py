"""Calls with arguments in JSON: the formats of Hermes, Qwen, Mistral, Llama, DeepSeek, Kimi, Granite and others.

Sources: the chat templates of these models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rocforge.text.chat.json_scanner import JSONScanner, refuse_constant
from rocforge.text.chat.reply import Call, Functions, Parsed, Parser, StateParser, begins
from rocforge.text.grammar import GrammarCompiler
from rocforge.text.schemas import json_rule, parameters

MOST_CALLS = 16
"""That a grammar lets a model write."""
LONGEST_HEAD = 1024
"""Characters of a call before its arguments, which come as they are written."""
NAME = r"[\w.-]{1,64}"
_OBJECT_HEAD = re.compile(
    r'\{\s*(?:"(?:type|id|tool_call_id)"\s*:\s*(?:"[^"\\]*"|\d+)\s*,\s*)*'
    rf'"(?:name|tool_name)"\s*:\s*"({NAME})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)'
)


@dataclass(frozen=True)
class JSONCalls:
    """Calls are JSON objects with a name and arguments, or a list of them; or arguments in JSON after a name.

    Attributes:
        begin, end: the marks of a call, or of a list; `end` may be "".
        section: the marks around all calls, or "".
        key, name_key: the members of a call's object, where a grammar makes the model write it.
        bare: a reply may begin with a call without a mark.
        listed: a grammar makes the model write a list.
        named: what stands between `begin` and the arguments where the name is no member, as a grammar makes the model
            write it: "{name}<sep>".
        head: matches that, with the name as its group.
    """

    begin: str
    end: str = ""
    section: tuple[str, str] = ("", "")
    key: str = "arguments"
    name_key: str = "name"
    bare: bool = False
    listed: bool = False
    named: str = ""
    head: re.Pattern[str] | None = None

    def parser(self, functions: Functions) -> Parser:
        """For a reply that may call these functions."""
        return _JSONCallParser(self, functions)

    def lark(self, compiler: GrammarCompiler, tools: Sequence[Mapping[str, Any]], parallel: bool) -> str:
        """Rules for `calls`, a call of one of these tools, functions in OpenAI's shape; a list may have several where
        they may be `parallel`."""
        begin, end = ("", "") if self.bare else (self.begin, self.end)
        line = "" if self.bare or self.listed or self.named else "\n"
        rules = []
        for i, tool in enumerate(tools):
            name = json.dumps(tool["name"])
            if self.named:
                head, closing = compiler.literal(begin + self.named.format(name=tool["name"])), compiler.literal(end)
            else:
                head, closing = json.dumps(f'{{"{self.name_key}": {name}, "{self.key}": '), '"}"'
            rules.append(f"call_{i}: {head} arguments_{i} {closing}\narguments_{i}: {arguments_rule(tool)}\n")
        calls = "call" if self.named else f"{compiler.literal(begin + line)} call {compiler.literal(line + end)}"
        if self.listed:
            more = f'(", " call){{0,{MOST_CALLS - 1}}}' if parallel else ""
            calls = f'{compiler.literal(begin)} "[" call {more} "]" {compiler.literal(end)}'
        opening, closing = map(compiler.literal, self.section)
        either = " | ".join(f"call_{i}" for i in range(len(tools)))
        return f"calls: {opening} {calls} {closing}\ncall: {either}\n" + "".join(rules)


class _JSONCallParser(StateParser):
    """Knows where it is: outside, after a mark, within a list, a call's object or its arguments, or after a call."""

    def __init__(self, format: JSONCalls, functions: Functions):
        super().__init__(self._begun if format.bare else self._outside)
        self._format, self._functions = format, functions
        self._scanner, self._pieces, self._listed = JSONScanner(), list[str](), False

    def finish(self) -> Parsed:
        if self._state == self._outside:
            self._output.content(self._buffer)
        elif self._state != self._after:
            self._output.content("".join([self._held, *self._pieces, self._buffer]))
        return self._output.finish()

    def _outside(self) -> bool:
        section, begin = self._format.section[0], self._format.begin
        return self._until([mark for mark in (section, begin) if mark], self._marked)

    def _marked(self) -> bool:
        """After a mark: that of the section is followed by that of a call."""
        if self._held != self._format.section[0]:
            self._state = self._begun
            return True
        mark = begins(self._buffer.lstrip(), [self._format.begin])
        if mark is None:
            return False
        if not mark:
            return self._give_back(self._outside)
        self._hold(self._buffer.index(mark) + len(mark))
        self._state = self._begun
        return True

    def _begun(self) -> bool:
        """After the mark of a call: a list, an object or a name."""
        text = self._buffer.lstrip()
        if not text:
            return False
        self._listed = text[0] == "["
        if text[0] in "{[":
            self._hold(len(self._buffer) - len(text) + self._listed)
            self._state = self._item if self._listed else self._object
        elif self._format.head:
            self._state = self._name
        else:
            return self._give_back(self._outside)
        return True

    def _name(self) -> bool:
        """Before arguments: the function's name, and what belongs to it."""
        brace = self._buffer.find("{", 0, LONGEST_HEAD)
        if brace < 0 and len(self._buffer) < LONGEST_HEAD:
            return False
        head = self._format.head and self._format.head.fullmatch(self._buffer[: max(brace, 0)])
        if not head or head[1] not in self._functions:
            return self._give_back(self._outside)
        self._buffer = self._buffer[brace:]
        return self._call(head[1], self._arguments)

    def _item(self) -> bool:
        """Within a list: an object, or its end."""
        text = self._buffer.lstrip(", \t\r\n" if not self._held else None)
        if not text:
            return False
        if text[0] == "{":
            self._hold(len(self._buffer) - len(text))
            self._state = self._object
        elif text[0] == "]" and not self._held:
            self._buffer, self._listed, self._state = text[1:], False, self._after
        else:
            return self._give_back(self._outside)
        return True

    def _object(self) -> bool:
        """A call's object, of which the arguments are not there yet."""
        head = _OBJECT_HEAD.match(self._buffer[:LONGEST_HEAD])
        if head and head[1] in self._functions:
            self._buffer = self._buffer[head.end() :]
            return self._call(head[1], self._member)
        if head or len(self._buffer) >= LONGEST_HEAD or JSONScanner().end(self._buffer) is not None:
            self._state = self._whole_object
            return True
        return False

    def _whole_object(self) -> bool:
        """An object that says its name after its arguments, or no call."""
        end = self._scanner.end(self._buffer)
        self._pieces.append(self._take(end))
        if end is None:
            return False
        text, self._pieces, self._scanner = "".join(self._pieces), [], JSONScanner()
        call = _call(text, self._functions)
        if call is None:
            self._held += text
            return self._give_back(self._outside)
        self._output.call(call.name, call.arguments)
        self._held, self._state = "", self._item if self._listed else self._after
        return True

    def _arguments(self) -> bool:
        """The arguments after a name, as they come."""
        return self._copied(JSONScanner(), self._after)

    def _member(self) -> bool:
        """The arguments in an object, as they come."""
        return self._copied(JSONScanner(depth=1), self._object_rest)

    def _copied(self, scanner: JSONScanner, then: Callable[[], bool]) -> bool:
        """Give the arguments out; `scanner` is for what `then` takes after them."""
        text, end = self._scanner.copy(self._buffer)
        self._output.arguments(text)
        self._take(end)
        if end is None:
            return False
        self._scanner, self._state = scanner, then
        return True

    def _object_rest(self) -> bool:
        """What a call's object has after its arguments."""
        end = self._scanner.end(self._buffer)
        self._take(end)
        if end is None:
            return False
        self._scanner, self._state = JSONScanner(), self._item if self._listed else self._after
        return True

    def _after(self) -> bool:
        """After a call or a list: marks, or another one without a mark."""
        format, text = self._format, self._buffer.lstrip()
        separator = ";" if format.bare or not format.end else ""
        closing = [mark for mark in (format.end.lstrip(), format.section[1], separator) if mark]
        mark = begins(text, [format.begin, *closing])
        if not text or mark is None:
            return False
        if mark in (format.begin, ";"):
            self._hold(len(self._buffer) - len(text) + len(mark))
            self._state = self._begun
        elif mark:
            self._buffer = text[len(mark) :]
            self._state = self._outside if mark == format.section[1] or not format.section[1] else self._after
        else:
            self._state = self._begun if text[0] in "{[" else self._outside
        return True


def arguments_rule(tool: Mapping[str, Any]) -> str:
    """A rule's body for the arguments of a function in OpenAI's shape."""
    return json_rule(parameters(tool.get("parameters")), strict=bool(tool.get("strict")))


def _call(text: str, functions: Functions) -> Call | None:
    """The call in a JSON text, of one of these functions; None if it is not that."""
    try:
        value = json.loads(text, strict=False, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None
    name = value.get("name", value.get("tool_name")) if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in functions:
        return None
    arguments = value.get("arguments", value.get("parameters")) or {}
    return Call(name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
