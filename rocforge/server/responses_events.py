"""A reply as a response: its items, and the events of their stream.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rocforge.engine.response import GenerationResponse
from rocforge.server.blocks import Blocks
from rocforge.server.body import parse_object
from rocforge.server.errors import APIError
from rocforge.server.events import event
from rocforge.server.jobs import Job
from rocforge.server.logprobs import chat_logprobs
from rocforge.server.responses_input import OfferedTool, encrypted
from rocforge.text.chat.reply import CountedParser
from rocforge.text.tokenizer import Tokenizer

_TYPES = {"text": "message", "reasoning": "reasoning", "function": "function_call", "custom": "custom_tool_call"}
"""A block, or a tool, -> the type of its item."""
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"}
_DELTAS = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
}


class ResponseEvents(Blocks):
    """Writes the items of a response, and their events, from its reply.

    Args:
        response: as it begins; complete at the end.
        job: whose reply it is.
        parser: of the reply.
        tools: a function's name -> the tool that it stands for.
        logprobs_by: the tokenizer, where log-probabilities are wanted.
        encrypts: whether reasoning has `encrypted_content`.
    """

    def __init__(
        self,
        response: dict[str, Any],
        job: Job,
        parser: CountedParser,
        tools: Mapping[str, OfferedTool],
        logprobs_by: Tokenizer | None = None,
        encrypts: bool = False,
    ):
        super().__init__(parser, parallel=response["parallel_tool_calls"])
        self.response, self._job, self._tools = response, job, tools
        self._logprobs_by, self._encrypts = logprobs_by, encrypts
        self._numbers = itertools.count()
        self._item: dict[str, Any] = {}
        self._written: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def start(self) -> bytes:
        """The first events."""
        return self._of_response("response.created") + self._of_response("response.in_progress")

    def finish(self) -> bytes:
        """The last event of a reply that has ended."""
        if self.cut:
            self.response |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
            return self._of_response("response.incomplete")
        said = any(item["type"] != "reasoning" for item in self.response["output"])
        events = [] if said else [*self._open("text"), *self.close()]  # clients expect an answer, be it empty
        self.response |= {"status": "completed", "completed_at": int(time.time())}
        return b"".join(events) + self._of_response("response.completed")

    def fail(self, error: APIError) -> bytes:
        """The last events of a reply that has failed, or was cancelled."""
        self.cut = True
        events = [*self.close()]
        self.response["status"] = "cancelled" if error.type == "cancelled" else "failed"
        self.response["error"] = {"code": error.code or error.type, "message": error.message}
        return b"".join(events) + self._of_response("response.failed")

    def begin(self, kind: str, name: str) -> Iterator[bytes]:
        tool = self._tools.get(name, OfferedTool("function", name))
        type = _TYPES[tool.type if kind == "call" else kind]
        item: dict[str, Any] = {"id": f"{_PREFIXES[type]}_{secrets.token_hex(12)}", "type": type}
        item["status"] = "in_progress"
        if kind == "text":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        else:
            space = {"namespace": tool.namespace} if tool.namespace else {}
            item |= {"call_id": f"call_{secrets.token_hex(12)}", "name": tool.name, **space}
            item["arguments" if tool.type == "function" else "input"] = ""
        self._item, self._written, self._logprobs = item, [], []
        self.response["output"].append(item)
        yield self._event("response.output_item.added", item=item)
        if kind != "call":
            yield self._of_item("response.content_part.added", part=self._part(""))

    def extend(self, kind: str, text: str, piece: GenerationResponse | None) -> Iterator[bytes]:
        self._written.append(text)
        found: list[dict[str, Any]] = []
        if self._logprobs_by and piece and kind == "text":
            found = chat_logprobs(self._logprobs_by, [piece])["content"]
            self._logprobs += found
        if self._item["type"] != "custom_tool_call":  # of which the input is known at the end
            yield self._of_item(f"{self._delta}.delta", delta=text, **({"logprobs": found} if kind == "text" else {}))

    def end(self, kind: str) -> Iterator[bytes]:
        item, text = self._item, "".join(self._written)
        item["status"] = "incomplete" if self.cut else "completed"
        if kind == "call":
            name = "arguments" if item["type"] == "function_call" else "input"
            item[name] = text if name == "arguments" else _input(text)
            if name == "input":
                yield self._of_item(f"{self._delta}.delta", delta=item[name])
            yield self._of_item(f"{self._delta}.done", **{name: item[name]})
        else:
            part = self._part(text)
            item["content"] = [part]
            if kind == "reasoning" and self._encrypts:
                item["encrypted_content"] = encrypted(text)
            done = {name: part[name] for name in ("text", "logprobs") if name in part}
            yield self._of_item(f"{self._delta}.done", **done)
            yield self._of_item("response.content_part.done", part=part)
        yield self._event("response.output_item.done", item=item)

    @property
    def _delta(self) -> str:
        """What the events of the item's text are called."""
        return _DELTAS[self._item["type"]]

    def _part(self, text: str) -> dict[str, Any]:
        """The one part of the item's content."""
        if self._item["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs}

    def _of_response(self, type: str) -> bytes:
        ended = self.response["status"] != "in_progress"
        self.response["usage"] = self._usage if ended else None
        return self._numbered(type, response=self.response)

    def _of_item(self, type: str, **fields: Any) -> bytes:
        place = {} if "call" in self._item["type"] else {"content_index": 0}
        return self._event(type, item_id=self._item["id"], **place, **fields)

    def _event(self, type: str, **fields: Any) -> bytes:
        return self._numbered(type, output_index=len(self.response["output"]) - 1, **fields)

    def _numbered(self, type: str, **fields: Any) -> bytes:
        return event({"type": type, "sequence_number": next(self._numbers), **fields})

    @property
    def _usage(self) -> dict[str, Any]:
        usage = self._job.usage
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self.parser.reasoning_tokens},
            "total_tokens": usage["total_tokens"],
        }


def _input(arguments: str) -> str:
    """The text that a custom tool gets; what is no such text is given as it is."""
    text = parse_object(arguments).get("input")
    return text if isinstance(text, str) else arguments
