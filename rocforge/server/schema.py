"""Request bodies of the OpenAI API, with extensions marked as such. Ranges are those of SamplingParams.

A field of the API without effect here is accepted if ignoring it breaks nothing a client relies on; others are refused.

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

FUNCTION_NAME = r"^[a-zA-Z0-9_.-]{1,64}$"
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Text = Annotated[str, Field(max_length=1 << 22)]
Stop = Annotated[str, Field(max_length=1024)]
Choices = Annotated[list[str], Field(min_length=1, max_length=1024, fail_fast=True)]
T = TypeVar("T")
Array = Annotated[list[T], Field(fail_fast=True)]
Mapping = Annotated[dict[str, T], Field(fail_fast=True)]
"""Both report the first wrong item only: a million reports would take long to make."""
Ids = Annotated[Array[TokenId], Field(min_length=1)]
Prompts = (
    Text
    | Ids
    | Annotated[Array[Text], Field(min_length=1, max_length=1024)]
    | Annotated[Array[Ids], Field(min_length=1, max_length=1024)]
)


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
    name: str = Field(pattern=FUNCTION_NAME)
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


class StructuredOutputs(Body):
    """vLLM's."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = Field(None, max_length=1 << 16)
    choice: Choices | None = None
    grammar: str | None = Field(None, max_length=1 << 18)


class Prediction(Body):
    """What the text will be, probably. Nothing here is faster for it."""

    type: Literal["content"]
    content: Text | Array[TextPart]


class Thinking(Body):
    """Anthropic's and DeepSeek's."""

    type: Literal["enabled", "disabled"]
    budget_tokens: int | None = Field(None, ge=0)


class Generation(Body):
    """What all requests for text share."""

    model: str = Field(max_length=512)
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    stream: bool | None = None

    top_k: int | None = Field(
        None, ge=-1, description="Extension: sample from this many of the likeliest tokens; 0, -1: all."
    )
    min_p: float | None = Field(
        None, description="Extension: drop tokens below this fraction of the highest probability."
    )
    top_n_sigma: float | None = Field(
        None, description="Extension: keep tokens so many standard deviations below the highest logit; 0, -1: all."
    )
    typical_p: float | None = Field(None, description="Extension: locally typical sampling up to this probability.")
    xtc_probability: float | None = Field(None, description="Extension: how often XTC leaves out likely tokens.")
    xtc_threshold: float | None = Field(None, description="Extension: the probability that is likely for XTC.")
    mirostat: int | None = Field(None, description="Extension: 1 or 2, mirostat in place of what leaves tokens out.")
    mirostat_tau: float | None = Field(None, description="Extension: the surprise that mirostat aims at, in bits.")
    mirostat_eta: float | None = Field(None, description="Extension: how fast mirostat adapts.")
    dry_multiplier: float | None = Field(None, description="Extension: DRY's penalty for repetitions that go on.")
    dry_base: float | None = Field(None, description="Extension: its growth with each token.")
    dry_allowed_length: int | None = Field(None, description="Extension: tokens that may be repeated.")
    dry_penalty_last_n: int | None = Field(None, description="Extension: tokens that are searched; -1: all.")
    dry_sequence_breakers: Annotated[Array[Stop], Field(max_length=64)] | None = Field(
        None, description="Extension: texts that end repetitions."
    )
    repetition_penalty: float | None = Field(None, description="Extension: divides the logits of repeated tokens.")
    ignore_eos: bool | None = Field(None, description="Extension: continue past end-of-generation tokens.")
    timeout: float | None = Field(None, gt=0, description="Extension: time limit in seconds.")
    lora: str | None = Field(None, max_length=512, description="Extension: the adapter that writes the text.")
    regex: str | None = Field(None, max_length=1 << 16, description="Extension: a regular expression for the text.")
    grammar: str | None = Field(
        None, max_length=1 << 18, description="Extension: a grammar for the text, in Lark or GBNF."
    )
    stop_token_ids: Annotated[Array[TokenId], Field(max_length=1024)] | None = Field(
        None, description="Extension: tokens that end the text, and are not part of it."
    )
    min_tokens: int | None = Field(None, ge=0, description="Extension: no token ends the text before.")


class Sampling(Generation):
    """What both kinds of completion share."""

    n: int | None = Field(None, ge=1, le=128)
    stop: Stop | Annotated[Array[Stop], Field(max_length=16)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[float] | None = Field(None, max_length=1024)
    max_tokens: int | None = Field(None, ge=-1)
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None

    typ_p: float | None = Field(None, description="llama.cpp's typical_p.")
    n_predict: int | None = Field(None, ge=-1, description="llama.cpp's max_tokens.")
    repeat_penalty: float | None = Field(None, description="llama.cpp's repetition_penalty.")
    cache_prompt: bool | None = Field(None, description="llama.cpp's. Prefixes are cached either way.")
    json_schema: dict[str, Any] | None = Field(None, description="llama.cpp's response_format.")
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's response_format, regex, grammar.")
    guided_json: dict[str, Any] | str | None = Field(None, description="As structured_outputs.json.")
    guided_regex: str | None = Field(None, max_length=1 << 16, description="As structured_outputs.regex.")
    guided_choice: Choices | None = Field(None, description="As structured_outputs.choice.")
    guided_grammar: str | None = Field(None, max_length=1 << 18, description="As structured_outputs.grammar.")


class CompletionRequest(Sampling):
    """The body of /v1/completions."""

    prompt: Prompts
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=128)
    suffix: Text | None = None


class InfillChunk(Part):
    """Of another file, or of another place in this one."""

    text: Text = ""
    filename: str = "tmp"


class InfillRequest(Sampling):
    """The body of llama.cpp's /infill."""

    model: str = Field("", max_length=512)
    input_prefix: Text
    input_suffix: Text
    input_extra: Array[InfillChunk] | None = Field(None, max_length=1024)
    prompt: Text = Field("", description="More of the prefix.")
    n_indent: int | None = Field(None, description="llama.vim's. No effect.")
    samplers: Array[str] | None = Field(None, description="llama.vim's. No effect.")
    t_max_prompt_ms: float | None = Field(None, description="llama.vim's. No effect.")
    t_max_predict_ms: float | None = Field(None, description="llama.vim's. No effect.")


class ChatCompletionRequest(Sampling):
    """The body of /v1/chat/completions."""

    messages: Array[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1)
    prediction: Prediction | None = None
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
    prompt_cache_retention: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Extension: variables for the chat template.")
    thinking_budget: int | None = Field(
        None,
        ge=-1,
        description="Extension: the most tokens that a reply thinks before it is made to end that; -1: any.",
    )
    thinking: Thinking | None = Field(None, description="Whether a reply thinks, and thinking_budget as budget_tokens.")
    reasoning_budget: int | None = Field(None, ge=-1, description="As thinking_budget.")
    reasoning_budget_tokens: int | None = Field(None, ge=-1, description="llama.cpp's thinking_budget.")
    thinking_budget_tokens: int | None = Field(None, ge=-1, description="llama.cpp's thinking_budget.")
    thinking_token_budget: int | None = Field(None, ge=-1, description="vLLM's thinking_budget.")
    add_generation_prompt: bool | None = Field(None, description="Extension: begin an assistant's message; as default.")
    continue_final_message: bool | None = Field(
        None, description="Extension: continue the last message, an assistant's; add_generation_prompt must be false."
    )


class EmbeddingRequest(Body):
    """The body of /v1/embeddings."""

    model: str = Field(max_length=512)
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None


class Document(Part):
    text: Text


class RerankRequest(Body):
    """The body of /v1/rerank, as Jina and Cohere have it."""

    model: str = Field("", max_length=512)
    query: Text
    documents: Array[Text | Document] = Field(min_length=1, max_length=1024)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None
    user: str | None = None


class TokenizeRequest(Body):
    """The body of /tokenize."""

    model: str | None = Field(None, max_length=512)
    content: Text
    add_special: bool = False
    parse_special: bool = True


class DetokenizeRequest(Body):
    """The body of /detokenize."""

    model: str | None = Field(None, max_length=512)
    tokens: Array[TokenId] = Field(max_length=1 << 20)
