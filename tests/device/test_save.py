"""Saving a model from a device, whose rows are planes there: the bytes of the file that was loaded."""

import numpy as np
import pytest
from golden import build
from packed_vectors import with_vectors_in

import rocforge as rf
from rocforge.gguf.writer import planned, write_gguf

pytestmark = pytest.mark.any_wave


def test_unchanged(tmp_path):
    """Planar formats, BF16, F16, formats that stay in blocks, and F16 norms; one weight is replaced by a device's."""
    build(tmp_path / "mixed.gguf", "llama-types", "MIXED")
    with rf.open_gguf(tmp_path / "mixed.gguf") as file:
        tensors, _ = with_vectors_in(file, "F16")
        write_gguf(tmp_path / "model.gguf", file.metadata, {name: planned(tensors[name]) for name in tensors})
    model, _ = rf.load(tmp_path / "model.gguf", "gpu")
    model.save(tmp_path / "saved.gguf")
    assert (tmp_path / "saved.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()
    values = rf.quantize(model.blk[0].attn_q.weight.dequantize().get(), "Q8_0")
    model.blk[0].attn_q.weight = rf.to_device(values, "gpu")
    model.save(tmp_path / "changed.gguf")
    with rf.open_gguf(tmp_path / "changed.gguf") as file, rf.open_gguf(tmp_path / "model.gguf") as before:
        changed = [name for name in file if np.asarray(file[name]).tobytes() != np.asarray(before[name]).tobytes()]
        assert set(changed) <= {"blk.0.attn_q.weight"}
        assert file["blk.0.attn_q.weight"].data.tobytes() == values.data.tobytes()
