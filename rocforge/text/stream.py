"""TextStream: a request's tokens as text, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from rocforge.text.tokenizer import Tokenizer


class TextStream:
    """Turns tokens into text as they come. Text that may begin a stop string is buffered.

    Args:
        tokenizer: of the model.
        stop: strings that end the text, and are not part of it.
        previous: the prompt's last token.

    Attributes:
        stopped: the stop string that was met, or None; the text is complete with it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), previous: int | None = None):
        self._detokenizer = tokenizer.detokenizer(previous_id=previous)
        self._stop, self._buffered = tuple(stop), ""
        self.stopped: str | None = None

    def add(self, token: int) -> str:
        """The text that this token makes final."""
        return self._emit(self._detokenizer.add(token))

    def finish(self) -> str:
        """The text still buffered; no token follows."""
        text = self._emit(self._detokenizer.finish())
        if self.stopped is None:
            text, self._buffered = text + self._buffered, ""
        return text

    def _emit(self, text: str) -> str:
        if not self._stop:
            return text
        if self.stopped is not None:
            return ""
        text = self._buffered + text
        found = [(index, stop) for stop in self._stop if (index := text.find(stop)) >= 0]
        if found:
            end, self.stopped = min(found)
            self._buffered = ""
            return text[:end]
        size = overlap(text, *self._stop)
        self._buffered = text[len(text) - size :]
        return text[: len(text) - size]


def overlap(text: str, *marks: str) -> int:
    """Length of the longest suffix of text that begins one of some marks, and is not all of it.

    >>> overlap("a </", "</a>", "<b>")
    2
    """
    return max((_overlap(text, mark) for mark in marks), default=0)


def _overlap(text: str, mark: str) -> int:
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
