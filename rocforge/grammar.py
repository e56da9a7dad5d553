"""Structured output: texts that obey a JSON schema, a regular expression or a grammar, by llguidance.

Needs the extra `server`. The grammar says which tokens may come next; the others' logits become -inf.

Source: https://github.com/guidance-ai/llguidance
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from rocforge.tokenizer import Tokenizer

LIMITS = LLParserLimits(verbose_errors=False)
JSON_OPTIONS = {"whitespace_pattern": r"[ \t\n]{0,16}"}
"""White space in JSON is bounded, since a model can write it for ever."""


class GrammarError(ValueError):
    """A schema, pattern or grammar that is wrong, not supported or too complex."""


class Grammar:
    """The state of one text under a grammar: a Constraint of the engine."""

    def __init__(self, matcher: LLMatcher):
        self._matcher = matcher

    def mask(self, logits: np.ndarray) -> None:
        """Put -inf in a row of logits (vocabulary,) where a token may not come next.

        Raises:
            GrammarError: the grammar is too complex to go on.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        self._check()
        logits[: len(allowed)][~allowed] = -np.inf
        logits[len(allowed) :] = -np.inf

    def accept(self, token: int) -> None:
        """Note the token that was chosen."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(self._matcher.get_error())


class GrammarCompiler:
    """Makes Grammars for one tokenizer.

    Args:
        tokenizer: of the model. It takes a moment for a large vocabulary.

    Every method raises GrammarError where what it is given is wrong, not supported or too complex.
    """

    def __init__(self, tokenizer: Tokenizer):
        if not tokenizer.eog_token_ids:
            raise GrammarError("the model has no end-of-generation token, without which structured output cannot end")
        self._special = tokenizer.special_tokens
        ends = sorted(tokenizer.eog_token_ids)
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)), eos_token=ends)

    def json_schema(self, schema: Mapping[str, Any] | bool) -> Grammar:
        """Texts that are JSON of a schema; `{"type": "object"}` for any object."""
        try:
            text = json.dumps(schema)
        except RecursionError:
            raise GrammarError("the schema is nested too deeply") from None
        return self._grammar(LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS))

    def regex(self, pattern: str) -> Grammar:
        """Texts that match a regular expression (Rust's syntax) as a whole."""
        return self._grammar(LLMatcher.grammar_from_regex(pattern))

    def lark(self, grammar: str) -> Grammar:
        """Texts of a grammar in llguidance's dialect of Lark, starting at `start`."""
        return self._grammar(LLMatcher.grammar_from_lark(grammar))

    def literal(self, text: str) -> str:
        """Lark for just that text; for a special token's text, that token."""
        return f"<[{self._special[text]}]>" if text in self._special else json.dumps(text)

    def _grammar(self, grammar: str) -> Grammar:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        return Grammar(matcher)


class _Vocabulary:
    """What llguidance wants to know of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self.special_token_ids = list(tokenizer.special_tokens.values())
        self.bos_token_id = tokenizer.bos_token_id
        self.eos_token_id = min(tokenizer.eog_token_ids)

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, parse_special_tokens=False)
