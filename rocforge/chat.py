"""Chat templates: Jinja, as Hugging Face's `apply_chat_template` renders it, from a GGUF file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rocforge.errors import ChatTemplateError

if TYPE_CHECKING:
    import jinja2

_KEY = "tokenizer.chat_template"


class ChatTemplates:
    """The chat templates of a file: `tokenizer.chat_template`, called "default", and `tokenizer.chat_template.<name>`.

    A template is somebody else's program. It runs in a sandbox (`rocforge.sandbox`) in bounded time and memory.
    """

    def __init__(self, metadata: Mapping[str, Any]):
        self.sources: dict[str, str] = {
            key.removeprefix(_KEY).removeprefix(".") or "default": source
            for key, source in metadata.items()
            if (key == _KEY or key.startswith(_KEY + ".")) and isinstance(source, str)
        }
        self._compiled: dict[str, jinja2.Template] = {}

    def source(self, template: str | None, with_tools: bool) -> str:
        """The text of the template called `template`, or `template` itself if none is. None chooses "tool_use" for
        messages with tools where there is one, and else "default"."""
        if template is not None:
            return self.sources.get(template, template)
        if with_tools and "tool_use" in self.sources:
            return self.sources["tool_use"]
        if "default" not in self.sources:
            named = ", ".join(sorted(self.sources)) or "none"
            raise ChatTemplateError(f"the file has no default chat template (named ones: {named}); pass chat_template")
        return self.sources["default"]

    def render(self, template: str | None = None, /, **variables: Any) -> str:
        """The text that the template makes of `variables`, which hold JSON values: `messages`, `tools`, .... Raises
        TypeError for other values, and ChatTemplateError where the template fails, refuses or goes past its bounds."""
        from jinja2 import TemplateError

        from rocforge import sandbox

        try:
            plain = json.loads(json.dumps(variables))
        except (TypeError, ValueError) as error:
            raise TypeError(f"a chat template's variables must be JSON values: {error}") from error
        source = self.source(template, with_tools=bool(variables.get("tools")))
        try:
            if source not in self._compiled:
                self._compiled[source] = sandbox.compile_template(source, _FUNCTIONS, {"tojson": _tojson})
            return sandbox.render(self._compiled[source], plain)
        except Exception as error:  # a template can raise anything
            line = getattr(error, "lineno", None)
            where = f", line {line}" if line else ""
            what = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            raise ChatTemplateError(f"chat template{where}: {what}") from error


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    if len(format) > 1000:
        raise ValueError(f"a time format of {len(format)} characters")
    return datetime.now().strftime(format)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """json.dumps: Jinja's own filter escapes HTML's characters, which a prompt wants as they are."""
    from rocforge import sandbox

    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > 16:
        raise ValueError(f"tojson's indent must be at most 16, not {indent!r}")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts = []
    for part in encoder.iterencode(value):
        sandbox.spend(len(part))
        parts.append(part)
    return "".join(parts)


_FUNCTIONS = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
