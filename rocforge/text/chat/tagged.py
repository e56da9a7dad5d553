"""Calls with a tag for each argument: the formats of Qwen3-Coder and Qwen 3.5, GLM, MiniMax, Seed and DeepSeek V3.2.

What is within a tag is text as it is: its type is that which the function's schema gives the argument.

Sources: the chat templates of these models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rocforge.text.chat.calls import LONGEST_HEAD
from rocforge.text.chat.reply import Functions, Parsed, Parser, StateParser, begins
from rocforge.text.chat.typed import ArgumentTypes
from rocforge.text.grammar import GrammarCompiler
from rocforge.text.schemas import json_rule
from rocforge.text.stream import overlap


@dataclass(frozen=True)
class TaggedCalls:
    """How calls are written. White space between tags does not matter to a parser.

    Attributes:
        section: the marks around calls.
        call: what begins a call, "<function={name}>", and what ends it; "" where the section ends with its call.
        parameter: what is before an argument's value, "<parameter={key}>", and what is after it; "{string}" in it
            says whether the value is a string.
        head, key: match what follows "{" in these; the name, or the key, is their first group, and the second of `key`
            what "{string}" became.
        inner: what is between a value and its tags.
        between: what a grammar makes the model write between tags.
    """

    section: tuple[str, str]
    call: tuple[str, str]
    parameter: tuple[str, str]
    head: re.Pattern[str]
    key: re.Pattern[str]
    inner: str = ""
    between: str = "\n"

    def parser(self, functions: Functions) -> Parser:
        """For a reply that may call these functions."""
        return _TaggedCallParser(self, functions)

    def lark(self, compiler: GrammarCompiler, tools: Sequence[Mapping[str, Any]], parallel: bool) -> str:
        """Rules for `calls`, a call of one of these tools, functions in OpenAI's shape."""
        rules = [self._rules(compiler, f"call_{i}", tool) for i, tool in enumerate(tools)]
        opening, closing = self.section[0] + (self.between if self.call[1] else ""), self.section[1]
        one = f"{compiler.literal(opening)} call {compiler.literal(closing)}"
        either = " | ".join(f"call_{i}" for i in range(len(tools)))
        return f"calls: {one}\ncall: {either}\n" + "".join(rules)

    def _rules(self, compiler: GrammarCompiler, rule: str, tool: Mapping[str, Any]) -> str:
        """The rule of a call, with those of its arguments."""
        types, (head, end) = ArgumentTypes(tool), self.call
        opening = compiler.literal(head.format(name=tool["name"]) + self.between)
        closing = compiler.literal(end + self.between if end else "")
        members = " ".join(f"{rule}_{j}" + ("" if key in types.required else "?") for j, key in enumerate(types.names))
        rules = [f"{rule}: {opening} {members} {closing}\n"]
        for j, key in enumerate(types.names):
            texts, value, end = types.texts(key), f"{rule}_{j}_value", self.inner + self.parameter[1]
            before = compiler.literal(self.parameter[0].format(key=key, string=json.dumps(texts is not None)))
            before, after = f"{before} {compiler.literal(self.inner)}", compiler.literal(end)
            if texts is None:
                body = json_rule(types.schema(key), strict=types.strict)
            elif texts:
                body = " | ".join(map(json.dumps, texts))
            else:
                body = r"/(?s:.*)/"
                if after == json.dumps(end):  # no special token, at which the text would end by itself
                    value, after = f"{value}[suffix={after}]", ""
            rule_name = value.partition("[")[0]
            rules.append(f"{rule}_{j}: {before} {rule_name} {after} {compiler.literal(self.between)}\n")
            rules.append(f"{value}: {body}\n")
        return "".join(rules)


class _TaggedCallParser(StateParser):
    """Knows where it is: outside, before a call, before or within an argument."""

    def __init__(self, format: TaggedCalls, functions: Functions):
        super().__init__(self._outside)
        self._format, self._functions, self._types = format, functions, ArgumentTypes({})
        self._call_begin, self._key_begin = (text.partition("{")[0] for text in (format.call[0], format.parameter[0]))
        self._tags = [tag for tag in (self._key_begin, format.call[1], format.section[1]) if tag]
        self._key, self._is_text, self._first = "", False, True
        self._pieces = list[str]()

    def finish(self) -> Parsed:
        if self._state == self._value:
            value, end, _ = self._buffer.partition(self._format.parameter[1])
            if end:
                self._end_value(value)
            elif self._is_text:
                self._text(value)
            else:
                self._output.arguments("".join([*self._pieces, value]))
        elif self._state == self._parameter:
            self._output.cut_member(self._buffer.strip(), self._first)
        elif self._state in (self._outside, self._marked, self._name):
            self._output.content(self._held + self._buffer)
        return self._output.finish()

    def _outside(self) -> bool:
        return self._until([mark for mark in (self._format.section[0], self._call_begin) if mark], self._marked)

    def _marked(self) -> bool:
        """After a mark: models leave out that of the section, and begin with a call's."""
        mark: str | None = self._call_begin
        if mark and not self._held.endswith(mark):
            mark = begins(self._buffer.lstrip(), [mark])
            if mark is None:
                return False
            if not mark:
                return self._give_back(self._outside)
            self._hold(self._buffer.index(mark) + len(mark))
        self._state = self._name
        return True

    def _name(self) -> bool:
        found = self._format.head.match(self._buffer[:LONGEST_HEAD])
        if not found and len(self._buffer) < LONGEST_HEAD and not re.search("[<>]", self._buffer):
            return False
        if not found or found[1] not in self._functions:
            return self._give_back(self._outside)
        self._buffer = self._buffer[found.end() :]
        self._types, self._first = ArgumentTypes(self._functions[found[1]]), True
        self._call(found[1], self._parameters)
        self._output.arguments("{")
        return True

    def _parameters(self) -> bool:
        """Between arguments: another one, or the call's end."""
        text = self._buffer.lstrip()
        tag = begins(text, self._tags)
        if tag is None:
            return False
        if tag == self._key_begin:
            self._state = self._parameter
        elif tag:
            self._output.arguments("}")
            self._state = self._outside if tag == self._format.section[1] else self._called
        else:  # no part of a call, which nothing is lost for
            self._output.content(text[0])
            self._state = self._astray
        self._buffer = text[len(tag) :] if tag else text[1:]
        return True

    def _astray(self) -> bool:
        """Text between arguments."""
        tag = self._buffer.find("<")
        self._output.content(self._take(None if tag < 0 else tag))
        if tag >= 0:
            self._state = self._parameters
        return tag >= 0

    def _parameter(self) -> bool:
        found = self._format.key.match(self._buffer[:LONGEST_HEAD])
        if not found:
            if len(self._buffer) >= LONGEST_HEAD:
                self._state = self._astray
            return self._state == self._astray
        self._key, self._buffer = found[1], self._buffer[found.end() :]
        said = found[2] if self._format.key.groups > 1 else None
        self._is_text = self._types.is_text(self._key) if said is None else said == "true"
        self._output.member(self._key, self._first)
        self._first, self._state = False, self._value_begun
        return True

    def _value_begun(self) -> bool:
        if not self._buffer:
            return False
        self._buffer, self._pieces = self._buffer.removeprefix(self._format.inner), []
        if self._is_text:
            self._output.arguments('"')
        self._state = self._value
        return True

    def _value(self) -> bool:
        """A value, up to the tag that ends it: one that no other tag follows is text."""
        end = self._format.parameter[1]
        value, found, after = self._buffer.partition(end)
        if not found:
            size = len(value) - overlap(value, end, self._format.inner + end)
            self._text(value[:size])
            self._buffer = value[size:]
            return False
        tag = begins(after.lstrip(), self._tags)
        if tag is None:
            return False
        if tag:
            self._end_value(value)
            self._state = self._parameters
        else:
            self._text(value + found)
        self._buffer = after
        return True

    def _text(self, text: str) -> None:
        """A part of a value."""
        if self._is_text:
            self._output.string(text)
        else:
            self._pieces.append(text)

    def _end_value(self, rest: str) -> None:
        """A value's last part."""
        self._text(rest.removesuffix(self._format.inner))
        self._output.arguments('"' if self._is_text else self._types.value(self._key, "".join(self._pieces)))

    def _called(self) -> bool:
        """After a call: another one, or the end of the section."""
        text = self._buffer.lstrip()
        mark = begins(text, [mark for mark in (self._format.section[1], self._call_begin) if mark])
        if mark is None:
            return False
        if mark and mark == self._call_begin:
            self._hold(len(self._buffer) - len(text) + len(mark))
            self._state = self._name
        else:
            self._buffer = text[len(mark) :] if mark else self._buffer
            self._state = self._outside
        return True
