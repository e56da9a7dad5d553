"""Fields that llama.cpp's and vLLM's clients send, under the names that the endpoints read.

Sources: https://github.com/ggml-org/llama.cpp/tree/master/tools/server and
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

import json
from typing import Any

from rocforge.server.body import parse_json
from rocforge.server.errors import APIError
from rocforge.server.schema import ChatCompletionRequest, ResponseFormat, Sampling

_NAMES = {
    "n_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "typ_p": "typical_p",
    "guided_regex": "regex",
    "guided_grammar": "grammar",
}
"""The name of a client -> the one that means the same here."""
_BUDGETS = ("reasoning_budget", "reasoning_budget_tokens", "thinking_budget_tokens", "thinking_token_budget")


def rename(body: Sampling) -> None:
    """Give the fields of other servers' clients to those that mean the same here.

    Raises:
        APIError: two fields say different things of one, or a schema is none.
    """
    for name, own in _NAMES.items():
        _set(body, name, own, getattr(body, name))
    for name, value in (("json_schema", body.json_schema), ("guided_json", body.guided_json)):
        _set(body, name, "response_format", _format(name, value))
    _set(body, "guided_choice", "grammar", _choice(body.guided_choice))
    if options := body.structured_outputs:
        name = "structured_outputs"
        _set(body, name, "regex", options.regex)
        _set(body, name, "grammar", options.grammar)
        _set(body, name, "grammar", _choice(options.choice))
        _set(body, name, "response_format", _format(name, options.json_))
        _set(body, name, "response_format", ResponseFormat(type="json_object") if options.json_object else None)
    if isinstance(body, ChatCompletionRequest):
        for name in _BUDGETS:
            _set(body, name, "thinking_budget", getattr(body, name))
        _set(body, "thinking", "thinking_budget", body.thinking and body.thinking.budget_tokens)
    for name in ("top_k", "top_n_sigma"):
        if getattr(body, name) == -1:
            setattr(body, name, 0)


def _set(body: Sampling, name: str, own: str, value: Any) -> None:
    """Set a field to what a client says by another name, if it does."""
    if value is None:
        return
    if getattr(body, own) not in (None, value):
        raise APIError(f"{name} and {own} say different things; only one of them is allowed", param=name)
    setattr(body, own, value)


def _choice(texts: list[str] | None) -> str | None:
    """The grammar of one of some texts."""
    return None if texts is None else "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _format(name: str, schema: dict[str, Any] | str | None) -> ResponseFormat | None:
    """The response_format of a schema, which vLLM's clients may send as a text."""
    if schema is None:
        return None
    try:
        found = parse_json(schema) if isinstance(schema, str) else schema
    except ValueError as error:
        raise APIError(f"{name} is not JSON: {error}", param=name) from error
    if not isinstance(found, dict):
        raise APIError(f"{name} is {str(schema)[:40]!r}; allowed are JSON schemas", param=name)
    return ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"schema": found}})
