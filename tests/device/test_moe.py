"""Routing, grouping and the sum over experts on a device, against the NumPy code and float64 arithmetic."""

from __future__ import annotations

import cupy as cp
import numpy as np
import pytest

from rocforge.ops.moe import experts, group_by_expert, route


@pytest.mark.parametrize("softmax_before, normalize", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("tokens, count, used", [(1, 8, 2), (5, 128, 8), (33, 60, 4), (3, 4, 4)])
def test_route(tokens: int, count: int, used: int, softmax_before: bool, normalize: bool):
    logits = np.random.default_rng(count).standard_normal((tokens, count), np.float32) * 3
    ids, weights = route(cp.asarray(logits), used, softmax_before, normalize)
    expected_ids, expected = route(logits.astype(np.float64), used, softmax_before, normalize)
    assert (ids.get() == expected_ids).all()
    assert np.allclose(weights.get(), expected, rtol=1e-5)


def test_route_takes_the_lowest_of_equals():
    logits = np.zeros((2, 100), np.float32)
    logits[1, [99, 7, 50]] = 1
    ids, _ = route(cp.asarray(logits), 4)
    assert ids.get().tolist() == [[0, 1, 2, 3], [7, 50, 99, 0]]


@pytest.mark.parametrize("tokens, used, count", [(1, 1, 1), (1, 8, 128), (100, 4, 32), (301, 3, 5)])
def test_groups(tokens: int, used: int, count: int):
    """A stable sort by expert, with experts that nobody chose."""
    ids = np.random.default_rng(tokens).integers(0, count, (tokens, used)).astype(np.int32)
    ids[ids == count // 2] = 0
    on_device, on_host = group_by_expert(cp.asarray(ids), count), group_by_expert(ids, count)
    for name in on_host._fields:
        assert (getattr(on_device, name).get() == getattr(on_host, name)).all(), name
    flat = ids.reshape(-1)[on_host.order]
    assert all((flat[on_host.offsets[e] : on_host.offsets[e + 1]] == e).all() for e in range(count))
    assert (on_host.order[on_host.rank] == np.arange(ids.size)).all()


def test_experts():
    rng = np.random.default_rng(0)
    x, matrices = rng.standard_normal((19, 70), np.float32), rng.standard_normal((6, 70, 70), np.float32)
    ids = np.argsort(rng.random((19, 6)), axis=1)[:, :3]
    ids[ids == 4] = 5
    weights = rng.random((19, 3), np.float32)
    on_device = cp.asarray(matrices)
    y = experts(cp.asarray(x), cp.asarray(ids), cp.asarray(weights), lambda e, rows: rows @ on_device[e])
    expected = np.einsum("tu,td,tude->te", weights.astype(np.float64), x, matrices[ids])
    assert np.linalg.norm(y.get() - expected) < 1e-5 * np.linalg.norm(expected)
