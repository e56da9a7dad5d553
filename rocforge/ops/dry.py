"""DRY: penalties for tokens that would go on with a repetition.

Source: https://github.com/oobabooga/text-generation-webui/pull/5677, in the form of llama.cpp's sampler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rocforge.ops.sampling import SamplingParams

Breakers = Mapping[int, Sequence[Sequence[int]]]
"""A token -> what follows it in a sequence that breaks repetitions; () for a token that does so alone."""
WINDOW = 8192
"""Tokens that are searched, at most: the engine waits for it."""
LONGEST = 256
"""Tokens of a repetition that count: the penalty of more is beyond any logit."""
_LARGEST = float(np.finfo(np.float32).max)


def dry_penalties(tokens: Sequence[int], params: SamplingParams, breakers: Breakers) -> dict[int, float]:
    """What is subtracted from the logits of tokens that would make a repetition longer.

    Args:
        tokens: of the prompt and the text.
        params: dry_multiplier and the others.
        breakers: of the params, for the model's vocabulary.

    >>> params = SamplingParams(dry_multiplier=1, dry_base=2, dry_allowed_length=2)
    >>> dry_penalties([1, 2, 3, 4, 9, 1, 2, 3], params, {})
    {4: 2.0}
    """
    allowed, base = params.dry_allowed_length, params.dry_base
    count = WINDOW if params.dry_penalty_last_n < 0 else min(params.dry_penalty_last_n, WINDOW)
    text = np.asarray(tokens[max(len(tokens) - count, 0) :], np.int64)
    longest = min(_since_breaker(text[-LONGEST:], breakers), len(text) - 1)
    if len(text) <= allowed or longest < allowed:
        return {}
    repeats: dict[int, int] = {}
    ends, size = np.flatnonzero(text[:-1] == text[-1]), 1  # where the last `size` tokens of the text end before
    while len(ends) and size <= longest:
        if size >= allowed:
            repeats |= dict.fromkeys(text[ends + 1].tolist(), size)
        ends = ends[ends >= size]
        ends = ends[text[ends - size] == text[-1 - size]]
        size += 1
    most = int(math.log(_LARGEST) / math.log(base)) if base > 1.000001 else LONGEST
    return {
        token: min(params.dry_multiplier * base ** min(size - allowed, most), _LARGEST)
        for token, size in repeats.items()
        if () not in breakers.get(token, ())
    }


def _since_breaker(text: np.ndarray, breakers: Breakers) -> int:
    """How many tokens there are after the last sequence that breaks repetitions."""
    for behind, token in enumerate(reversed(text.tolist())):
        after = text[len(text) - behind :].tolist()
        found = [len(rest) for rest in breakers.get(token, ()) if list(rest) == after[: len(rest)]]
        if found:
            return behind - max(found)
    return len(text)
