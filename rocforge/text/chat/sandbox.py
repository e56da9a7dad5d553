"""Runs in a cell of `rocforge.text.jail`: renders untrusted Jinja templates.

Jinja's sandbox keeps a template away from Python's internals, but does not bound time and memory: the cell does.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rocforge.errors import ChatTemplateError


class Renderer:
    """Compiles and renders one template."""

    def __init__(self) -> None:
        self._environment = _Environment()

    def load(self, source: str) -> bytes:
        """Compile the template.

        Raises:
            ChatTemplateError: it is wrong; the message names the line.
        """
        try:
            self._template = self._environment.from_string(source)
        except MemoryError:
            raise
        except Exception as error:  # the compilers of Jinja and of Python raise many kinds
            raise _explained(error) from error
        return b""

    def render(self, variables: str) -> bytes:
        """UTF-8, with surrogates passed, of the text that the template makes of `variables`, a JSON object.

        Raises:
            ChatTemplateError: it fails, or refuses.
        """
        try:
            return self._template.render(json.loads(variables)).encode("utf-8", "surrogatepass")
        except MemoryError:
            raise
        except Exception as error:  # a template can raise anything
            raise _explained(error) from error


class _GenerationTag(Extension):
    """`{% generation %}`, which marks the assistant's text for training; renders what is inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Any:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Hugging Face's settings for chat templates."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.filters["tojson"] = _tojson

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"attribute {attribute!r} of {type(obj).__name__!r} is not allowed")


def _explained(error: Exception) -> ChatTemplateError:
    line = getattr(error, "lineno", None)
    what = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
    return ChatTemplateError(f"line {line}: {what}" if line else what)


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """json.dumps: Jinja's own filter escapes HTML characters, which a prompt needs verbatim."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
