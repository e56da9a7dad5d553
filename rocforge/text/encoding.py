"""BatchEncoding: what a tokenizer's call gives, under Hugging Face's names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np


class BatchEncoding(dict[str, Any]):
    """Token ids of a text, or of several, as items and as attributes: "input_ids" and "attention_mask".

    The mask is 1 for each token and 0 for padding. Both are lists of integers, or lists of these for several texts, or
    int64 arrays of shape (texts, tokens).
    """

    @property
    def input_ids(self) -> Any:
        """The token ids."""
        return self["input_ids"]

    @property
    def attention_mask(self) -> Any:
        """1 for each token, 0 for padding."""
        return self["attention_mask"]


def batch_encoding(
    sequences: Sequence[list[int]], padding: bool | str, max_length: int | None, pad_id: int, return_tensors: str | None
) -> BatchEncoding:
    """The encoding of several texts; arguments as in a call of the tokenizer, with the id that pads.

    Raises:
        ValueError: an argument that is not allowed, or arrays of rows of several lengths.
    """
    if return_tensors not in (None, "np"):
        raise ValueError(f'return_tensors is {return_tensors!r}; allowed are "np" and None: rocforge uses NumPy arrays')
    width = _padded_width(padding, max_length, max(map(len, sequences), default=0))
    ids = [ids + [pad_id] * (width - len(ids)) for ids in sequences]
    mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences]
    if return_tensors is None:
        return BatchEncoding(input_ids=ids, attention_mask=mask)
    if len({len(row) for row in ids}) > 1:
        raise ValueError("texts of several lengths make no array: pass padding=True too, or leave return_tensors out")
    return BatchEncoding(input_ids=np.array(ids, np.int64), attention_mask=np.array(mask, np.int64))


def _padded_width(padding: bool | str, max_length: int | None, longest: int) -> int:
    """Ids of each sequence, at least; 0 without padding."""
    if padding == "max_length":
        if max_length is None:
            raise ValueError('padding="max_length" needs max_length')
        return max_length
    if padding not in (False, True, "longest"):
        raise ValueError(f'padding is {padding!r}; allowed are True, False, "longest" and "max_length"')
    return longest if padding else 0


def as_ids(ids: Any) -> list[int]:
    """Token ids, or one, as a list of Python's integers.

    Raises:
        TypeError: something else.
    """
    given = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(given, Integral):
        return [int(given)]
    found = list(given) if isinstance(given, Iterable) and not isinstance(given, (str, bytes)) else [given]
    wrong = next((id for id in found if not isinstance(id, Integral)), None)
    if wrong is not None or given is None:
        several = ": batch_decode takes several sequences" if isinstance(wrong, (list, tuple)) else ""
        raise TypeError(f"token ids hold {wrong!r:.80}; allowed are integers{several}")
    return [int(id) for id in found]
