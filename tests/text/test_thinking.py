"""A thought has at most as many tokens as its budget, whichever way it begins, and then ends."""

import numpy as np
import pytest

from rocforge.text.chat.harmony import ANALYSIS
from rocforge.text.chat.thoughts import THINK
from rocforge.text.thinking import ThinkingBudget

PIECES = [b"<think>", b"</think>", b"a", b"\n", "é".encode()[:1], "é".encode()[1:], b"<thi", b"nk>", b"<|end|>",
          b"<|channel|>analysis<|message|>", b"<|start|>assistant", b"<|channel|>final<|message|>"]  # fmt: skip
A, LINE, FIRST, SECOND = 2, 3, 4, 5


class Tokens:
    """A tokenizer of these pieces."""

    vocab_size = len(PIECES)

    def token_bytes(self, token):
        return PIECES[token]

    def encode(self, text, add_special_tokens):
        ids = []
        while text:
            ids.append(next(i for i, piece in enumerate(PIECES) if text.encode().startswith(piece)))
            text = text.removeprefix(PIECES[ids[-1]].decode())
        return ids


def written(wanted, budget, marks=THINK, opened=False):
    """What a model that wants these tokens writes, as text, and how many of them are asked about."""
    options = {**marks._asdict(), "forced": marks.forced or (marks.end,)}
    limit, text, asked, wanted = ThinkingBudget(Tokens(), budget, opened=opened, **options), b"", 0, list(wanted)
    while wanted:
        allowed = np.flatnonzero(np.unpackbits(limit.bits().view(np.uint8), bitorder="little")[: len(PIECES)])
        token = wanted.pop(0) if len(allowed) > 1 else int(allowed[0])
        text, asked = text + PIECES[token], asked + 1
        if limit.accept(token):
            break
    limit.close()
    return (text + b"".join(PIECES[token] for token in wanted)).decode(), asked


@pytest.mark.parametrize(
    "wanted, budget, opened, text, asked",
    [
        ([0, A, A, A, A], 2, False, "<think>aa</think>aa", 4),
        ([A, A, A], 2, True, "aa</think>a", 3),
        ([A, A, A], 0, True, "</think>aaa", 1),
        ([LINE, 6, 7, A], 0, False, "\n<think></think>a", 4),
        ([0, A, 1, A], 2, False, "<think>a</think>a", 3),
        ([A, 0, A], 0, False, "a<think>a", 1),
        ([FIRST, SECOND, A], 1, True, "é</think>a", 3),
        ([6, A], 0, False, "<thia", 2),
    ],
)
def test_a_thought(wanted, budget, opened, text, asked):
    """It ends after the budget, or by itself; a character is completed first; a reply without one is left alone."""
    assert written(wanted, budget, opened=opened) == (text, asked)


def test_thoughts_of_harmony():
    """The first that is too long ends; one that comes after it is followed by the content's header."""
    text, _ = written([9, A, A, 10, 9, A, A], 1, ANALYSIS)
    analysis = "<|channel|>analysis<|message|>"
    final = "<|end|><|start|>assistant<|channel|>final<|message|>"
    assert text == f"{analysis}a<|end|>a<|start|>assistant{analysis}{final}aa"
