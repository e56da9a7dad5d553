"""The sequence breakers of DRY as token ids, for an engine, which knows no text."""

from __future__ import annotations

from dataclasses import replace

from rocforge.ops.dry import Breakers
from rocforge.ops.sampling import SamplingParams
from rocforge.text.breakers import sequence_breakers
from rocforge.text.tokenizer import Tokenizer


def with_breakers(params: SamplingParams, tokenizer: Tokenizer) -> SamplingParams:
    """The params with token ids for the texts of dry_sequence_breakers, where they have DRY."""
    if not params.dry_multiplier:
        return params
    ids: list[str | tuple[int, ...]] = []
    for breaker in params.dry_sequence_breakers:
        ids += sequence_breakers(tokenizer, breaker) if isinstance(breaker, str) else [tuple(breaker)]
    return replace(params, dry_sequence_breakers=ids)


def breakers_of(params: SamplingParams) -> Breakers | None:
    """What breaks repetitions; None where there is no DRY.

    Raises:
        ValueError: a text is no token ids.
    """
    if not params.dry_multiplier:
        return None
    found: dict[int, list[tuple[int, ...]]] = {}
    for breaker in params.dry_sequence_breakers:
        if isinstance(breaker, str):
            problem = "an engine takes token ids: rocforge.engine.breakers.with_breakers(params, tokenizer)"
            raise ValueError(f"dry_sequence_breakers has the text {breaker!r}; {problem}")
        found.setdefault(breaker[0], []).append(tuple(breaker[1:]))
    return found
