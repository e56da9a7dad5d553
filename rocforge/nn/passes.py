"""Passes of a model over whole token sequences, for those who want values of all tokens: no engine, no sampling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.state import blocks_for
from rocforge.nn.transformer import Transformer

PASS_TOKENS = 2048
"""Tokens of a pass: sequences share it while they fit, and a longer one takes several passes."""


def token_ids(model: Transformer, text: str | Sequence[int], parse_special_tokens: bool = True) -> list[int]:
    """A text's ids by the model's tokenizer, with special tokens around it; or ids, checked.

    Args:
        parse_special_tokens: as in `Tokenizer.encode`.

    Raises:
        TypeError: it is neither. ValueError: ids outside the vocabulary, or a text for a model without a tokenizer.
    """
    if isinstance(text, str):
        if model.tokenizer is None:
            raise ValueError(
                "the model has no tokenizer, which rf.load gives it: pass token ids, or set model.tokenizer"
            )
        return model.tokenizer.encode(text, parse_special_tokens=parse_special_tokens)
    ids = np.asarray(text)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(f"a text is of type {type(text).__name__}; allowed are a str and a list of token ids")
    if ids.size and not 0 <= ids.min() <= ids.max() < model.config.vocabulary:
        raise ValueError(f"a text has a token id outside 0 to {model.config.vocabulary - 1}")
    return [int(id) for id in ids]


def begin_token(model: Transformer) -> int | None:
    """The id that the model's tokenizer puts before each text, if it does."""
    ids = model.tokenizer.encode("") if model.tokenizer else []
    return ids[0] if ids and model.tokenizer and ids[0] == model.tokenizer.bos_token_id else None


class States(NamedTuple):
    """Hidden states of consecutive tokens of one sequence.

    Attributes:
        sequence: its number, from 0.
        start: position of the first token.
        hidden: float32 (tokens, dim), on the model's device.
    """

    sequence: int
    start: int
    hidden: Any


def hidden_states(
    model: Transformer, sequences: Iterable[Sequence[int]], lora: str | None = None, pass_tokens: int | None = None
) -> Iterator[States]:
    """The last hidden states of sequences of token ids, in order, those of a long one in several parts.

    Args:
        lora: the name of the adapter that all have.
        pass_tokens: of one pass, at most; None: PASS_TOKENS. A longer sequence of an encoder takes one pass still, for
            its tokens see those after them.
    """
    pass_tokens = pass_tokens or PASS_TOKENS
    first, placed = 0, None if lora is None else model.adapters.placed(lora)
    for group in _groups(sequences, pass_tokens):
        counts = [blocks_for(len(ids)) for ids in group]
        ends = np.cumsum(counts).tolist()
        cache = model.new_cache(ends[-1], slots=len(group))
        tables = [range(end - count, end) for end, count in zip(ends, counts, strict=True)]
        longest = max(map(len, group))
        step = pass_tokens if model.generates else longest
        for start in range(0, longest, step):
            parts = [ids[start : start + step] for ids in group]
            chunks = [Chunk(start, len(parts[i]), tables[i], slot=i, lora=placed) for i in range(len(group))]
            tokens = np.concatenate([np.asarray(part, np.int32) for part in parts])
            hidden = model.hidden(tokens, Batch.of(cache, chunks, all_logits=True))
            stops = np.cumsum([len(part) for part in parts])
            for number, (stop, part) in enumerate(zip(stops, parts, strict=True), first):
                yield States(number, start, hidden[stop - len(part) : stop])
        first += len(group)


def _groups(sequences: Iterable[Sequence[int]], pass_tokens: int) -> Iterator[list[Sequence[int]]]:
    """Sequences in order, as many as share a pass; one that is longer than that alone."""
    group: list[Sequence[int]] = []
    for ids in sequences:
        if group and sum(map(len, group)) + len(ids) > pass_tokens:
            yield group
            group = []
        group.append(ids)
    if group:
        yield group
