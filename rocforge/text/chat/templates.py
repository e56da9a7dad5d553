"""Chat templates: Jinja, as Hugging Face's `apply_chat_template` renders it, from a GGUF file's metadata."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from rocforge.errors import ChatTemplateError
from rocforge.gguf.metadata import Metadata
from rocforge.text.jail import Cell, Jail, JailError

SECONDS = 2.0
"""CPU time for compiling a template, and for each rendering."""
_KEY = "tokenizer.chat_template"
_KEPT = 4
_BY_NAME = {
    "rwkv-world": """
{%- for message in messages -%}
{{- {'system': 'System', 'user': 'User'}.get(message['role'], 'Assistant') + ': ' + message['content']|trim + '\n\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}
"""
}
"""Templates of which files have the name alone."""
_jail = Jail("rocforge.text.chat.sandbox", "Renderer")


class ChatTemplates:
    """The chat templates of a file: `tokenizer.chat_template`, called "default", and `tokenizer.chat_template.<name>`.

    A template is an untrusted program. It runs in Jinja's sandbox (`rocforge.text.chat.sandbox`) in a process of its
    own, in bounded time and memory (`rocforge.text.jail`).
    """

    def __init__(self, metadata: Mapping[str, Any]):
        stored = {
            key.removeprefix(_KEY).removeprefix(".") or "default": Metadata(metadata).string(key)
            for key in metadata
            if key == _KEY or key.startswith(_KEY + ".")
        }
        self.sources: dict[str, str] = {name: _BY_NAME.get(text, text) for name, text in stored.items()}
        self._loaded: dict[str, Cell] = {}
        self._lock = threading.Lock()

    def source(self, template: str | None, with_tools: bool) -> str:
        """The text of the template called `template`, or `template` itself if none is. None chooses "tool_use" for
        messages with tools where there is one, and else "default"."""
        if template is not None:
            return self.sources.get(template, template)
        if with_tools and "tool_use" in self.sources:
            return self.sources["tool_use"]
        if "default" not in self.sources:
            named = ", ".join(sorted(self.sources)) or "none"
            raise ChatTemplateError(f"the file has no default chat template (named: {named}); pass chat_template")
        return self.sources["default"]

    def render(self, template: str | None = None, /, **variables: Any) -> str:
        """The text that the template makes of `variables`, which hold JSON values: `messages`, `tools`, ....

        Raises:
            TypeError: other values.
            ChatTemplateError: the template fails, refuses the messages, or exceeds a limit.
        """
        try:
            plain = json.dumps(variables)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"a chat template's variables must be JSON values: {error}") from error
        source = self.source(template, with_tools=bool(variables.get("tools")))
        try:
            cell = self._cell(source)
            try:
                return cell.call(SECONDS, "render", plain).decode("utf-8", "surrogatepass")
            finally:
                cell.close()
        except JailError as error:
            raise ChatTemplateError(f"chat template: {error}") from error

    def _cell(self, source: str) -> Cell:
        """A fork of a cell that has compiled the template, so that no rendering sees another."""
        with self._lock:
            if source in self._loaded:
                try:
                    return self._loaded[source].fork()
                except JailError:
                    del self._loaded[source]  # its process was killed
            if len(self._loaded) == _KEPT:
                self._loaded.pop(next(iter(self._loaded))).close()
            cell = _jail.cell()
            cell.call(SECONDS, "load", source)
            self._loaded[source] = cell
            return cell.fork()
