"""Scoring: the log-probability of each token of a sequence, after those before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rocforge.device.arrays import asnumpy
from rocforge.nn.passes import hidden_states
from rocforge.nn.transformer import Transformer
from rocforge.ops.sampling import logprobs

ROWS = 64
"""Tokens whose logits are held at a time."""


def scores_of(sequences: Sequence[Sequence[int]], top: int) -> np.ndarray:
    """Zeros for the scores of sequences: float32 (tokens, 1 + 2 top), of all tokens but the first of each, which has
    none: the token's log-probability, the ids of the likeliest tokens, and theirs."""
    return np.zeros((sum(len(ids) - 1 for ids in sequences), 1 + 2 * top), np.float32)


def score_into(
    scores: np.ndarray,
    model: Transformer,
    sequences: Sequence[Sequence[int]],
    top: int,
    lora: str | None,
    pass_tokens: int | None = None,
) -> Iterator[None]:
    """Compute the scores of sequences of token ids; they are complete when the iterator ends.

    Args:
        scores: those of `scores_of`.
        top: how many of the likeliest tokens.
        lora: the name of the adapter that all have.
        pass_tokens: as in `hidden_states`; between two items is a pass and ROWS logits at most.
    """
    firsts = np.cumsum([0, *(len(ids) - 1 for ids in sequences)]).tolist()
    for number, start, hidden in hidden_states(model, sequences, lora, pass_tokens):
        following = sequences[number][start + 1 : start + 1 + len(hidden)]  # what the states predict
        for row in range(0, len(following), ROWS):
            tokens = following[row : row + ROWS]
            logits = asnumpy(model.logits(hidden[row : row + len(tokens)], lora=lora))
            for index, token in enumerate(tokens):
                found = logprobs(logits[index], token, top)
                scores[firsts[number] + start + row + index] = [found.token, *found.top, *found.top.values()]
            yield
