"""The body of /v1/responses.

Items, tools and tool choices of types that are not known here are refused where they are read, with their names.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from rocforge.server.schema import FUNCTION_NAME, Array, Body, Generation, Mapping, Part, Text


class ContentPart(Part):
    """Of a message, of a call's output or of reasoning."""

    type: str
    text: Text | None = None
    refusal: Text | None = None


class Item(Part):
    """Of the input, of any type."""

    type: str | None = None
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Text | Array[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: Text | None = None
    input: Text | None = None
    output: Text | Array[ContentPart] | None = None
    summary: Array[ContentPart] | None = None
    encrypted_content: Text | None = None


class ResponseTool(Part):
    """Of any type; those of a namespace are functions and custom tools."""

    type: str
    name: str | None = Field(None, pattern=FUNCTION_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: dict[str, Any] | None = None
    tools: Array[ResponseTool] | None = Field(None, max_length=128)
    external_web_access: bool | None = None


class ToolChoice(Part):
    """Of one tool, or of several by mode."""

    type: str
    name: str | None = None
    namespace: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Array[ToolChoice] | None = Field(None, max_length=128)


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Part):
    effort: str | None = None
    summary: str | None = None


class StreamOptions(Body):
    include_obfuscation: bool | None = None


class CountRequest(Generation):
    """The body of /v1/responses/input_tokens."""

    input: Text | Array[Item] = ""
    instructions: Text | None = None
    previous_response_id: str | None = Field(None, max_length=128)
    tools: Array[ResponseTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: Literal["disabled"] | None = None
    conversation: None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Extension: variables for the chat template.")


class ResponsesRequest(CountRequest):
    """The body of /v1/responses."""

    input: Text | Array[Item]
    max_output_tokens: int | None = Field(None, ge=1)
    max_tool_calls: int | None = Field(None, ge=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Array[str] | None = Field(None, max_length=16)
    store: bool | None = None
    background: Literal[False] | None = None
    prompt: None = None
    metadata: Mapping[str] | None = Field(None, max_length=16)
    service_tier: Literal["auto", "default"] | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    client_metadata: dict[str, Any] | None = Field(None, description="Codex's.")
