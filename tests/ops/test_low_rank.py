"""Low-rank updates in NumPy, against W + scale * B A in float64."""

import numpy as np
import pytest
from golden import relative_error

from rocforge.ops.low_rank import LowRank, LowRankTable, add_low_rank


def random_update(rng, rank, rows, columns):
    return LowRank(rng.standard_normal((rank, columns)), rng.standard_normal((rows, rank)), rng.uniform(0.1, 3))


@pytest.mark.parametrize("lookup", [False, True])
def test_updates(rng, lookup):
    """Tokens with one of several adapters, or none, and an adapter that does not update the matrix."""
    updates = {0: random_update(rng, 8, 40, 30), 1: None, 2: random_update(rng, 3, 40, 30)}
    table = LowRankTable(40, 30, 3, 8, on_device=False, lookup=lookup)
    table.fill(updates)
    ids = np.array([2, -1, 0, 1, 0, 2], np.int32)
    tokens, x = rng.integers(0, 30, 6), rng.standard_normal((6, 30)).astype(np.float32)
    y = before = rng.standard_normal((6, 40)).astype(np.float32)
    y = y.copy()
    add_low_rank([y], tokens if lookup else x, [table], ids)
    x = np.eye(30)[tokens] if lookup else x.astype(np.float64)
    for row, id in enumerate(ids):
        update = updates.get(int(id))
        if update is None:
            np.testing.assert_array_equal(y[row], before[row])
        else:
            expected = before[row] + update.scale * (update.b @ (update.a @ x[row]))
            assert relative_error(y[row], expected) < 1e-6


def test_entries_come_and_go(rng):
    """What is not given again adds nothing."""
    table, y = LowRankTable(4, 4, 1, 8, on_device=False), np.zeros((1, 4), np.float32)
    table.fill({0: random_update(rng, 2, 4, 4)})
    table.fill({})
    add_low_rank([y], np.ones((1, 4), np.float32), [table], np.zeros(1, np.int32))
    assert not y.any()
