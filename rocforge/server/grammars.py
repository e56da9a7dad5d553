"""Grammars: the constraints of texts, compiled for the model's tokenizer."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

from rocforge.engine.reply import QueueFullError
from rocforge.engine.request import Constraint
from rocforge.text.grammar import Grammar, GrammarCompiler
from rocforge.text.thinking import ThinkingBudget
from rocforge.text.tokenizer import Tokenizer

MAX_GRAMMARS = 256
"""Constrained texts in progress: each has a process."""
COMPILING = len(os.sched_getaffinity(0))
"""Grammars that are compiled at a time."""


class GrammarSource(NamedTuple):
    """What a text must obey.

    Attributes:
        kind: the method of GrammarCompiler that compiles it; or "thinking", for a ThinkingBudget.
        source: its argument; or those of the budget, by name.
    """

    kind: str
    source: Any


class Grammars:
    """Compiles for one tokenizer; any thread may."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._compiler: GrammarCompiler | None = None
        self._alive: WeakSet[Grammar] = WeakSet()
        self._lock = threading.Lock()

    def compile(self, wanted: GrammarSource, count: int) -> Sequence[Constraint]:
        """A constraint for each of `count` texts.

        Raises:
            GrammarError: it is wrong, not supported or too complex.
            QueueFullError: too many constrained texts are in progress.
        """
        if wanted.kind == "thinking":
            return [ThinkingBudget(self._tokenizer, **wanted.source) for _ in range(count)]
        with self._lock:
            if sum(not grammar.closed for grammar in self._alive) + count > MAX_GRAMMARS:
                raise QueueFullError(f"too many constrained requests; at most {MAX_GRAMMARS} texts run at a time")
            if self._compiler is None:
                self._compiler = GrammarCompiler(self._tokenizer)
        grammar = getattr(self._compiler, wanted.kind)(wanted.source)
        grammars = [grammar, *(grammar.copy() for _ in range(count - 1))]
        with self._lock:
            self._alive.update(grammars)
        return grammars
