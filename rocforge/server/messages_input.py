"""Requests for Anthropic's messages as requests for chats."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from rocforge.server.body import dump_json
from rocforge.server.chat_request import chat_request
from rocforge.server.errors import APIError
from rocforge.server.messages_schema import AnthropicTool, AnthropicToolChoice, Block, CountTokensRequest, Turn
from rocforge.server.schema import ChatCompletionRequest

_EFFORTS = {"xhigh": "high", "max": "high"}
"""Efforts that no template knows -> the one that stands for them."""
_BILLING = "x-anthropic-billing-header:"
"""Claude Code's system prompt begins with a block of this, which differs from request to request."""


def chat_of(body: CountTokensRequest, **fields: Any) -> ChatCompletionRequest:
    """The chat that a request asks for.

    Args:
        body: the request.
        fields: more of the chat's.

    Raises:
        APIError: there is no such chat.
    """
    fields["messages"] = messages = _messages(body)
    fields["thinking"] = {"type": "enabled" if thinks(body) else "disabled"}
    if body.thinking and body.thinking.budget_tokens:
        fields["thinking"]["budget_tokens"] = body.thinking.budget_tokens
    if body.tools:
        fields["tools"] = [_function(tool) for tool in body.tools]
    if body.tool_choice:
        fields["tool_choice"] = _choice(body.tool_choice)
        fields["parallel_tool_calls"] = not body.tool_choice.disable_parallel_tool_use
    if config := body.output_config:
        if config.effort:
            fields["reasoning_effort"] = _EFFORTS.get(config.effort, config.effort)
        if config.format:
            schema = {"name": "reply", "schema": config.format.schema_, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    last = messages[-1]
    if last["role"] == "assistant" and last["content"] and "tool_calls" not in last:  # the reply goes on from it
        fields |= {"add_generation_prompt": False, "continue_final_message": True}
    return chat_request(body, fields)


def thinks(body: CountTokensRequest) -> bool:
    """Whether the client asks for thinking."""
    return body.thinking is not None and body.thinking.type != "disabled"


def _messages(body: CountTokensRequest) -> list[dict[str, Any]]:
    system = [body.system] if isinstance(body.system, str) else [_text(block) for block in body.system or ()]
    text = "\n".join(part for part in system if not part.startswith(_BILLING))
    messages = [{"role": "system", "content": text}] if text else []
    for turn in body.messages:
        messages += [_said(turn)] if turn.role == "assistant" else _asked(turn)
    return messages


def _said(turn: Turn) -> dict[str, Any]:
    """An assistant's turn."""
    if isinstance(turn.content, str):
        return {"role": "assistant", "content": turn.content}
    message: dict[str, Any] = {"role": "assistant"}
    texts, thoughts, calls = [], [], []
    for block in turn.content:
        if block.type == "tool_use":
            arguments = dump_json(_need(block, "input")).decode()
            function = {"name": _need(block, "name"), "arguments": arguments}
            calls.append({"id": _need(block, "id"), "type": "function", "function": function})
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type != "redacted_thinking":
            texts.append(_text(block))
    message["content"] = "".join(texts)
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _asked(turn: Turn) -> list[dict[str, Any]]:
    """A user's turn, or one of the system: results of tools and text, in their order."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    messages: list[dict[str, Any]] = []
    for block in turn.content:
        if block.type == "tool_result":
            content = _result(block.content)
            messages.append({"role": "tool", "tool_call_id": _need(block, "tool_use_id"), "content": content})
        elif messages and messages[-1]["role"] == turn.role:
            messages[-1]["content"] += "\n" + _text(block)
        else:
            messages.append({"role": turn.role, "content": _text(block)})
    return messages or [{"role": turn.role, "content": ""}]


def _result(content: Any) -> str:
    """The text of a tool's result."""
    if content is None or isinstance(content, str):
        return content or ""
    try:
        return "\n".join(_text(Block.model_validate(block)) for block in content)
    except (ValidationError, TypeError) as error:
        message = "the content of a tool_result is no text and no list of blocks"
        raise APIError(message, param="messages") from error


def _text(block: Block) -> str:
    """The text of a block.

    Raises:
        APIError: it is none.
    """
    if block.type == "text" and block.text is not None:
        return block.text
    if block.type == "document" and block.source and block.source.type == "text" and block.source.data:
        return block.source.data
    what = f"{block.source.type} document" if block.type == "document" and block.source else block.type
    raise APIError(f"content of type {what!r} is not supported: the model reads text", param="messages")


def _need(block: Block, name: str) -> Any:
    value = getattr(block, name)
    if value is None:
        raise APIError(f"a block of type {block.type!r} has no {name}", param="messages")
    return value


def _function(tool: AnthropicTool) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise APIError(f"tools of type {tool.type!r} are not supported; allowed is custom", param="tools")
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function |= {"strict": tool.strict, "parameters": tool.input_schema}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _choice(choice: AnthropicToolChoice) -> Any:
    if choice.type == "tool":
        if choice.name is None:
            raise APIError("a tool_choice of type 'tool' has no name", param="tool_choice")
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type
