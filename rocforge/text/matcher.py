"""Runs in a cell of `rocforge.text.jail`: llguidance compiles a grammar and follows a text under it.

Source: https://github.com/guidance-ai/llguidance
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from rocforge.text.tokenizer import Tokenizer

_LIMITS = LLParserLimits(verbose_errors=False)
_SCHEMA_ERROR = re.compile(r"at \d+\(\d+\): failed to compile JSON schema: (.*?)\n +\d+ \| ", re.DOTALL)
"""A schema's own error, without the lines of the grammar that it was put into."""


class Matcher:
    """One grammar, and the state of a text under it.

    Every method returns a token mask: one bit a token, least significant bit first, set where it may come next.
    Every method raises ValueError where the grammar is wrong, not supported or too complex.
    """

    def __init__(self, tokenizer: Tokenizer):
        vocabulary = _Vocabulary(tokenizer)
        self._tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=sorted(tokenizer.eog_token_ids))
        vocabulary.greedy = self._tokenizer.greedy_tokenize
        self.regex("a")  # llguidance builds tables at its first grammar; forks share them

    def regex(self, pattern: str) -> bytes:
        return self._begin(LLMatcher.grammar_from_regex(pattern))

    def lark(self, grammar: str) -> bytes:
        """Of a grammar in Lark, or in llama.cpp's GBNF, which defines `root`."""
        if re.search(r"^[ \t]*root[ \t]*::=", grammar, re.MULTILINE):
            try:
                grammar = gbnf_to_lark(grammar)
            except GbnfToLarkError as error:
                raise ValueError(f"GBNF: {error}") from error
        return self._begin(LLMatcher.grammar_from_lark(grammar))

    def accept(self, token: int) -> bytes:
        """Advance past the sampled token."""
        self._matcher.consume_token(token)
        return self._mask()

    def _begin(self, grammar: str) -> bytes:
        self._matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        return self._mask()

    def _mask(self) -> bytes:
        mask = b"" if self._matcher.is_error() else self._matcher.compute_bitmask()
        if self._matcher.is_error():
            text = self._matcher.get_error().partition("<backtrace>")[0].strip()
            schema = _SCHEMA_ERROR.match(text)
            raise ValueError(schema[1] if schema else text)
        return mask


class _Vocabulary:
    """llguidance's view of a tokenizer."""

    greedy: Callable[[str], list[int]]
    """llguidance's own tokenization; set once its tokenizer has been made of this."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self.special_token_ids = list(tokenizer.special_tokens.values())
        self.bos_token_id = tokenizer.bos_token_id
        self.eos_token_id = min(tokenizer.eog_token_ids)

    def __call__(self, text: str) -> list[int]:
        """The tokens of text that a grammar forces, as the model is used to see it where they spell exactly that:
        SentencePiece puts a space before it, at which llguidance panics."""
        ids = self._tokenizer.encode(text, add_special_tokens=False, parse_special_tokens=False)
        return ids if b"".join(self.tokens[id] for id in ids) == text.encode() else self.greedy(text)
