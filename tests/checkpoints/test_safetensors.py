"""Reading safetensors files: arrays as they were written, and nothing in a file is trusted."""

import json

import numpy as np
import pytest
from checkpoint_files import write_safetensors

from rocforge.checkpoints.safetensors import Safetensors
from rocforge.errors import CheckpointError


def test_arrays(tmp_path):
    """Of each type, empty and without axes too; they are views of the mapped file, which cannot be written."""
    arrays = {
        "a": ("F32", np.arange(6, dtype=np.float32).reshape(2, 3)),
        "b": ("F16", np.zeros((0, 4), np.float16)),
        "c": ("BF16", np.uint16([0x3F80])),
        "d": ("I64", np.int64(7).reshape(())),
    }
    write_safetensors(tmp_path / "model.safetensors", arrays)
    read = Safetensors(tmp_path)
    assert list(read) == list(arrays)
    assert all((read[name] == array).all() and read[name].shape == array.shape for name, (_, array) in arrays.items())
    assert not read["a"].flags.writeable and not read["a"].flags.owndata


def of(header, data=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"\1\2\3", "its header has"),
        ((1 << 40).to_bytes(8, "little") + b"{}", r"its header has 1099511627776 bytes"),
        (of(b"[1]"), "its header is no JSON object"),
        (of(b"{" * 5000), "its header is no JSON object"),
        (of(b"\xff\xfe"), "its header is no JSON object"),
        (of({"a": 1}), "tensor 'a' has no dtype, shape and data_offsets"),
        (of({"a": {**ENTRY, "dtype": "F8_E4M3"}}), "tensor 'a' has type F8_E4M3; supported are"),
        (of({"a": {**ENTRY, "shape": [3]}}), r"tensor 'a': bytes 0 to 8 are not those of F32 \(3,\)"),
        (of({"a": {**ENTRY, "shape": [-2]}}), "tensor 'a': bytes"),
        (of({"a": {**ENTRY, "shape": [2.0]}}), "tensor 'a': bytes"),
        (of({"a": {**ENTRY, "data_offsets": [8, 16]}}), "tensor 'a': bytes 8 to 16"),
        (of({"a": {**ENTRY, "data_offsets": [-8, 0]}}), "tensor 'a': bytes -8 to 0"),
        (of({"a": {**ENTRY, "shape": [1 << 40, 1 << 40]}}), "tensor 'a': bytes"),
    ],
)
def test_malformed(tmp_path, data, problem):
    """The error names the file, and what is wrong in it."""
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{problem}"):
        Safetensors(tmp_path)
