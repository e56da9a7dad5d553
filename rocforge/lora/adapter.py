"""LoRA: an adapter, low-rank updates of a model's matrices by the paths of their modules.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np

from rocforge.ops.low_rank import MAX_RANK, LowRank


class LoRA(Mapping[str, LowRank]):
    """An adapter: module path -> (a, b, scale), which adds `scale * b @ a` to the module's weight (rows, columns).

    `model.adapters["name"] = lora` puts it on a model; `model.adapters.load("name", path)` makes one of a file. It can
    be on several models, and does not change.

        >>> import numpy as np, rocforge as rf
        >>> lora = rf.LoRA({"blk.0.attn_q": (np.ones((8, 256)), np.zeros((256, 8)))}, scale=2.0)
        >>> lora
        LoRA(1 matrix, rank 8)
        >>> (lora * 0.5)["blk.0.attn_q"].scale
        1.0

    Args:
        updates: path, such as "blk.0.attn_q" or "blk.0.attn_q.weight", -> a (rank, columns) and b (rows, rank), NumPy
            arrays of numbers; a scale of its own may follow. Of token_embd the columns are token ids, the rows its
            elements.
        scale: factor on all of it.

    Raises:
        ValueError: there are no updates, shapes that do not fit each other, a rank that is not 1 to 256, or numbers
            that are not finite.
        TypeError: what is no pair of arrays.
    """

    def __init__(self, updates: Mapping[str, Any], scale: float = 1.0):
        if not updates:
            raise ValueError("LoRA: there are no updates; allowed is at least one")
        _check_scale(scale)
        self._updates = {
            path.removesuffix(".weight"): _checked(path, update, float(scale)) for path, update in updates.items()
        }

    def __getitem__(self, path: str) -> LowRank:
        return self._updates[path.removesuffix(".weight")]

    def __iter__(self) -> Iterator[str]:
        return iter(self._updates)

    def __len__(self) -> int:
        return len(self._updates)

    @property
    def rank(self) -> int:
        """The highest of its matrices."""
        return max(update.rank for update in self._updates.values())

    def __mul__(self, scale: float) -> LoRA:
        """The same adapter, so many times as strong."""
        return LoRA(self._updates, scale)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"LoRA({len(self)} {'matrix' if len(self) == 1 else 'matrices'}, rank {self.rank})"


def _check_scale(scale: Any) -> None:
    if not isinstance(scale, Real) or isinstance(scale, bool):
        raise TypeError(f"LoRA: scale is {scale!r}; allowed are numbers")
    if not math.isfinite(scale):
        raise ValueError(f"LoRA: scale is {scale!r}; allowed are finite numbers")


def _checked(path: str, update: Any, scale: float) -> LowRank:
    if not isinstance(update, tuple | list) or len(update) not in (2, 3):
        raise TypeError(f"LoRA: {path} is {type(update).__name__}; allowed are pairs of arrays (a, b)")
    a, b = (np.asarray(part) for part in update[:2])
    own = update[2] if len(update) == 3 else 1.0
    _check_scale(own)
    for name, part in (("a", a), ("b", b)):
        if part.dtype.kind not in "fiu":
            raise TypeError(f"LoRA: {name} of {path} is of {part.dtype}; allowed are numbers")
        if not np.isfinite(part).all():
            raise ValueError(f"LoRA: {name} of {path} has values that are not finite")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(
            f"LoRA: a and b of {path} have the shapes {a.shape} and {b.shape}; "
            "allowed are (rank, columns) and (rows, rank)"
        )
    if not 1 <= len(a) <= MAX_RANK:
        raise ValueError(f"LoRA: {path} has rank {len(a)}; allowed is 1 to {MAX_RANK}")
    return LowRank(a, b, scale * float(own))
