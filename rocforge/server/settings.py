"""Settings of the HTTP server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the HTTP server.

    Attributes:
        model_name: the model's name for clients.
        adapters: names of the model's adapters that clients may ask for: by `lora`, or as models "name:adapter".
        chat_template: a Jinja template to use instead of the model's; None for the model's.
        tool_parser: the format of calls, a name of `rocforge.text.chat.tool_parsers`; None: by the template.
        reasoning_budget: the most tokens of a thought, where a request does not say; None: any number.
        sampling: fields of SamplingParams where a request does not say, before those that the file recommends.
        api_key: the bearer token that clients must send; None: no key.
        cors_origins: origins allowed by CORS, ("*",) for all.
        allowed_hosts: names and addresses to answer for, beside this machine's own (see `Hosts`).
        root_path: where a proxy serves it, such as "/llm"; requests may come with this before their path, or without.
        max_body_bytes: of a request.
        max_header_bytes: of a request's line and headers together.
        max_connections: that have a request in progress at a time.
        max_choices: prompts times n in one request.
        max_tokens: the default of a chat completion; None: up to the context.
        request_timeout: time limit of a request in seconds; the client may set a lower one.
        client_timeout: seconds for a client to send its headers, to send its body, and to read some of a response.
        grace: seconds for requests in flight to finish when the server stops.
    """

    model_name: str
    adapters: Sequence[str] = ()
    chat_template: str | None = None
    tool_parser: str | None = None
    reasoning_budget: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    api_key: str | None = None
    cors_origins: Sequence[str] = ()
    allowed_hosts: Sequence[str] = ()
    root_path: str = ""
    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 32 << 10
    max_connections: int = 1024
    max_choices: int = 64
    max_tokens: int | None = None
    request_timeout: float = 600.0
    client_timeout: float = 20.0
    grace: float = 5.0
