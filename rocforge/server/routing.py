"""Which replica of several a request goes to: one that has its prefix, unless it has far more to do than the others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from rocforge.server.body import dump_json

PROMPTS = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/infill"}
"""Paths of requests with a prompt, whose prefixes replicas keep."""
BEGINNING = 1024
"""Characters of a prompt, or of a user's first message, that tell it from others."""
REMEMBERED = 1 << 16
"""Prefixes whose replicas are remembered."""
_BEFORE = ("lora", "system", "instructions", "input_extra")
_PROMPT = ("messages", "input", "prompt", "input_prefix")


def prefix_of(path: str, body: Any) -> str:
    """A digest of how the conversation or the prompt of a request begins; "" where it has none.

    All turns of a conversation have the same: that of its system messages and of the first that is the user's.
    """
    if path not in PROMPTS or not isinstance(body, Mapping):
        return ""
    prompt = next((body[name] for name in _PROMPT if body.get(name)), None)
    if prompt is None:
        return ""
    turns = _until_user(prompt) if isinstance(prompt, list) else [prompt]
    parts = [dump_json(body.get(name)) for name in _BEFORE]
    parts += [dump_json(turn) for turn in turns[:-1]] + [dump_json(turns[-1])[:BEGINNING]]
    return blake2b(b"\n".join(parts), digest_size=16).hexdigest()


def _until_user(prompt: list[Any]) -> list[Any]:
    """Messages up to the user's first; of other lists, such as token ids, the beginning."""
    for index, turn in enumerate(prompt):
        if isinstance(turn, Mapping) and turn.get("role") == "user":
            return prompt[: index + 1]
    return [prompt[:BEGINNING]]


class Placement:
    """Which replica has which prefix, and how many requests each has in progress."""

    def __init__(self) -> None:
        self._homes: OrderedDict[str, str] = OrderedDict()
        self._running: dict[str, set[str]] = {}

    def choose(self, prefix: str, replicas: Sequence[str]) -> str:
        """The replica for a request.

        It is the one that had the prefix last, unless that is crowded. For other prefixes it follows from the name, so
        that several processes that choose agree, as far as there is not much more to do than elsewhere. What has no
        prefix goes where there is the least to do.

        Args:
            prefix: as of `prefix_of`.
            replicas: names of those that there are, at least one.

        Source: for the bound, Mirrokni, Thorup and Zadimoghaddam, Consistent Hashing with Bounded Loads, 2018.
        """
        load = {name: len(self._running.get(name, ())) for name in replicas}
        mean = sum(load.values()) / len(load)
        home = self._homes.get(prefix)
        if home in load and load[home] <= 1.5 * mean + 1:
            return home
        most = 1.25 * mean + 1 if prefix else min(load.values())
        free = [name for name, count in load.items() if count <= most]
        return max(free, key=lambda name: blake2b(f"{prefix} {name}".encode()).digest())

    def begun(self, prefix: str, replica: str, request: str) -> None:
        """A request, by its id, has gone to a replica."""
        self._running.setdefault(replica, set()).add(request)
        if prefix:
            self._homes[prefix] = replica
            self._homes.move_to_end(prefix)
            if len(self._homes) > REMEMBERED:
                self._homes.popitem(last=False)

    def ended(self, replica: str, request: str) -> None:
        """A request has ended, or was not taken."""
        running = self._running.get(replica, set())
        running.discard(request)
        if not running:
            self._running.pop(replica, None)
