"""Low-rank updates on a device against W + scale * B A in float64: adapters of any rank, and tokens without one."""

import cupy as cp
import numpy as np
import pytest
from golden import relative_error

from rocforge.ops.low_rank import MAX_RANK, LowRank, LowRankTable, add_low_rank

pytestmark = pytest.mark.slow

CLOSE = 1e-3
"""Relative error of float16 matrices and float32 sums."""


def random_update(rng, rank, rows, columns, size=1.0):
    a, b = rng.standard_normal((rank, columns)) * size, rng.standard_normal((rows, rank)) / size
    return LowRank(a.astype(np.float32), b.astype(np.float32), float(rng.uniform(0.1, 3)))


def table_of(updates, rows, columns, lookup=False):
    rank = max(update.rank for update in updates if update)
    table = LowRankTable(rows, columns, len(updates), rank, True, lookup)
    table.fill(dict(enumerate(updates)))
    return table


def expected(y, x, updates, ids):
    """In float64."""
    y = y.astype(np.float64)
    for token, id in enumerate(ids):
        if id >= 0 and (update := updates[id]) is not None:
            hidden = update.a.astype(np.float64) @ x[token].astype(np.float64)
            y[token] += update.scale * (update.b.astype(np.float64) @ hidden)
    return y


SMALL, ODD = (256, (320, 64, 64), (8, 16, 3)), (100, (37,), (MAX_RANK, 1, 20))
"""Columns, rows of each matrix, and ranks of the adapters."""


@pytest.mark.parametrize(("tokens", "sizes"), [(1, SMALL), (1, ODD), (3, ODD), (70, SMALL), (150, SMALL)])
def test_updates(rng, tokens, sizes):
    """Three products of one x, or one of odd sizes; some tokens have no adapter, some adapters no update of a table."""
    columns, rows, ranks = sizes
    updates = [[random_update(rng, rank, size, columns) for rank in ranks] for size in rows]
    updates[-1][1] = None
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    ids = rng.integers(-1, len(ranks), tokens).astype(np.int32)
    before = [rng.standard_normal((tokens, size)).astype(np.float32) for size in rows]
    ys = [cp.asarray(y) for y in before]
    tables = [table_of(own, size, columns) for own, size in zip(updates, rows, strict=True)]
    add_low_rank(ys, cp.asarray(x), tables, cp.asarray(ids))
    for y, first, own in zip(ys, before, updates, strict=True):
        assert relative_error(y.get(), expected(first, x, own, ids)) < CLOSE
        np.testing.assert_array_equal(y.get()[ids < 0], first[ids < 0])


def test_results_that_are_parts_of_wider_rows(rng):
    """As the BLAS library's products of several weights at a time are."""
    updates = [random_update(rng, 8, 64, 96)]
    x, wide = rng.standard_normal((5, 96)).astype(np.float32), cp.zeros((5, 200), np.float32)
    add_low_rank([wide[:, 100:164]], cp.asarray(x), [table_of(updates, 64, 96)], cp.zeros(5, np.int32))
    wide = wide.get()
    assert relative_error(wide[:, 100:164], expected(np.zeros((5, 64)), x, updates, [0] * 5)) < CLOSE
    assert not wide[:, :100].any() and not wide[:, 164:].any()


def test_values_far_from_one_keep_their_bits(rng):
    """Trained matrices may be smaller, and larger, than float16 holds well."""
    updates = [random_update(rng, 16, 64, 64, size) for size in (1e-7, 1e6)]
    x, ids = rng.standard_normal((2, 64)).astype(np.float32), np.array([0, 1], np.int32)
    y = cp.zeros((2, 64), np.float32)
    add_low_rank([y], cp.asarray(x), [table_of(updates, 64, 64)], cp.asarray(ids))
    for token in ids:
        wanted = expected(np.zeros((2, 64)), x, updates, ids)[token]
        assert relative_error(y.get()[token], wanted) < CLOSE


def test_embeddings(rng):
    """An embedding's rows by token id."""
    updates = [random_update(rng, rank, 64, 50) for rank in (4, 12)]
    tokens, ids = rng.integers(0, 50, 9).astype(np.int32), rng.integers(-1, 2, 9).astype(np.int32)
    y = cp.zeros((9, 64), np.float32)
    add_low_rank([y], cp.asarray(tokens), [table_of(updates, 64, 50, lookup=True)], cp.asarray(ids))
    one_hot = np.eye(50, dtype=np.float32)[tokens]
    assert relative_error(y.get(), expected(np.zeros((9, 64)), one_hot, updates, ids)) < CLOSE


def test_an_entry_is_taken_away(rng):
    """What is None again adds nothing."""
    table = table_of([random_update(rng, 8, 32, 32)], 32, 32)
    table.fill({})
    y = cp.zeros((1, 32), np.float32)
    add_low_rank([y], cp.ones((1, 32), np.float32), [table], cp.zeros(1, np.int32))
    assert not y.get().any()
