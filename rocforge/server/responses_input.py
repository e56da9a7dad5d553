"""Requests for responses as requests for chats: items as messages, tools as functions."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rocforge.server.chat_request import chat_request
from rocforge.server.errors import APIError
from rocforge.server.responses_schema import CountRequest, ResponseTool, ToolChoice
from rocforge.server.schema import ChatCompletionRequest

Item = dict[str, Any]
_TEXTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")
_FREE_TEXT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"],
              "additionalProperties": False}  # fmt: skip
"""The parameters that a custom tool has for the model."""


@dataclass(frozen=True)
class OfferedTool:
    """What a function of the chat is among the tools of a request.

    Attributes:
        type: "function", or "custom", whose input is text.
        name: the tool's.
        namespace: that it is in, or None.
    """

    type: str
    name: str
    namespace: str | None = None


@dataclass
class OfferedTools:
    """Tools of a request.

    Attributes:
        functions: in the shape of chats.
        by_name: a function's name -> the tool that it stands for.
    """

    functions: list[dict[str, Any]] = field(default_factory=list)
    by_name: dict[str, OfferedTool] = field(default_factory=dict)

    def add(self, tool: ResponseTool, namespace: str | None = None) -> None:
        """Offer a tool, or those of a namespace.

        Raises:
            APIError: it is of a type that is not known here.
        """
        if tool.type == "web_search" and tool.external_web_access is False:
            return  # a search that may not reach the web finds nothing
        if tool.type not in ("function", "custom", "namespace") or (tool.type == "namespace" and namespace):
            allowed = "function and custom" if namespace else "function, custom and namespace"
            message = f"tools of type {tool.type!r} are not supported; allowed are {allowed}"
            raise APIError(message, param="tools", code="unsupported_parameter")
        if tool.name is None:
            raise APIError("Missing required parameter: 'tools.name'", param="tools", code="missing_required_parameter")
        if tool.type == "namespace":
            for inner in tool.tools or ():
                self.add(inner, tool.name)
            return
        name = chat_name(tool.name, namespace)
        shown: dict[str, Any] = {"name": name, "strict": tool.strict, "description": tool.description}
        shown["parameters"] = _FREE_TEXT if tool.type == "custom" else tool.parameters
        if tool.type == "custom" and tool.format and "definition" in tool.format:
            grammar = f"The input obeys this {tool.format.get('syntax', '')} grammar:\n{tool.format['definition']}"
            shown["description"] = "\n\n".join(filter(None, (tool.description, grammar)))
        function = {key: value for key, value in shown.items() if value is not None}
        self.functions.append({"type": "function", "function": function})
        self.by_name[name] = OfferedTool(tool.type, tool.name, namespace)


def chat_name(name: str, namespace: str | None) -> str:
    """A tool's name for the model."""
    return f"{namespace}__{name}" if namespace else name


def offered_tools(body: CountRequest) -> OfferedTools:
    """Those of a request."""
    offered = OfferedTools()
    for tool in body.tools or ():
        offered.add(tool)
    return offered


def items_of(body: CountRequest) -> list[Item]:
    """The input as items, each with an id."""
    given: list[Item] = (
        [{"role": "user", "content": [{"type": "input_text", "text": body.input}]}]
        if isinstance(body.input, str)
        else [item.model_dump(exclude_unset=True) for item in body.input]
    )
    return [{**item, "type": _type(item), "id": item.get("id") or f"msg_{secrets.token_hex(12)}"} for item in given]


def _type(item: Item) -> str:
    """An item's type, which messages and references may leave out."""
    return item.get("type") or ("item_reference" if "id" in item and "role" not in item else "message")


def chat_of(body: CountRequest, items: Sequence[Item], tools: OfferedTools, **fields: Any) -> ChatCompletionRequest:
    """The chat that a request asks for.

    Args:
        body: the request.
        items: the whole input.
        tools: of the request.
        fields: more of the chat's.

    Raises:
        APIError: there is no such chat.
    """
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    fields["messages"] = system + messages_of(items)
    if tools.functions:
        fields["tools"] = tools.functions
        fields["tool_choice"] = _choice(body.tool_choice)
    elif body.tool_choice not in (None, "none", "auto"):
        raise APIError("tool_choice needs tools", param="tool_choice")
    if body.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = body.parallel_tool_calls
    if body.reasoning and body.reasoning.effort:
        fields["reasoning_effort"] = body.reasoning.effort
    if body.text and body.text.format:
        format = body.text.format.model_dump(exclude_none=True, by_alias=True)
        kind = format.pop("type")
        fields["response_format"] = {"type": kind, **({"json_schema": format} if kind == "json_schema" else {})}
    return chat_request(body, fields)


def _choice(choice: Any) -> Any:
    """tool_choice in the shape of chats."""
    if not isinstance(choice, ToolChoice):
        return choice
    if choice.type == "allowed_tools":
        named = [_named(tool) for tool in choice.tools or ()]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode or "auto", "tools": named}}
    return _named(choice)


def _named(choice: ToolChoice) -> dict[str, Any]:
    if choice.type not in ("function", "custom") or choice.name is None:
        message = f"tool_choice is of type {choice.type!r}; allowed are function and custom, with a name"
        raise APIError(message, param="tool_choice", code="unsupported_parameter")
    return {"type": "function", "function": {"name": chat_name(choice.name, choice.namespace)}}


def messages_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as messages: what the assistant said one after another, reasoning, text and calls, is one message.

    Raises:
        APIError: an item of a type that is not known here, or without what it needs.
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        kind = item["type"]
        if kind == "message" and _need(item, "role") != "assistant":
            messages.append({"role": item["role"], "content": _text(_need(item, "content"))})
        elif kind == "message":
            said = _assistants(messages, unless=("content", "tool_calls"))
            said["content"] = _text(_need(item, "content"))
        elif kind == "reasoning":
            said = _assistants(messages, unless=("reasoning_content", "content", "tool_calls"))
            said["reasoning_content"] = reasoning_of(item)
        elif kind in ("function_call", "custom_tool_call"):
            said = _assistants(messages, unless=())
            said.setdefault("tool_calls", []).append(_call(item))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            content = _text(_need(item, "output"))
            messages.append({"role": "tool", "tool_call_id": _need(item, "call_id"), "content": content})
        else:
            allowed = "message, reasoning, function_call, function_call_output, custom_tool_call, " \
                "custom_tool_call_output and item_reference"  # fmt: skip
            message = f"items of type {kind!r} are not supported; allowed are {allowed}"
            raise APIError(message, param="input", code="unsupported_parameter")
    return messages


def _assistants(messages: list[dict[str, Any]], unless: Sequence[str]) -> dict[str, Any]:
    """The assistant's message that an item belongs to: the last, or a new one where that has one of some fields."""
    if not messages or messages[-1]["role"] != "assistant" or messages[-1].keys() & {*unless}:
        messages.append({"role": "assistant"})
    return messages[-1]


def _call(item: Item) -> dict[str, Any]:
    name = chat_name(_need(item, "name"), item.get("namespace"))
    custom = item["type"] == "custom_tool_call"
    arguments = json.dumps({"input": _need(item, "input")}) if custom else _need(item, "arguments")
    return {"id": _need(item, "call_id"), "type": "function", "function": {"name": name, "arguments": arguments}}


def _need(item: Item, name: str) -> Any:
    if item.get(name) is None:
        message = f"an item of type {item['type']!r} has no {name}"
        raise APIError(message, param=f"input.{name}", code="missing_required_parameter")
    return item[name]


def _text(content: str | Sequence[Item]) -> str:
    """The text of a content.

    Raises:
        APIError: it has a part that is none.
    """
    if isinstance(content, str):
        return content
    for part in content:
        if part["type"] not in _TEXTS:
            message = f"content of type {part['type']!r} is not supported: the model reads text"
            raise APIError(message, param="input", code="unsupported_parameter")
    return "".join(part.get("text") or part.get("refusal") or "" for part in content)


def reasoning_of(item: Item) -> str:
    """The text of a reasoning item: of its content, of `encrypted_content` as `encrypted` makes it, or its summary."""
    if item.get("content"):
        return _text(item["content"])
    with suppress(ValueError):  # of another server
        if text := base64.b64decode(item.get("encrypted_content") or "", validate=True).decode():
            return text
    return _text(item.get("summary") or ())


def encrypted(text: str) -> str:
    """Reasoning for clients to send back, who keep what they cannot read. It is theirs, and no secret."""
    return base64.b64encode(text.encode("utf-8", "replace")).decode()
