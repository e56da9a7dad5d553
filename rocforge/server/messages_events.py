"""A reply as Anthropic's message: its content, and the events of its stream.

Source: https://docs.claude.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from rocforge.engine.response import GenerationResponse
from rocforge.server.blocks import Blocks
from rocforge.server.body import parse_object
from rocforge.server.errors import APIError
from rocforge.server.events import event
from rocforge.server.jobs import Job
from rocforge.text.chat.reply import CountedParser

_SIGNATURE = "rocforge"
"""Of thinking. Clients send it back; nothing here checks it."""
_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


class MessageEvents(Blocks):
    """Writes the content of a message, and its events, from its reply.

    Args:
        job: whose reply it is.
        parser: of the reply.
        model: its name.
        most: tokens that the reply may have.
        shows: of thinking: its text, or, where it is "omitted", that there was some; None: nothing.
        parallel: whether calls after the first are given.
    """

    def __init__(self, job: Job, parser: CountedParser, model: str, most: int, shows: str | None, parallel: bool):
        super().__init__(parser, parallel)
        self._job, self._most, self._shows = job, most, shows
        self._written: list[str] = []
        self._stop: str | None = None
        self.message: dict[str, Any] = {
            "id": job.id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage,
        }

    def start(self) -> bytes:
        """The first event."""
        return self._event("message_start", message=self.message)

    def finish(self) -> bytes:
        """The last events of a reply that has ended."""
        self.message |= {"stop_reason": self._reason, "stop_sequence": self._stop, "usage": self._usage}
        delta = {name: self.message[name] for name in ("stop_reason", "stop_sequence")}
        last = self._event("message_delta", delta=delta, usage=self.message["usage"])
        return last + self._event("message_stop")

    def fail(self, error: APIError) -> bytes:
        """The last event of a reply that has failed."""
        return event(error.anthropic_body)

    def add(self, piece: GenerationResponse) -> Iterator[bytes]:
        self._stop = piece.stop
        return super().add(piece)

    def begin(self, kind: str, name: str) -> Iterator[bytes]:
        self._written = []
        if kind == "reasoning" and self._shows is None:
            return
        block: dict[str, Any] = {"type": "text", "text": ""}
        if kind == "reasoning":
            block = {"type": "thinking", "thinking": "", "signature": ""}
        elif kind == "call":
            block = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": name, "input": {}}
        self.message["content"].append(block)
        yield self._of_block("content_block_start", content_block=block)

    def extend(self, kind: str, text: str, piece: GenerationResponse | None) -> Iterator[bytes]:
        self._written.append(text)
        if kind != "reasoning" or self._shows == "summarized":
            type, name = _DELTAS[self._block["type"]]
            yield self._of_block("content_block_delta", delta={"type": type, name: text})

    def end(self, kind: str) -> Iterator[bytes]:
        text = "".join(self._written)
        if kind == "reasoning":
            if self._shows is None:
                return
            self._block["signature"] = _SIGNATURE
            self._block["thinking"] = text if self._shows == "summarized" else ""
            yield self._of_block("content_block_delta", delta={"type": "signature_delta", "signature": _SIGNATURE})
        elif kind == "call":
            self._block["input"] = parse_object(text)
        else:
            self._block["text"] = text
        yield self._of_block("content_block_stop")

    @property
    def _block(self) -> dict[str, Any]:
        """The block that is open."""
        block: dict[str, Any] = self.message["content"][-1]
        return block

    @property
    def _reason(self) -> str:
        """Why the reply has ended."""
        if self.cut:
            full = self._job.replies[0].completion_tokens < self._most
            return "model_context_window_exceeded" if full else "max_tokens"
        if self.calls:
            return "tool_use"
        return "end_turn" if self._stop is None else "stop_sequence"

    @property
    def _usage(self) -> dict[str, Any]:
        """Tokens; those that were cached are not among the input's."""
        usage = self._job.usage
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
        }

    def _of_block(self, type: str, **fields: Any) -> bytes:
        return self._event(type, index=len(self.message["content"]) - 1, **fields)

    def _event(self, type: str, **fields: Any) -> bytes:
        return event({"type": type, **fields})
