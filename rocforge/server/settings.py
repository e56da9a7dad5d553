"""Settings: what the HTTP server allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the HTTP server serves and allows.

    Attributes:
        model_name: what clients call the model.
        chat_template: a Jinja template to use instead of the model's; None for the model's.
        api_key: what clients must send as a bearer token; None: nothing.
        cors_origins: origins whose pages may call the server, ("*",) for all; none unless asked.
        allowed_hosts: names and addresses that the server answers for, beside this machine's own as `Hosts` knows them.
        max_body_bytes: of a request.
        max_header_bytes: of a request's line and headers together.
        max_connections: that have a request in progress at a time.
        max_choices: prompts times n in one request.
        max_tokens: of a reply, where the client asks for no number; None: up to the context.
        request_timeout: seconds that a request may take; the client may ask for less.
        client_timeout: seconds that a client may take to send its headers, and to send its body; and in which it must
            read some of an answer.
        grace: seconds that requests in flight have to finish when the server is told to stop.
    """

    model_name: str
    chat_template: str | None = None
    api_key: str | None = None
    cors_origins: Sequence[str] = ()
    allowed_hosts: Sequence[str] = ()
    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 32 << 10
    max_connections: int = 1024
    max_choices: int = 64
    max_tokens: int | None = None
    request_timeout: float = 600.0
    client_timeout: float = 20.0
    grace: float = 5.0
