"""Which functions the reply to a request may, or must, call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rocforge.server.errors import APIError, refusing
from rocforge.server.schema import AllowedToolsChoice, ChatCompletionRequest, NamedTool
from rocforge.text.chat.reply import Functions
from rocforge.text.schemas import parameters


@dataclass(frozen=True)
class Tools:
    """Functions of a request.

    Attributes:
        shown: the definitions that the model reads; none where it may not call.
        functions: those that the reply may call.
        required: whether it must call one.
    """

    shown: Sequence[Mapping[str, Any]] = ()
    functions: Sequence[Mapping[str, Any]] = ()
    required: bool = False

    @property
    def by_name(self) -> Functions:
        return {function["name"]: function for function in self.functions}


def tools_of(body: ChatCompletionRequest) -> Tools:
    """By tools and tool_choice.

    Raises:
        APIError: they do not go together, or parameters are no schema of an object.
    """
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise APIError("tool_choice needs tools", param="tool_choice")
        return Tools()
    shown = [tool.model_dump(exclude_none=True) for tool in body.tools]
    with refusing("tools"):
        for tool in shown:
            parameters(tool["function"].get("parameters"))
    if choice == "none":
        return Tools()
    functions = {tool["function"]["name"]: tool["function"] for tool in shown}
    mode, names = choice or "auto", list(functions)
    if isinstance(choice, NamedTool):
        mode, names = "required", [choice.function.name]
    elif isinstance(choice, AllowedToolsChoice):
        mode, names = choice.allowed_tools.mode, [tool.function.name for tool in choice.allowed_tools.tools]
    if unknown := [name for name in names if name not in functions]:
        raise APIError(f"tool_choice names {unknown[0]!r}, which is not in tools", param="tools")
    return Tools(shown, [functions[name] for name in names], required=mode == "required")
