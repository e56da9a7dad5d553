"""What a model takes on a device, and the error where it does not fit; no device is needed to say so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rocforge as rf
from rocforge.engine import capacity
from rocforge.engine.capacity import CacheSizes
from rocforge.loading import fit
from rocforge.loading.fit import check_fit
from rocforge.loading.upload import ALIGNMENT, device_nbytes
from rocforge.nn.state import PagedKV

SIZES = CacheSizes([PagedKV(8, 128, 128)] * 32, "gpu:0")  # 128 KiB a token
CONTEXT = 131072
WEIGHTS = [np.zeros(1 << 20, np.float32), rf.QuantizedArray(np.zeros((512, 2176), np.uint8), (512, 2048), "Q8_0")]


@pytest.fixture
def free(monkeypatch):
    """Sets how much is free."""
    return lambda nbytes: monkeypatch.setattr(fit, "available_memory", lambda device: nbytes)


def test_bytes_of_weights():
    """Planar rows, as they are on a device, and whole steps from one weight to the next."""
    assert device_nbytes(np.zeros(3, np.float32)) == ALIGNMENT and device_nbytes(np.zeros(0, np.float32)) == 0
    assert device_nbytes(WEIGHTS[0]) == 4 << 20 and device_nbytes(WEIGHTS[1]) == 512 * 2176
    padded = rf.QuantizedArray(np.zeros((3, 34), np.uint8), (3, 32), "Q8_0")  # a cell of 128, and 8 bytes of scales
    assert device_nbytes(padded) == 512 >= 3 * (128 + 16)


@settings(deadline=None)
@given(st.integers(0, 1 << 34), st.integers(1, 1 << 20))
def test_check_and_cache_agree(free_bytes, context):
    """A model passes the check just where the cache that is made after its weights holds the context."""
    weights = sum(map(device_nbytes, WEIGHTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "available_memory", lambda device: free_bytes)
        try:
            check_fit(SIZES, WEIGHTS, context, CONTEXT)
            fits = True
        except rf.DeviceError:
            fits = False
        patch.setattr(capacity, "available_memory", lambda device: max(free_bytes - weights, 0))
        try:
            assert (SIZES.tokens_that_fit(context, 1) == context) is fits
        except rf.DeviceError:
            assert not fits


def test_error(free):
    """It names what is needed, what is free, and the context that fits; without one that fits, it names none."""
    free(3 << 30)
    with pytest.raises(rf.DeviceError, match=r"needs 16\.38 GiB .* are free.* \(context=21440 fits\)$"):
        check_fit(SIZES, WEIGHTS, CONTEXT, CONTEXT)
    free(1 << 20)
    with pytest.raises(rf.DeviceError, match=r"\(1,048,576 bytes\) are free; use a smaller quant\w+$"):
        check_fit(SIZES, WEIGHTS, CONTEXT, CONTEXT)


def test_without_a_context(free):
    """A model whose whole context does not fit is loaded, if a useful one does."""
    free(1 << 30)
    check_fit(SIZES, WEIGHTS, None, CONTEXT)
    free(SIZES.nbytes(fit.LEAST_CACHE_TOKENS))
    with pytest.raises(rf.DeviceError, match="a KV cache of 2048 tokens"):
        check_fit(SIZES, WEIGHTS, None, CONTEXT)
