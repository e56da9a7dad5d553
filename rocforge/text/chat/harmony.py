"""The harmony format of gpt-oss: messages in channels. Source: https://github.com/openai/harmony."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rocforge.text.chat.calls import arguments_rule
from rocforge.text.chat.json_scanner import JSONScanner
from rocforge.text.chat.reply import Functions, Parsed, Parser, StateParser
from rocforge.text.chat.thoughts import ThoughtMarks
from rocforge.text.grammar import GrammarCompiler
from rocforge.text.stream import overlap

FINAL = "<|channel|>final<|message|>"
"""The header of a reply's content."""
ANALYSIS = ThoughtMarks(
    "<|channel|>analysis<|message|>", "<|end|>", ("<|end|>", f"<|end|><|start|>assistant{FINAL}"), again=True
)
"""A model that thinks again after it had to end may only say its content."""
_START, _MESSAGE = "<|start|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_HEADERS = (_START, "<|channel|>", _MESSAGE)
_RECIPIENT = " to="
_END_OR_START = re.compile("|".join(map(re.escape, (*_ENDS, _START))))
_ANY = re.compile("|".join(map(re.escape, (*_ENDS, *_HEADERS))))
_HEADER = re.compile(r"(?:<\|(?:start|channel|constrain)\|>|[\w .=/:-])*")
_HEADER_MARKS = (_START, "<|channel|>", "<|constrain|>", _MESSAGE)
LONGEST_HEADER = 256
"""Characters of a header before <|message|>."""


class HarmonyCalls:
    """A message to a function is a call."""

    def parser(self, functions: Functions) -> Parser:
        """For a reply that may call these functions."""
        return HarmonyParser(functions)

    def lark(self, compiler: GrammarCompiler, tools: Sequence[Mapping[str, Any]], parallel: bool) -> str:
        """Rules for `calls`, a call of one of these tools, functions in OpenAI's shape."""
        rules = []
        for i, tool in enumerate(tools):
            to = f"<|channel|>commentary to=functions.{tool['name']} <|constrain|>json<|message|>"
            rules.append(f"call_{i}: {compiler.literal(to)} arguments_{i}\narguments_{i}: {arguments_rule(tool)}\n")
        return "calls: " + " | ".join(f"call_{i}" for i in range(len(tools))) + "\n" + "".join(rules)


class HarmonyParser(StateParser):
    """Channel `analysis` is reasoning, a message to an offered function is a call, the rest is content.

    Knows where it is: outside of messages, within a message's text, or within a message to a function. Text that has no
    header is content.

    Args:
        functions: that may be called.
    """

    def __init__(self, functions: Functions):
        super().__init__(self._first)
        self._functions, self._header, self._scanner = functions, "", JSONScanner()

    def finish(self) -> Parsed:
        if self._state in (self._text, self._text_begun):
            self._say(self._buffer)
        elif self._state == self._recipient_begun:
            self._say(self._header + self._buffer)
        elif not self._buffer.startswith(_HEADERS):  # a header without a message says nothing
            self._output.content(self._buffer)
        return self._output.finish()

    def _first(self) -> bool:
        """The reply's beginning: the prompt may end within a header, so that it goes on with the recipient."""
        if self._buffer != _RECIPIENT and _RECIPIENT.startswith(self._buffer):
            return False
        if self._buffer.startswith(_RECIPIENT) and (size := _header(self._buffer)) != 0:
            return self._begin(size)
        self._state = self._outside
        return True

    def _outside(self) -> bool:
        found = _ANY.search(self._buffer)
        size = found.start() if found else len(self._buffer) - overlap(self._buffer, *_ENDS, *_HEADERS)
        self._output.content(self._take(size))
        if found is None:
            return False
        mark = found[0]
        if mark in _ENDS:
            self._buffer = self._buffer[len(mark) :]
        elif (size_of_header := _header(self._buffer)) != 0:
            return self._begin(size_of_header)
        else:
            self._output.content(mark)
            self._buffer = self._buffer[len(mark) :]
        return True

    def _begin(self, size: int | None) -> bool:
        """Begin the message after a header of so many characters; None: its end has not come."""
        if size is None:
            return False
        self._header = self._take(size)
        self._state = self._text_begun if self._recipient is None else self._recipient_begun
        return True

    def _text_begun(self) -> bool:
        text = self._buffer.lstrip()
        if not text:
            return False
        self._scanner = JSONScanner()
        self._state = self._object if text[0] == "{" else self._text
        return True

    def _object(self) -> bool:
        """JSON as text: no mark in its strings ends it."""
        end = self._scanner.end(self._buffer)
        self._say(self._take(end))
        if end is None:
            return False
        self._state = self._text
        return True

    def _text(self) -> bool:
        found = _END_OR_START.search(self._buffer)
        size = found.start() if found else len(self._buffer) - overlap(self._buffer, *_ENDS, _START)
        self._say(self._take(size))
        if found is None:
            return False
        header = _header(self._buffer) if found[0] == _START else len(found[0])
        if header is None:
            return False
        if header == 0:  # a mark that begins nothing is text
            self._say(_START)
            self._buffer = self._buffer[len(_START) :]
        else:
            self._state = self._outside
        return True

    def _recipient_begun(self) -> bool:
        """A message to a function: a call, or what is none, as it was written."""
        text = self._buffer.lstrip()
        if not text:
            return False
        self._scanner = JSONScanner()
        name = self._recipient
        if text[0] == "{" and name in self._functions:
            self._buffer = text
            return self._call(str(name), self._arguments)
        self._say(self._header)
        self._state = self._object if text[0] in "{[" else self._text
        return True

    def _arguments(self) -> bool:
        """JSON to a function: no mark in its strings ends it."""
        text, end = self._scanner.copy(self._buffer)
        self._output.arguments(text)
        self._take(end)
        if end is None:
            return False
        self._state = self._outside
        return True

    def _say(self, text: str) -> None:
        if "<|channel|>analysis" in self._header:
            self._output.reasoning(text)
        else:
            self._output.content(text)

    @property
    def _recipient(self) -> str | None:
        match = re.search(r" to=(?:functions\.)?([\w.-]+)", self._header)
        return match[1] if match else None


def _header(text: str) -> int | None:
    """Characters of the header that a text begins with: 0 if it is none, None if it may become one."""
    match = _HEADER.match(text)
    assert match is not None, "it matches nothing, too"
    rest = text[match.end() :]
    if match.end() > LONGEST_HEADER:
        return 0
    if rest.startswith(_MESSAGE):
        return match.end() + len(_MESSAGE)
    return None if any(mark.startswith(rest) for mark in _HEADER_MARKS) else 0
