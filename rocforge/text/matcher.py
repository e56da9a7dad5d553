"""What a cell of `rocforge.text.jail` holds to compile a grammar and to follow a text under it, by llguidance.

Source: https://github.com/guidance-ai/llguidance
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from rocforge.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_LIMITS = LLParserLimits(verbose_errors=False)
_JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": r"[ \t\n]{0,16}"}
"""White space in JSON is bounded, since a model can write it for ever."""


class Matcher:
    """One grammar, and where a text is in it.

    A mask is what each method returns: a bit for each token, the lowest of a byte first, set where it may come next.
    Every method raises ValueError where the grammar is wrong, not supported or too complex.
    """

    def __init__(self, tokenizer: Tokenizer):
        vocabulary = _Vocabulary(tokenizer)
        self._tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=sorted(tokenizer.eog_token_ids))
        vocabulary.greedy = self._tokenizer.greedy_tokenize
        self.regex("a")  # llguidance makes much at its first grammar, which forks then share

    def json_schema(self, schema: str) -> bytes:
        return self._begin(LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS))

    def regex(self, pattern: str) -> bytes:
        return self._begin(LLMatcher.grammar_from_regex(pattern))

    def lark(self, grammar: str) -> bytes:
        return self._begin(LLMatcher.grammar_from_lark(grammar))

    def accept(self, token: int) -> bytes:
        """Go on past the token that was chosen."""
        self._matcher.consume_token(token)
        return self._mask()

    def _begin(self, grammar: str) -> bytes:
        self._matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        return self._mask()

    def _mask(self) -> bytes:
        mask = b"" if self._matcher.is_error() else self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise ValueError(self._matcher.get_error().partition("<backtrace>")[0].strip())
        return mask


class _Vocabulary:
    """What llguidance wants to know of a tokenizer."""

    greedy: Callable[[str], list[int]]
    """llguidance's own tokens of a text, once it has made its tokenizer of this."""

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
