"""Indices of arrays whose last axis is packed: which of them take whole rows, by NumPy's rules."""

from __future__ import annotations

from typing import Any

import numpy as np


def row_index(index: Any, ndim: int) -> Any:
    """The index over the leading axes that takes the rows which `index` takes; None where it takes parts of rows."""
    if type(index) is not tuple and index is not None and _axes_of(index) < ndim:
        return index
    entries = expanded(index, ndim)
    if sum(map(_axes_of, entries)) < ndim:
        return entries
    last = entries[-1]
    return entries[:-1] if isinstance(last, slice) and last == slice(None) else None


def expanded(index: Any, ndim: int) -> tuple[Any, ...]:
    """An index as a tuple, with slices in place of its Ellipsis.

    Raises:
        IndexError: it has more than one, or is of more than `ndim` axes.
    """
    entries = index if isinstance(index, tuple) else (index,)
    axes, dots = sum(map(_axes_of, entries)), [i for i, entry in enumerate(entries) if entry is Ellipsis]
    if axes > ndim:
        raise IndexError(f"too many indices: the array has {ndim} axes, and {axes} are indexed")
    if len(dots) > 1:
        raise IndexError("an index can have one Ellipsis (...) only")
    for i in dots:
        entries = (*entries[:i], *[slice(None)] * (ndim - axes), *entries[i + 1 :])
    return entries


def _axes_of(entry: Any) -> int:
    """How many axes an entry of an index is for: a mask is for as many as it has."""
    if type(entry) is int or type(entry) is slice:
        return 1
    if entry is None or entry is Ellipsis or isinstance(entry, bool):
        return 0
    array = np.asarray(entry) if isinstance(entry, list) else entry
    dtype = getattr(array, "dtype", None)
    return array.ndim if dtype is not None and dtype.kind == "b" else 1
