"""Request bodies of the OpenAI API, with extensions marked as such. Ranges are those of SamplingParams.

A field of the API without effect here is accepted if ignoring it breaks nothing a client relies on; others are refused.

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Text = Annotated[str, Field(max_length=1 << 22)]
Stop = Annotated[str, Field(max_length=1024)]
T = TypeVar("T")
Array = Annotated[list[T], Field(fail_fast=True)]
Mapping = Annotated[dict[str, T], Field(fail_fast=True)]
"""Both report the first wrong item only: a million reports would take long to make."""


class Body(BaseModel):
    """Unknown fields are refused, and values of other types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _with_one_unknown(cls, fields: Any) -> Any:
        """Drop unknown fields after the first, for the same reason as in Array."""
        if not isinstance(fields, dict):
            return fields
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((name for name in fields if name not in known), None)
        return {name: value for name, value in fields.items() if name in known or name == unknown}


class Part(BaseModel):
    """May have unknown fields."""

    model_config = ConfigDict(extra="allow", strict=True)


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class JSONSchema(Body):
    name: str = "reply"
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class FunctionDefinition(Part):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Array[NamedTool] = Field(min_length=1, max_length=128)


class AllowedToolsChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class FunctionCall(Part):
    name: str
    arguments: str


class ToolCall(Part):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class TextPart(Part):
    type: Literal["text"]
    text: Text


class RefusalPart(Part):
    type: Literal["refusal"]
    refusal: Text


class Message(Part):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Array[TextPart | RefusalPart] | None = None
    refusal: Text | None = None
    name: str | None = None
    tool_calls: Array[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None


class Sampling(Body):
    """What both kinds of completion share."""

    model: str = Field(max_length=512)
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = Field(None, ge=1, le=128)
    stop: Stop | Annotated[Array[Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[float] | None = Field(None, max_length=1024)
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None

    top_k: int | None = Field(None, description="Extension: sample from this many of the likeliest tokens.")
    min_p: float | None = Field(
        None, description="Extension: drop tokens below this fraction of the highest probability."
    )
    repetition_penalty: float | None = Field(None, description="Extension: divides the logits of repeated tokens.")
    ignore_eos: bool | None = Field(None, description="Extension: continue past end-of-generation tokens.")
    timeout: float | None = Field(None, gt=0, description="Extension: time limit in seconds.")
    lora: str | None = Field(None, max_length=512, description="Extension: the adapter that writes the text.")
    regex: str | None = Field(None, max_length=1 << 16, description="Extension: a regular expression for the text.")
    grammar: str | None = Field(None, max_length=1 << 18, description="Extension: a Lark grammar for the text.")


class CompletionRequest(Sampling):
    """The body of /v1/completions."""

    prompt: (
        Text
        | Annotated[Array[TokenId], Field(min_length=1)]
        | Annotated[Array[Text], Field(min_length=1, max_length=1024)]
        | Annotated[Array[Annotated[Array[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=1024)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


class ChatCompletionRequest(Sampling):
    """The body of /v1/chat/completions."""

    messages: Array[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Array[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    store: Literal[False] | None = None
    metadata: Mapping[str] | None = Field(None, max_length=16)
    service_tier: Literal["auto", "default"] | None = None
    modalities: Array[Literal["text"]] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Extension: variables for the chat template.")


class TokenizeRequest(Body):
    """The body of /tokenize."""

    content: Text
    add_special: bool = False
    parse_special: bool = True


class DetokenizeRequest(Body):
    """The body of /detokenize."""

    tokens: Array[TokenId] = Field(max_length=1 << 20)
