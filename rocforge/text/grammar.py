"""Structured output: texts that obey a JSON schema, a regular expression or a grammar.

Needs the extra `server`. The grammar says which tokens may come next; the others' logits become -inf. Each grammar is
compiled and followed in a process of its own (`rocforge.text.jail`), since a short one can ask for any time and memory.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rocforge.text.jail import Cell, Jail, JailError, LimitError
from rocforge.text.schemas import json_rule
from rocforge.text.special_tokens import SpecialTokens
from rocforge.text.tokenizer import Tokenizer

COMPILE_SECONDS = 2.0
"""CPU time in which a grammar is compiled and its first mask computed."""
PATIENCE = 1.0
"""Seconds that a text may stall the engine for its masks; each token returns `PATIENCE_PER_TOKEN`, up to this limit."""
PATIENCE_PER_TOKEN = 0.02


class GrammarError(ValueError):
    """A schema, pattern or grammar that is wrong, not supported or too complex."""


class Grammar:
    """The state of one text under a grammar: a Constraint of the engine. `close` ends its process."""

    def __init__(self, cell: Cell, mask: bytes):
        self._cell, self._mask = cell, mask
        self._patience = PATIENCE

    def bits(self) -> np.ndarray:
        """Which tokens may come next: uint32, a bit for each token from the least significant on. Waits for the cell.

        Raises:
            GrammarError: the grammar is too complex.
        """
        if not self._mask:
            self._mask = self._awaited()
        return np.frombuffer(self._mask, np.uint32)

    def accept(self, token: int) -> None:
        """Note the token that was chosen. The next mask is computed from now on, beside the model's step."""
        with _explained():
            self._cell.send(PATIENCE, "accept", token)
        self._mask = b""

    def copy(self) -> Grammar:
        """A Grammar for another text; this one must still be at its beginning."""
        with _explained():
            return Grammar(self._cell.fork(), self._mask)

    def close(self) -> None:
        """End the process; idempotent."""
        self._cell.close()

    @property
    def closed(self) -> bool:
        return self._cell.closed

    def _awaited(self) -> bytes:
        start = time.monotonic()
        try:
            mask = self._cell.receive(self._patience)
        except LimitError:
            raise GrammarError("the grammar is too complex: computing the next token mask takes too long") from None
        except JailError as error:
            raise GrammarError(str(error)) from None
        left = self._patience - (time.monotonic() - start)
        self._patience = min(PATIENCE, left + PATIENCE_PER_TOKEN)
        return mask


class GrammarCompiler:
    """Makes Grammars for one tokenizer.

    Args:
        tokenizer: of the model. The first grammar takes a moment more for a large vocabulary.

    Every method raises GrammarError where its grammar is wrong, not supported or too complex.
    """

    def __init__(self, tokenizer: Tokenizer):
        if not tokenizer.eog_token_ids:
            raise GrammarError("structured output needs an end-of-generation token; the model has none")
        self._special = SpecialTokens(tokenizer.special_tokens)
        self._jail = Jail("rocforge.text.matcher", "Matcher", tokenizer)

    def json_schema(self, schema: Mapping[str, Any] | bool) -> Grammar:
        """Texts that are JSON of a schema; `{"type": "object"}` for any object."""
        try:
            rule = json_rule(schema)
        except RecursionError:
            raise GrammarError("the schema is nested too deeply") from None
        return self.lark(f"start: json\njson: {rule}")

    def regex(self, pattern: str) -> Grammar:
        """Texts that match a regular expression (Rust's syntax) as a whole."""
        return self._compiled("regex", pattern)

    def lark(self, grammar: str) -> Grammar:
        """Texts of a grammar in llguidance's dialect of Lark, starting at `start`."""
        return self._compiled("lark", grammar)

    def literal(self, text: str) -> str:
        """Lark for exactly this text, in which the texts of special tokens are those tokens."""
        parts = self._special.split(text)
        return " ".join(json.dumps(part) if isinstance(part, str) else f"<[{part}]>" for part in parts)

    def _compiled(self, kind: str, source: str) -> Grammar:
        with _explained():
            cell = self._jail.cell()
            return Grammar(cell, cell.call(COMPILE_SECONDS, kind, source))


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except LimitError as error:
        raise GrammarError(f"the grammar is too complex: {error}") from None
    except JailError as error:
        raise GrammarError(str(error)) from None
