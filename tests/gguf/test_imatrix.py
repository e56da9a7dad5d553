"""Importance matrices: llama.cpp's two formats, and what they say of a tensor's columns."""

import struct

import numpy as np
import pytest
from gguf_files import write

from rocforge.errors import GGUFError
from rocforge.gguf.imatrix import ImportanceMatrix, Inputs, read_imatrix

DENSE = Inputs(np.float32([[2, 4, 6]]), np.float32([2]))
EXPERTS = Inputs(np.float32([[3, 9], [0, 0], [1, 2]]), np.float32([3, 0, 1]))


def entry(name, calls, values):
    return struct.pack("<i", len(name)) + name.encode() + struct.pack(f"<ii{len(values)}f", calls, len(values), *values)


def test_written_and_read(tmp_path):
    """What was saved is read again, under the names and types that llama.cpp has."""
    matrix = ImportanceMatrix({"b.weight": EXPERTS, "a.weight": DENSE}, ["text.txt"], 4, 512)
    matrix.save(tmp_path / "i.gguf")
    read = read_imatrix(tmp_path / "i.gguf")
    assert (read.datasets, read.chunks, read.chunk_size) == (["text.txt"], 4, 512)
    assert list(read.inputs) == ["a.weight", "b.weight"]
    for name, inputs in matrix.inputs.items():
        assert (read.inputs[name].sums == inputs.sums).all() and (read.inputs[name].counts == inputs.counts).all()


def test_weights():
    """Means of squares; ones for an expert that saw nothing; None where there are none."""
    matrix = ImportanceMatrix({"a.weight": DENSE, "b.weight": EXPERTS, "token_embd.weight": DENSE})
    assert matrix.weights("a.weight", (7, 3)).tolist() == [[1, 2, 3]]
    assert matrix.weights("b.weight", (3, 7, 2)).tolist() == [[1, 3], [1, 1], [1, 2]]
    assert matrix.weights("c.weight", (7, 3)) is None
    assert matrix.weights("token_embd.weight", (7, 4)) is None
    with pytest.raises(GGUFError, match=r"has 3 values for a\.weight; its shape \(7, 4\) takes 4"):
        matrix.weights("a.weight", (7, 4))
    with pytest.raises(GGUFError, match=r"values for a\.weight that are not finite"):
        ImportanceMatrix({"a.weight": Inputs(DENSE.sums * np.inf, DENSE.counts)}).weights("a.weight", (7, 3))


def test_the_older_format(tmp_path):
    """Means times calls; the number of calls and the text's name at the end may be missing."""
    path, entries = tmp_path / "i.dat", entry("a.weight", 2, [2, 4, 6]) + entry("b.weight", 4, [12, 4] * 3)
    path.write_bytes(struct.pack("<i", 2) + entries + struct.pack("<ii", 7, 5) + b"a.txt")
    read = read_imatrix(path)
    assert (read.datasets, read.chunks) == (["a.txt"], 7)
    assert read.weights("a.weight", (9, 3)).tolist() == [[1, 2, 3]]
    assert read.weights("b.weight", (3, 9, 2)).tolist() == [[3, 1]] * 3
    path.write_bytes(struct.pack("<i", 2) + entries)
    assert (read_imatrix(path).datasets, read_imatrix(path).chunks) == ([], 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<i", 0),
        struct.pack("<ii", 1, 1 << 30),
        struct.pack("<i", 1) + entry("a", 1, [1])[:-1],
        b"\xff" * 8,
    ],
)
def test_malformed(tmp_path, data):
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(GGUFError, match=r"i\.dat: no importance matrix"):
        read_imatrix(tmp_path / "i.dat")


def test_malformed_gguf(tmp_path):
    """Another GGUF file; sums without counts; counts that do not fit."""
    sums, counts = np.ones((2, 3), np.float32), np.ones(4, np.float32)
    for tensors, problem in (
        ({"a": sums}, r"no importance matrix: no tensor's name ends in \.in_sum2"),
        ({"a.in_sum2": sums}, r"tensor a\.counts is missing"),
        ({"a.in_sum2": sums, "a.counts": counts}, r"a has 6 sums, which is no multiple of 4 counts"),
    ):
        write(tmp_path / "i.gguf", tensors)
        with pytest.raises(GGUFError, match=problem):
            read_imatrix(tmp_path / "i.gguf")
