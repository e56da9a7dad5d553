"""TextStream: a request's tokens as text, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from rocforge.text.tokenizer import Tokenizer


class TextStream:
    """Turns tokens into text as they come. Text that may be the start of a stop string is held back.

    Args:
        tokenizer: of the model.
        stop: strings that end the text, and are not part of it.
        previous: the prompt's last token.

    Attributes:
        stopped: whether a stop string was met; the text is complete then.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), previous: int | None = None):
        self._detokenizer = tokenizer.detokenizer(previous_id=previous)
        self._stop, self._held = tuple(stop), ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now that this token has come."""
        return self._emit(self._detokenizer.add(token))

    def finish(self) -> str:
        """The text still held back; no token follows."""
        text = self._emit(self._detokenizer.finish())
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _emit(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [index for stop in self._stop if (index := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a beginning of stop."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
