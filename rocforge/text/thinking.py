"""ThinkingBudget: a thought of at most so many tokens. Its end is then forced, as a grammar would."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rocforge.text.tokenizer import Tokenizer


class ThinkingBudget:
    """A Constraint of the engine that lets any token come but where a thought is too long.

    Args:
        tokenizer: of the model.
        tokens: the most that a reply's thoughts may have together.
        begin, end: the marks of a thought.
        opened: whether the prompt ends within a thought.
        forced: what a reply goes on with where its thought is too long; each text once, the last one again and again.
        again: whether there may be thoughts after the first.

    As llama.cpp's: a character that is begun is completed first.
    """

    def __init__(
        self, tokenizer: Tokenizer, tokens: int, begin: str, end: str, opened: bool, forced: Sequence[str], again: bool
    ):
        self._tokenizer, self._left, self._again = tokenizer, tokens, again
        self._begin, self._end = begin.encode(), end.encode()
        self._forced = [tokenizer.encode(text, add_special_tokens=False) for text in forced]
        self._queue: list[int] = []
        self._inside, self._tail = opened, b""
        self._any = np.full(-(-tokenizer.vocab_size // 32), 0xFFFFFFFF, np.uint32)
        if opened:
            self._force()

    def bits(self) -> np.ndarray:
        """Any token, or the next one that is forced."""
        if not self._queue:
            return self._any
        only = np.zeros_like(self._any)
        only[self._queue[0] // 32] = 1 << self._queue[0] % 32
        return only

    def accept(self, token: int) -> bool:
        """Whether no thought can come any more."""
        self._tail += self._tokenizer.token_bytes(token)
        if self._queue:
            del self._queue[0]
            if not self._queue:
                self._tail, self._inside = b"", False
        elif self._inside:
            self._left -= 1
            if self._end in self._tail:
                self._tail, self._inside = b"", False
            else:
                self._force()
        elif self._begin in self._tail:
            self._tail, self._inside = b"", True
            self._force()
        elif not self._again:
            text = self._tail.lstrip()
            return not self._begin.startswith(text)
        self._tail = self._tail[-len(self._begin + self._end) :]
        return not (self._inside or self._queue or self._again)

    def _force(self) -> None:
        """Where nothing is left, go on with what is forced."""
        if self._left <= 0 and not _cut(self._tail):
            self._queue = list(self._forced[0])
            del self._forced[: len(self._forced) > 1]

    def close(self) -> None:
        """It has nothing."""


def _cut(text: bytes) -> bool:
    """Whether it ends within a character.

    >>> _cut("é".encode()[:1]), _cut("é".encode())
    (True, False)
    """
    for count in range(1, min(len(text), 3) + 1):
        byte = text[-count]
        if byte & 0xC0 != 0x80:
            return byte >= 0xC0 and count < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
    return False
