"""The body of /v1/messages.

Blocks and tools of types that are not known here are refused where they are read, with their names.

Source: https://docs.claude.com/en/api/messages
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from rocforge.server.schema import Array, Body, Generation, Part, Stop, Text


class Source(Part):
    """Of a document."""

    type: str
    data: Text | None = None


class Block(Part):
    """Of a message, of the system prompt or of a tool's result, of any type."""

    type: str
    text: Text | None = None
    thinking: Text | None = None
    source: Source | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Any = None


class Turn(Part):
    role: Literal["user", "assistant", "system"]
    content: Text | Array[Block]


class AnthropicTool(Part):
    """Of any type; those of the client have none, or "custom"."""

    type: str | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class AnthropicToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Part):
    type: str
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountTokensRequest(Generation):
    """The body of /v1/messages/count_tokens."""

    messages: Array[Turn] = Field(min_length=1, max_length=4096)
    system: Text | Array[Block] | None = None
    tools: Array[AnthropicTool] | None = Field(None, max_length=128)
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Extension: variables for the chat template.")


class MessagesRequest(CountTokensRequest):
    """The body of /v1/messages."""

    max_tokens: int = Field(ge=1)
    stop_sequences: Array[Stop] | None = Field(None, max_length=16)
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: None = None
    mcp_servers: Array[Any] | None = Field(None, max_length=0)
