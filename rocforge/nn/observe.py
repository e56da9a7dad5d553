"""Showing outputs of modules to observers: at once, or once a captured step has been replayed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from rocforge.device.arrays import copied

Observer = Callable[[Any], Any]
"""Called with a module's output; what it returns is ignored."""


class _ThisThread(threading.local):
    recorded: list[tuple[Observer, Any]] | None = None


_this_thread = _ThisThread()


def show(observer: Observer, output: Any) -> None:
    """Call an observer with an output; inside `observations_recorded` keep both instead."""
    if _this_thread.recorded is None:
        observer(output)
    else:
        _this_thread.recorded.append((observer, output))


@contextlib.contextmanager
def observations_recorded() -> Iterator[list[tuple[Observer, Any]]]:
    """In this context, and this thread, what would be shown is put in the list that this gives.

    While a step is captured its arrays have no values yet. The list keeps their memory, so that each replay of the
    graph leaves the values there; `replay` then shows them.
    """
    recorded: list[tuple[Observer, Any]] = []
    _this_thread.recorded = recorded
    try:
        yield recorded
    finally:
        _this_thread.recorded = None


def replay(recorded: list[tuple[Observer, Any]]) -> None:
    """Show what a replayed step left: copies, since the next replay writes to the same memory."""
    for observer, output in recorded:
        observer(copied(output))
