"""Replies: those in progress, into which events are written as text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

from rocforge.engine.core import Event
from rocforge.engine.reply import Progress, Reply


class Observer(Protocol):
    """Callbacks from where replies are written: a service's thread, or the event loop of a server's process."""

    def tokens(self, replies: Sequence[Reply]) -> None:
        """A token has come for each of these."""

    def ended(self, reply: Reply) -> None:
        """A reply has ended, as its `progress` says."""


class Replies:
    """Replies by their keys, until they end.

    Args:
        observer: its callbacks.
    """

    def __init__(self, observer: Observer | None = None):
        self.observer = observer
        self._open: dict[int, Reply] = {}
        self._keys = itertools.count()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Reply]:
        return iter(list(self._open.values()))

    def add(self, reply: Reply) -> None:
        """Give a reply its key."""
        reply.key = next(self._keys)
        self._open[reply.key] = reply

    def discard(self, reply: Reply) -> None:
        """Forget a reply that was refused."""
        self._open.pop(reply.key, None)

    def write(self, events: Sequence[Event], memory: int) -> list[int]:
        """Write what a step brought, and end the replies that are complete.

        Args:
            events: those of replies that have ended are left out.
            memory: bytes reserved.

        Returns:
            The keys of requests to cancel: their text is complete, or failed, before the engine has ended them.
        """
        written: list[Reply] = []
        ended: list[tuple[Reply, Progress, Exception | None]] = []
        cancelled = []
        for event in events:
            reply = self._open.get(event.key)
            if reply is None:
                continue
            if event.error is not None:
                ended.append((reply, Progress.FAILED, event.error))
                continue
            reply.progress = Progress.RUNNING
            if event.token is None:
                continue
            if not reply.completion_tokens:
                reply.cached_tokens = event.cached_tokens
            try:
                reply.write(event.token, event.finish_reason, event.logprobs, memory)
            except Exception as error:
                ended.append((reply, Progress.FAILED, error))
                cancelled.append(event.key)
                continue
            written.append(reply)
            if reply.finish_reason:
                ended.append((reply, Progress.FINISHED, None))
                if not event.finish_reason:
                    cancelled.append(event.key)
        if self.observer and written:
            self.observer.tokens(written)
        for reply, progress, failure in ended:
            self.end(reply, progress, failure)
        return cancelled

    def end(self, reply: Reply, progress: Progress, error: Exception | None = None) -> None:
        """End a reply; no effect where it has ended."""
        if self._open.pop(reply.key, None) is not None:
            reply.end(progress, error)
            if self.observer:
                self.observer.ended(reply)
