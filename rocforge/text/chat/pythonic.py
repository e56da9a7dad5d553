"""Calls as Python writes them: the formats of Llama 3.2, Llama 4 and LFM2. Source: their chat templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rocforge.text.chat.calls import MOST_CALLS, NAME
from rocforge.text.chat.reply import Functions, Parsed, Parser, StateParser, begins
from rocforge.text.chat.typed import ArgumentTypes, literal, separated
from rocforge.text.grammar import GrammarCompiler
from rocforge.text.schemas import json_rule

_HEAD = re.compile(rf"\s*({NAME})\s*\(")
_BEGUN = re.compile(r"\s*[\w.-]{0,64}\s*")
_KEY = re.compile(r"\s*(\w+)\s*=(?!=)")
_KEY_BEGUN = re.compile(r"\s*\w*\s*=?")
_STRUCTURE = re.compile(r"""["'\\()\[\]{},]""")


@dataclass(frozen=True)
class PythonicCalls:
    """A reply, or what is between marks, is a list of calls: [f(x=1), g()].

    Attributes:
        begin, end: the marks; "" for none.
        bare: a reply may begin with a list without a mark.
    """

    begin: str = ""
    end: str = ""
    bare: bool = True

    def parser(self, functions: Functions) -> Parser:
        """For a reply that may call these functions."""
        return _PythonicCallParser(self, functions)

    def lark(self, compiler: GrammarCompiler, tools: Sequence[Mapping[str, Any]], parallel: bool) -> str:
        """Rules for `calls`, calls of these tools, functions in OpenAI's shape: several only where `parallel`."""
        more = f' (", " call){{0,{MOST_CALLS - 1}}}' if parallel else ""
        begin, end = ("", "") if self.bare else (compiler.literal(self.begin), compiler.literal(self.end))
        either = " | ".join(f"call_{i}" for i in range(len(tools)))
        rules = "".join(_rules(f"call_{i}", tool) for i, tool in enumerate(tools))
        return f'calls: {begin} "[" call{more} "]" {end}\ncall: {either}\n{rules}'


def _rules(rule: str, tool: Mapping[str, Any]) -> str:
    """The rule of a call, with those of its arguments: required ones first."""
    types = ArgumentTypes(tool)
    names = sorted(types.names, key=lambda name: name not in types.required)
    members = [f"{rule}_{j}" for j in range(len(names))]
    arguments = separated(members, len(types.required.intersection(names)), ", ")
    rules = [f'{rule}: {json.dumps(tool["name"] + "(")} {arguments} ")"\n']
    for j, name in enumerate(names):
        value = '"True" | "False"' if types.types(name) == {"boolean"} else f"{rule}_{j}_value"
        rules.append(f"{rule}_{j}: {json.dumps(name + '=')} ({value})\n")
        if value == f"{rule}_{j}_value":
            rules.append(f"{value}: {json_rule(types.schema(name), strict=types.strict)}\n")
    return "".join(rules)


class _PythonicCallParser(StateParser):
    """Knows where it is: outside, before a call, before or within an argument, or after a call."""

    def __init__(self, format: PythonicCalls, functions: Functions):
        super().__init__(self._begun if format.bare else self._outside)
        self._format, self._functions, self._types = format, functions, ArgumentTypes({})
        self._count, self._pieces = 0, list[str]()
        self._scanner = _ArgumentScanner()

    def finish(self) -> Parsed:
        if self._state == self._value:
            self._output.arguments("".join([*self._pieces, self._buffer]))
        elif self._state == self._argument:
            self._output.cut_member(self._buffer.strip(", \t\r\n"), first=self._count == 0)
        elif self._state != self._ended:
            self._output.content(self._held + self._buffer)
        return self._output.finish()

    def _outside(self) -> bool:
        if not self._format.begin:
            self._output.content(self._buffer)
            self._buffer = ""
            return False
        return self._until([self._format.begin], self._begun)

    def _begun(self) -> bool:
        """At the reply's beginning or after a mark: a list."""
        text = self._buffer.lstrip()
        mark = begins(text, ["[", *([self._format.begin] if self._format.begin and not self._held else [])])
        if mark is None:
            return False
        if not mark:
            return self._give_back(self._outside)
        self._hold(len(self._buffer) - len(text) + len(mark))
        self._state = self._name if mark == "[" else self._begun
        return True

    def _name(self) -> bool:
        found = _HEAD.match(self._buffer)
        if not found and _BEGUN.fullmatch(self._buffer):
            return False
        if not found or found[1] not in self._functions:
            return self._give_back(self._outside)
        self._buffer = self._buffer[found.end() :]
        self._types, self._count = ArgumentTypes(self._functions[found[1]]), 0
        self._call(found[1], self._argument)
        self._output.arguments("{")
        return True

    def _argument(self) -> bool:
        """Before an argument, which may have no name, or at the call's end."""
        text = self._buffer.lstrip(", \t\r\n")
        if not text:
            return False
        if text[0] == ")":
            self._output.arguments("}")
            self._buffer, self._state = text[1:], self._called
            return True
        found = _KEY.match(text)
        if (found is None and _KEY_BEGUN.fullmatch(text)) or (found and found.end() == len(text)):
            return False
        names = self._types.names
        position = names[self._count] if self._count < len(names) else f"argument_{self._count + 1}"
        self._output.member(found[1] if found else position, first=self._count == 0)
        self._count += 1
        self._buffer = text[found.end() :] if found else text
        self._scanner, self._pieces, self._state = _ArgumentScanner(), [], self._value
        return True

    def _value(self) -> bool:
        end = self._scanner.end(self._buffer)
        self._pieces.append(self._take(end))
        if end is None:
            return False
        text = "".join(self._pieces).strip()
        found = literal(text) or literal(text.replace("\n", "\\n"))  # line ends, which templates write into strings
        self._output.arguments(found[1] if found else json.dumps(text, ensure_ascii=False))
        self._pieces, self._state = [], self._argument
        return True

    def _called(self) -> bool:
        """After a call: another one, or the list's end."""
        text = self._buffer.lstrip()
        if not text:
            return False
        self._state = self._name if text[0] == "," else self._ended if text[0] == "]" else self._outside
        if self._state == self._ended:
            self._buffer = text[1:]
        elif self._state == self._name:
            self._hold(len(self._buffer) - len(text) + 1)
        return True

    def _ended(self) -> bool:
        """After a list: its mark."""
        return self._past(self._format.end, self._outside)


class _ArgumentScanner:
    """Finds the end of an argument, the comma or bracket after it, in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._quote, self._escaped = 0, "", False

    def end(self, piece: str) -> int | None:
        """The index of it in the next piece; None if more is needed."""
        at = int(self._escaped and bool(piece))
        self._escaped = self._escaped and not piece
        while found := _STRUCTURE.search(piece, at):
            at, mark = found.end(), found[0]
            if self._quote:
                if mark == "\\":
                    self._escaped, at = at == len(piece), at + 1
                elif mark == self._quote:
                    self._quote = ""
            elif mark in "\"'":
                self._quote = mark
            elif not self._depth and mark in ",)]}":
                return found.start()
            elif mark in "([{":
                self._depth += 1
            elif mark in ")]}":
                self._depth -= 1
        return None
