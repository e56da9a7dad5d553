"""Which adapter each token of a forward pass has: set where the pass begins, read where a module has multiplied.

It is the thread's, and names the tables of the model that runs. So a module adds what adapters of that model add, in
whatever other tree it may stand, and what runs in other threads is another matter.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rocforge.lora.adapter import LoRA
from rocforge.ops.low_rank import MAX_TABLES, LowRank, LowRankTable, add_low_rank
from rocforge.ops.types import Array

Tables = Mapping[Any, LowRankTable]
"""What adapters add to a model's modules."""
_keys = itertools.count()


class PlacedLoRA:
    """An adapter that is on a model. Its id is its own while anything refers to it.

    Attributes:
        lora: the adapter.
        updates: what it adds, by module.
        id: in the model's tables.
        key: of this placing, among all of this process: cache blocks that were computed with it have it in their names.
    """

    def __init__(self, lora: LoRA, updates: Mapping[Any, LowRank], id: int):
        self.lora, self.updates, self.id = lora, updates, id
        self.key = next(_keys).to_bytes(8, "little")


@dataclass(frozen=True)
class TokenAdapters:
    """The adapters of a batch's tokens.

    Attributes:
        tokens: int32 (tokens,): ids in the model's tables, -1 for none.
        rows: int32: of the tokens whose logits are wanted.
    """

    tokens: Array
    rows: Array


@dataclass
class _Pass:
    tables: Tables
    adapters: TokenAdapters
    ids: Array


class _ThisThread(threading.local):
    running: _Pass | None = None


_this_thread = _ThisThread()


@contextlib.contextmanager
def adapted(tables: Tables, adapters: TokenAdapters | None) -> Iterator[None]:
    """In this context and thread, modules add what adapters of these tables add to the tokens."""
    before = _this_thread.running
    _this_thread.running = _Pass(tables, adapters, adapters.tokens) if tables and adapters else None
    try:
        yield
    finally:
        _this_thread.running = before


def wanted_rows_alone() -> None:
    """From here on in this pass there are only the tokens whose logits are wanted."""
    if (running := _this_thread.running) is not None:
        running.ids = running.adapters.rows


def is_updated(module: Any) -> bool:
    """Whether adapters of this pass add to what a module gives."""
    running = _this_thread.running
    return running is not None and module in running.tables


def add_updates(modules: Sequence[Any], ys: Sequence[Array], x: Array) -> None:
    """Add to the products ys of x, one for each module, in place, what the tokens' adapters add to them."""
    running = _this_thread.running
    if running is None:
        return
    found = [(y, running.tables[m]) for m, y in zip(modules, ys, strict=True) if m in running.tables]
    for start in range(0, len(found), MAX_TABLES):
        some = found[start : start + MAX_TABLES]
        add_low_rank([y for y, _ in some], x, [table for _, table in some], running.ids)
