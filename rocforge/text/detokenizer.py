"""Token ids to text, one at a time."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Detokenizer:
    """Turns a stream of token ids into text, incrementally.

    Only the bytes of an incomplete UTF-8 character are buffered; bytes that can no longer form one become U+FFFD at
    once. The concatenation of what `add` and `finish` return is `Tokenizer.decode` of the same ids.
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes], drops_space_after: Callable[[int | None], bool], previous: int | None
    ):
        """`token_bytes(id)` is the token's text; `drops_space_after(id)` says whether one space that begins the text
        after token `id` is the tokenizer's own; `previous` is the id that came before the stream, or None."""
        self._token_bytes = token_bytes
        self._drops_space_after = drops_space_after
        self._previous = previous
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, id: int) -> str:
        """The text that token `id` completes, possibly empty. Raises ValueError where `id` is not in the vocabulary."""
        piece = self._token_bytes(id)
        if piece.startswith(b" ") and self._drops_space_after(self._previous):
            piece = piece[1:]
        self._previous = id
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """What is left: U+FFFD if the stream ended inside a character, else the empty string."""
        return self._utf8.decode(b"", final=True)
