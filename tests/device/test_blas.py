"""The BLAS library's products: where they work, beside those of CuPy's user."""

import cupy as cp
import numpy as np
import pytest

from rocforge.device import blas

pytestmark = pytest.mark.any_wave


def test_cupys_products_after_a_stream_of_ours(rng):
    """They work elsewhere than ours: the workspace of a stream goes with it."""
    x, weight = (cp.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in ((5, 32), (7, 32)))
    y, expected = cp.empty((5, 7), np.float32), x.get() @ weight.get().T
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        blas.gemm(x, weight, y)
        stream.synchronize()
        np.testing.assert_allclose(y.get(), expected, rtol=1e-4, atol=1e-4)
    del stream
    cp.get_default_memory_pool().free_all_blocks()
    np.testing.assert_allclose(cp.dot(x, weight.T).get(), expected, rtol=1e-4, atol=1e-4)
