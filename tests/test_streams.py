"""Streams on the CPU, where nothing is queued; tests/device/test_streams.py has the rest."""

import numpy as np
import pytest

import rocforge as rf


def test_the_same_code_runs():
    """Copies are copies, done at once, and waiting is no error."""
    stream, x = rf.Stream("cpu"), np.arange(4)
    with stream, stream:
        y = stream.upload(x)
        pending = stream.download(y)
        x[:] = y[:] = 7
    stream.wait_for(rf.Stream("cpu"))
    stream.synchronize()
    assert pending.done and pending.get().tolist() == [0, 1, 2, 3]
    assert repr(stream) == "Stream('cpu')"


@pytest.mark.parametrize("device", ["gpu:", "cuda", "gpu:-1", "cpu:0"])
def test_wrong_device(device):
    with pytest.raises(ValueError, match="allowed are"):
        rf.Stream(device)
