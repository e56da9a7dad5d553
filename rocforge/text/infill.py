"""Prompts for a model that fills in the text between two texts.

Source: https://arxiv.org/abs/2207.14255, and https://arxiv.org/abs/2409.12186 for repositories.
"""

from __future__ import annotations

from collections.abc import Sequence

from rocforge.text.vocabulary import FillInTokens


def infill_prompt(
    tokens: FillInTokens,
    prefix: Sequence[int],
    suffix: Sequence[int],
    before: Sequence[int] = (),
    begin: Sequence[int] = (),
    room: int | None = None,
) -> list[int]:
    """The prompt after which a model writes what is between two texts.

    Args:
        tokens: of its vocabulary.
        prefix, suffix: ids of the text before the gap and of the one after it.
        before: ids of what stands before both, such as other files.
        begin: ids that each prompt begins with.
        room: ids of the prompt, at most; None for no limit. What is farthest from the gap is left out: first of
            `before`, then of a prefix beyond three quarters of the room and of a suffix beyond a quarter.

    >>> infill_prompt(FillInTokens(90, 91, 92, None, None), [1, 2, 3], [7, 8], before=[5, 6], begin=[0], room=10)
    [0, 6, 90, 1, 2, 3, 91, 7, 8, 92]
    """
    if room is not None:
        left = max(0, room - len(begin) - 3)
        kept = min(len(suffix), max(left // 4, left - len(prefix)))
        prefix, suffix = _last(prefix, left - kept), suffix[:kept]
        before = _last(before, left - len(prefix) - kept)
    return [*begin, *before, tokens.prefix, *prefix, tokens.suffix, *suffix, tokens.middle]


def _last(ids: Sequence[int], count: int) -> Sequence[int]:
    return ids[max(0, len(ids) - count) :]
