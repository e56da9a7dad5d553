"""Checkpoints on a device: loaded as they are, looked at for an importance matrix, and quantized there on the way."""

import numpy as np
import pytest
from checkpoint_files import PROMPT, write
from golden import FOLDER, relative_error

import rocforge as rf
from rocforge.imatrix import collect_imatrix

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with experts."""
    return write(tmp_path / "moe", "qwen3moe")


def test_loaded(folder):
    """transformers' logits, and the host's importance matrix, within what a device's products round."""
    host, device = rf.load(folder, "cpu"), rf.load(folder, "gpu")
    with np.load(FOLDER / "checkpoints.npz") as logits:
        assert relative_error(device[0](PROMPT)[::4].get(), logits["qwen3moe"]) < 2e-2
    expected, matrix = (collect_imatrix(*each, "the band and then " * 2, 12, 1).inputs for each in (host, device))
    assert expected.keys() == matrix.keys()
    for name, inputs in expected.items():
        assert relative_error(matrix[name].sums, inputs.sums) < 2e-2, name
        assert (matrix[name].counts == inputs.counts).all()


def test_quantized_on_the_way(folder, tmp_path):
    """Blocks are those that rf.quantize gives on the device, and are saved as they are."""
    values = rf.load(folder, "cpu")[0].blk[1].ffn_up_exps.weight.dequantize()
    expected = rf.quantize(rf.to_device(values, "gpu"), "Q5_1").to_device("cpu")
    model, _ = rf.load(folder, "gpu", quantize="Q5_1")
    model.save(tmp_path / "saved.gguf")
    with rf.open_gguf(tmp_path / "saved.gguf") as file:
        assert (file["blk.1.ffn_up_exps.weight"].data == expected.data).all()
