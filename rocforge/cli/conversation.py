"""A chat on one engine: its messages, and the replies to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rocforge.engine.engine import Engine
from rocforge.engine.request import Status
from rocforge.engine.response import GenerationResponse, RequestStream
from rocforge.ops.sampling import SamplingParams
from rocforge.text.tokenizer import Tokenizer


class Conversation:
    """Messages and replies. A turn computes only what follows its common prefix with the turn before (prefix cache).

    Args:
        engine: kept open by the caller.
        tokenizer: of its model.
        chat_template: a Jinja template, or None for the model's own.
        system: the system message, or None.
        lora: the name of the adapter that replies, or None.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        system: str | None = None,
        lora: str | None = None,
    ):
        self._engine, self._tokenizer, self._template, self._lora = engine, tokenizer, chat_template, lora
        self._system = system
        self._turns: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """Role and content of each message, the system message first."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        return system + self._turns

    def reset(self) -> None:
        """Forget all but the system message."""
        self._turns = []

    def set_system(self, text: str | None) -> None:
        """Replace or remove the system message, and start over."""
        self._system = text
        self.reset()

    def forget_reply(self) -> str | None:
        """Remove the last question and its reply; returns the question, or None if there is none."""
        last, self._turns = self._turns[-2:], self._turns[:-2]
        return last[0]["content"] if last else None

    def reply(
        self, text: str, sampling: dict[str, Any], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[GenerationResponse]:
        """Send a message, and stream the reply.

        Args:
            text: the user's message.
            sampling: arguments of SamplingParams.
            stopped: polled between the engine's steps; when True, the reply ends, and what was generated stays in
                the conversation.

        Raises:
            ValueError: the conversation exceeds the context; it is left unchanged.
            ChatTemplateError: there is no template, or it refuses the messages; likewise.
        """
        question = {"role": "user", "content": text}
        ids = self._tokenizer.apply_chat_template([*self.messages, question], chat_template=self._template)
        stream = RequestStream(self._engine, self._tokenizer, ids, SamplingParams(**sampling, lora=self._lora))
        pieces: list[str] = []
        try:
            while stream.request.status is not Status.FINISHED and not stopped():
                for token in self._engine.step():
                    response = stream.add(token)
                    pieces.append(response.text)
                    yield response
        finally:
            self._engine.cancel(stream.request)
            self._turns += [question, {"role": "assistant", "content": "".join(pieces)}]
