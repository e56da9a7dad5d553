"""Continuation: a prompt that ends within its last message, for the model to go on from there.

Source: continue_final_message of transformers' apply_chat_template.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from rocforge.errors import ChatTemplateError
from rocforge.text.special_tokens import Span


class Continuation:
    """The end of the last message, found again in the prompt that a template makes."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(16)

    def messages(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages to render, with the end marked; the space shows whether the template strips content."""
        return [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}{self._mark} "}]

    def prompt(self, rendered: str, literal: Sequence[Span]) -> tuple[str, list[Span]]:
        """The rendered text and its spans, up to the end of the last message.

        Raises:
            ChatTemplateError: the template does not write the last message's content.
        """
        end = rendered.rfind(self._mark)
        if end < 0:
            raise ChatTemplateError(
                "the chat template does not write the last message as it is: it cannot be continued"
            )
        text = rendered[:end] if rendered.startswith(self._mark + " ", end) else rendered[:end].rstrip()
        return text, [span for span in literal if span[1] <= len(text)]
