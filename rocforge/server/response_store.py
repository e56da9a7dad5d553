"""ResponseStore: responses that clients may continue, read and delete, for a bounded time and in bounded memory."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from typing import Any, NamedTuple

from rocforge.server.body import dump_json

KEPT_SECONDS = 3600.0
"""How long a response is kept after its last change."""
KEPT_BYTES = 64 << 20
"""For all responses, as JSON."""
KEPT_RESPONSES = 1024
QUESTIONS = ("response", "forget response", "item")


class _Entry(NamedTuple):
    record: bytes
    items: frozenset[str]
    until: float


class ResponseStore:
    """Records by the id of their response: `{"response": ..., "input": [items]}`; the oldest go first.

    Args:
        seconds, most_bytes, most: the bounds, as KEPT_SECONDS, KEPT_BYTES and KEPT_RESPONSES.
    """

    def __init__(self, seconds: float = KEPT_SECONDS, most_bytes: int = KEPT_BYTES, most: int = KEPT_RESPONSES):
        self._seconds, self._most_bytes, self._most = seconds, most_bytes, most
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def put(self, response: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """Keep a response, and the items of its input, those before it included."""
        self._drop(response["id"])
        record = dump_json({"response": response, "input": items})
        ids = frozenset(item["id"] for item in [*response["output"], *items])
        self._entries[response["id"]] = _Entry(record, ids, time.monotonic() + self._seconds)
        self._bytes += len(record)
        self._settle()

    def answer(self, question: str, id: str) -> bytes | None:
        """What a question of QUESTIONS about an id is answered."""
        return {"response": self.record, "forget response": self.delete, "item": self.item}[question](id)

    def record(self, id: str) -> bytes | None:
        """The record of a response, as JSON."""
        self._settle()
        entry = self._entries.get(id)
        return entry.record if entry else None

    def item(self, id: str) -> bytes | None:
        """The item of that id, of any response, as JSON."""
        self._settle()
        for entry in reversed(self._entries.values()):
            if id in entry.items:
                record = json.loads(entry.record)
                return dump_json(
                    next(item for item in record["response"]["output"] + record["input"] if item["id"] == id)
                )
        return None

    def delete(self, id: str) -> bytes | None:
        """Forget a response, and return its record."""
        record = self.record(id)
        self._drop(id)
        return record

    def _settle(self) -> None:
        """Drop what is too old, or too much."""
        now = time.monotonic()
        while self._entries:
            id, entry = next(iter(self._entries.items()))
            if entry.until > now and self._bytes <= self._most_bytes and len(self._entries) <= self._most:
                return
            self._drop(id)

    def _drop(self, id: str) -> None:
        entry = self._entries.pop(id, None)
        if entry is not None:
            self._bytes -= len(entry.record)
