"""Types that ops share: what an array is to them, and the tuples that they hand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = Any
"""A NumPy or a CuPy array; CuPy has no types, and an op takes either."""
HostArray: TypeAlias = npt.NDArray[Any]
"""A NumPy array, where only that is meant."""
Floats: TypeAlias = npt.NDArray[np.float32]
"""A NumPy array of float32."""
Weight: TypeAlias = Any
"""A QuantizedArray or an array of numbers, (rows, columns); of experts (experts, rows, columns)."""


class Matrices(NamedTuple):
    """The matrices of all experts for one of their products.

    Attributes:
        weight: QuantizedArray or floats, shape (experts, rows, columns).
        bias: shape (experts, rows), or None.
    """

    weight: Weight
    bias: Array = None


class Part(NamedTuple):
    """A card's part of a table's rows, or of experts.

    Attributes:
        base: the first that it has.
        first, end: which it owns: each is owned by one card.
    """

    base: int
    first: int
    end: int


class Groups(NamedTuple):
    """Token-expert pairs, numbered `token * used + choice`, sorted by expert; int32 arrays.

    Attributes:
        order: the pairs, those of expert 0 first, each expert's in their own order.
        rank: the inverse: where in `order` each pair is.
        offsets: shape (experts + 1,), where in `order` each expert begins, and the end.
    """

    order: Array
    rank: Array
    offsets: Array


class HeadNorm(NamedTuple):
    """A layer norm of each head, with a weight and a bias for each element of all.

    Attributes:
        weight, bias: float32, shape (heads * dim,).
        eps: is added to the variance.
    """

    weight: Array
    bias: Array
    eps: float


class HeadGate(NamedTuple):
    """What the results of attention's heads are multiplied by: a unit of numbers.

    Attributes:
        values: float32, shape (tokens, heads, value_dim), or (tokens, heads, 1) for all elements of a head; it may be
            a part of a wider array, such as a product that holds queries as well.
        unit: "sigmoid" or "softplus".
    """

    values: Array
    unit: str


class ExpertMatrices(NamedTuple):
    """The Matrices of a mixture's three products, as rocforge.ops.moe.experts takes them.

    Attributes:
        gate, up, down: Matrices, or what else has a weight and a bias. Without up, gate has the rows of both.
    """

    gate: Any
    up: Any
    down: Any


class NextNorm(NamedTuple):
    """The rms_norm that follows on a residual stream, and what its result is multiplied with.

    Attributes:
        weight: float32 (n,), the norm's; or None for one.
        eps: of the norm.
        consumers: the weights, or those of a mixture's experts.
        scale: a factor on the norm.
        normalizes: False: there is no norm, and the stream itself is multiplied.
    """

    weight: Array
    eps: float
    consumers: Sequence[Weight] | ExpertMatrices
    scale: float = 1.0
    normalizes: bool = True
