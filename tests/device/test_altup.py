"""Alternating updates on a device against the NumPy code."""

from __future__ import annotations

import cupy as cp
import numpy as np
import pytest

from rocforge.ops import altup
from rocforge.selftest.weights import relative_error

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]


@pytest.mark.parametrize("count, tokens, dim", [(4, 3, 600), (2, 1, 7)])
def test_streams(rng, count: int, tokens: int, dim: int):
    """Every op, of rows longer and shorter than a block."""
    streams = rng.standard_normal((count, tokens, dim), np.float32)
    x, mixed, each = (rng.standard_normal((tokens, n), np.float32) for n in (dim, count * count, count))
    for op, *args in (
        (altup.predict, streams, mixed),
        (altup.correct, streams, x, each, count - 1),
        (altup.add_to_others, streams, x),
        (altup.expand, x, list(streams[1:])),
        (altup.with_length_of, x, streams[0]),
    ):
        y = op(*(on_device(arg) for arg in args))
        assert y.dtype == np.float32 and relative_error(y, op(*args)) < 1e-6, op.__name__


def on_device(arg):
    if isinstance(arg, list):
        return [cp.asarray(a) for a in arg]
    return cp.asarray(arg) if isinstance(arg, np.ndarray) else arg
