"""Sums of squares on a device, as on the host."""

import numpy as np
import pytest

import rocforge as rf
from rocforge.ops.importance import add_squares

pytestmark = pytest.mark.any_wave


@pytest.mark.parametrize("pairs", [False, True])
def test_add_squares(rng, pairs):
    """Twice: for one matrix, and for experts, given a row a token or a row a token-expert pair."""
    for ids in (None, rng.integers(0, 3, (9, 2)).astype(np.int32)):
        x = rng.normal(size=(18 if pairs and ids is not None else 9, 40)).astype(np.float32)
        matrices = 1 if ids is None else 4
        host = np.zeros((matrices, 40), np.float32), np.zeros(matrices, np.float32)
        device = [rf.to_device(each, "gpu") for each in host]
        for _ in range(2):
            add_squares(*host, x, ids)
            add_squares(*device, rf.to_device(x, "gpu"), None if ids is None else rf.to_device(ids, "gpu"))
        assert np.allclose(rf.asnumpy(device[0]), host[0], rtol=1e-5)
        assert (rf.asnumpy(device[1]) == host[1]).all() and host[1].sum() == 2 * (9 if ids is None else 18)
