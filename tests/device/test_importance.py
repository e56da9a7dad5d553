"""Importance matrices on a device: sums as on the host, of a model whose layers are observed one by one."""

import numpy as np
import pytest
from golden import build

import rocforge as rf
from rocforge.imatrix import collect_imatrix
from rocforge.ops.importance import add_squares


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


@pytest.mark.slow
def test_of_a_model(tmp_path):
    """Experts, router and attention of a small model: what the host collects, within rounding."""
    build(tmp_path / "model.gguf", "qwen3moe", "F32")
    host, device = (
        collect_imatrix(*rf.load(tmp_path / "model.gguf", where), "for the self of it in one " * 4, chunk=8, chunks=2)
        for where in ("cpu", "gpu")
    )
    assert host.inputs.keys() == device.inputs.keys()
    for name, inputs in host.inputs.items():
        assert np.allclose(device.inputs[name].sums, inputs.sums, rtol=1e-2, atol=1e-3 * inputs.sums.max()), name
        assert (device.inputs[name].counts == inputs.counts).all()
