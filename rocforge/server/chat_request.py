"""Requests of other APIs as requests for chats: the fields that all have under one name, and the check of the rest."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from rocforge.server.errors import of_validation
from rocforge.server.schema import ChatCompletionRequest, Generation

_SHARED = [name for name in (*Generation.model_fields, "chat_template_kwargs") if name != "stream"]


def chat_request(body: Generation, fields: dict[str, Any]) -> ChatCompletionRequest:
    """The chat of a request.

    Args:
        body: the request, whose own fields count where a chat has them too.
        fields: more of the chat's.

    Raises:
        APIError: there is no such chat.
    """
    shared = {name: value for name in _SHARED if (value := getattr(body, name)) is not None}
    try:
        return ChatCompletionRequest.model_validate({**fields, **shared})
    except ValidationError as error:
        raise of_validation([dict(found) for found in error.errors()]) from error
