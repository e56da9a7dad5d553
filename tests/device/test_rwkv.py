"""RWKV's kernels against the NumPy code: heads of every size, sequences that go on, that begin, and places without."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import cupy as cp
import numpy as np
import pytest

from rocforge.ops import rwkv
from rocforge.ops.state import RecurrentLayer
from rocforge.ops.types import HeadNorm
from rocforge.selftest.weights import relative_error

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]

POSITIONS, SLOTS = [*range(40, 52), *range(3)], 4
"""12 tokens of a sequence that goes on, in slot 2, and 3 of one that begins, in slot 0."""


def layer(xp: ModuleType, *arrays: np.ndarray) -> RecurrentLayer:
    """On a device there is a place without a sequence between the two, as in a step that is padded."""
    slots, starts = ([2, 0], [0, 12, 15]) if xp is np else ([2, -1, 0], [0, 12, 12, 15])
    places = (xp.array(x, np.int32) for x in (slots, POSITIONS, starts))
    return RecurrentLayer(tuple(map(xp.array, arrays)), *places, most=12)


def check(op: Any, given: dict[str, Any], *arrays: np.ndarray) -> None:
    """What an op gives, and its states after it: as on the CPU; those of other slots as they were."""
    before, after = layer(np, *arrays), layer(cp, *arrays)
    expected = op(state=before, **given)
    y = op(state=after, **{name: on_device(x) for name, x in given.items()})
    assert relative_error(y, expected) < 1e-5
    for one, other, held in zip(before.arrays, after.arrays, arrays, strict=True):
        assert relative_error(other, one) < 1e-5
        np.testing.assert_array_equal(other[[1, 3]].get(), held[[1, 3]])


def on_device(x: Any) -> Any:
    if isinstance(x, tuple):
        return type(x)(*map(on_device, x))
    return cp.asarray(x) if isinstance(x, np.ndarray) else x


@pytest.mark.parametrize("dim", [64, 70])
def test_token_shift(rng, dim: int):
    """One mixture and several, with offsets, and without a trace."""
    x, kept = (rng.standard_normal(shape, np.float32) for shape in ((len(POSITIONS), dim), (SLOTS, 1, dim)))
    mix, offsets = rng.standard_normal((5, dim), np.float32), rng.standard_normal((5, *x.shape), np.float32)
    check(rwkv.token_shift, {"x": x, "mix": mix}, kept)
    check(rwkv.token_shift, {"x": x, "mix": mix, "offsets": offsets}, kept)
    check(partial(rwkv.token_shift, keep=False), {"x": x, "mix": mix[:1]}, kept)


@pytest.mark.parametrize("head", [16, 32, 64, 128])
def test_heads(rng, head: int):
    """Version 7 with and without what it can do without, version 6, and gated linear attention of shared keys."""
    heads = 2

    def rows(*shape: int) -> np.ndarray:
        return rng.standard_normal((*shape, heads * head), np.float32)

    r, k, v, decay, rate, gate, values, share = rows(8, len(POSITIONS))
    states = rng.standard_normal((SLOTS, 1, 8), np.float32), rng.standard_normal((SLOTS, heads, head, head), np.float32)
    norm, first = HeadNorm(rows(), rows(), 64e-5), rwkv.FirstValues(values, share, rows())
    given = {"r": r, "k": k, "v": v, "decay": decay}
    seven = {**given, "rate": rate, "weights": rwkv.Wkv7Weights(*rows(5))}
    check(rwkv.wkv7, {**seven, "norm": norm, "first": first, "gate": gate}, *states)
    check(rwkv.wkv7, seven, *states)
    given["decay_bias"] = rows()
    check(rwkv.wkv6, {**given, "bonus": rows(), "norm": norm, "gate": gate}, *states)
    shared = {**given, "k": k[:, :head], "v": v[:, :head], "q": given.pop("r"), "scale": 0.3, "gate": gate}
    check(rwkv.gated_linear_attention, {name: x for name, x in shared.items() if name != "r"}, *states)


def test_heads_that_no_kernel_takes(rng):
    """They are refused by their size."""
    state = layer(cp, np.zeros((SLOTS, 1, 24, 24), np.float32))
    x, row = cp.zeros((len(POSITIONS), 24), np.float32), cp.zeros(24, np.float32)
    with pytest.raises(ValueError, match="heads of 24 elements; allowed on a device are 16, 32, 64, 128"):
        rwkv.wkv6(x, x, x, x, row, state, bonus=row, norm=HeadNorm(row, row, 1e-5), gate=x)
