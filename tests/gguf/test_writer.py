"""rocforge.gguf.writer: files that have the bytes of what was read, and never half a file."""

from pathlib import Path

import numpy as np
import pytest
from fuzz_gguf import architectures
from gguf import GGUFReader
from gguf_files import SCALARS, image, pair, tensor

import rocforge as rf
from rocforge.errors import GGUFError
from rocforge.gguf.values import KeyValues
from rocforge.gguf.writer import Planned, planned, write_gguf
from rocforge.quant import QuantizedArray

DEMO = Path(__file__).resolve().parents[2] / "examples/demo_model/demo-11M-Q8_0.gguf"


def copied(path: Path) -> bytes:
    """The bytes of a copy by `write_gguf` of what `open_gguf` gives."""
    with rf.open_gguf(path) as file:
        write_gguf(path.with_name("copy.gguf"), file.metadata, {name: planned(file[name]) for name in file}, file.paths)
    return path.with_name("copy.gguf").read_bytes()


@pytest.mark.parametrize("name", [*sorted(architectures()), "demo"])
def test_a_copy_has_the_same_bytes(tmp_path, name):
    """Of a small model of each architecture, and of a file that llama.cpp's own writer made."""
    data = DEMO.read_bytes() if name == "demo" else architectures()[name].bytes()
    (tmp_path / "model.gguf").write_bytes(data)
    assert copied(tmp_path / "model.gguf") == data


def test_every_type_of_value(tmp_path):
    """Scalars, strings that are not UTF-8, and arrays, empty and nested ones too, keep their types."""
    pairs = [pair(f"{kind}.one", kind, 1) for kind in SCALARS]
    pairs += [pair(f"{kind}.array", f"[{kind}]", [0, 1]) for kind in SCALARS]
    pairs += [pair(f"{kind}.none", f"[{kind}]", []) for kind in [*SCALARS, "string"]]
    pairs += [pair("text", "string", b"a\xff\x00"), pair("texts", "[string]", ["", "é"])]
    pairs += [pair("nested", "[[int16]]", [[1, 2], []]), pair("general.alignment", "uint32", 64)]
    row = [tensor("t", (3,), 0, 0)]
    data = image(pairs, row, np.arange(3, dtype="<f4").tobytes() + bytes(52), alignment=64)
    (tmp_path / "model.gguf").write_bytes(data)
    assert copied(tmp_path / "model.gguf") == data


def test_big_endian_becomes_little(tmp_path):
    """A big-endian file is written as what it means."""
    values = np.array([1.5, -2], np.float32)
    data = [
        image([pair("n", "int16", 5, o)], [tensor("t", (2,), 0, 0, o)], values.astype(f"{o}f4").tobytes(), order=o)
        for o in "><"
    ]
    (tmp_path / "model.gguf").write_bytes(data[0])
    assert copied(tmp_path / "model.gguf") == data[1] + bytes(24)


def test_types_of_new_values(tmp_path):
    """What comes from Python gets the types that llama.cpp expects; gguf's own reader finds the values."""
    values = {
        "general.architecture": "llama",
        "a": 7,
        "b": -7,
        "c": 1 << 40,
        "d": 0.5,
        "e": True,
        "f": ["x", "y"],
        "g": [1, -2],
        "h": [0.5, 1],
        "i": np.float64(2),
        "j": np.uint8([3]),
        "k": [[1], [2]],
    }
    metadata = KeyValues(values, {"a": 5, "b": 4, "d": 12})
    write_gguf(tmp_path / "a.gguf", metadata, {"t": planned(np.zeros(2, np.float16))})
    fields = GGUFReader(tmp_path / "a.gguf").fields
    names = {key: [t.name for t in fields[key].types] for key in values}
    assert names["a"] == ["INT32"] and names["b"] == ["INT32"] and names["c"] == ["UINT64"]
    assert names["d"] == ["FLOAT64"] and names["i"] == ["FLOAT64"] and names["h"] == ["ARRAY", "FLOAT32"]
    assert names["g"] == ["ARRAY", "INT32"] and names["j"] == ["ARRAY", "UINT8"]
    assert {key: fields[key].contents() for key in "abcdefg"} == {key: values[key] for key in "abcdefg"}
    with rf.open_gguf(tmp_path / "a.gguf") as file:
        assert [list(item) for item in file.metadata["k"]] == [[1], [2]]


@pytest.mark.parametrize("value", [None, 1 << 70, [1, "a"], np.zeros((2, 2)), {"a": 1}])
def test_values_that_gguf_has_not(tmp_path, value):
    """The error names the key, and there is no file."""
    with pytest.raises(ValueError, match=r"metadata my\.key is"):
        write_gguf(tmp_path / "a.gguf", {"my.key": value}, {})
    assert not list(tmp_path.iterdir())


def test_alignment_is_checked(tmp_path):
    with pytest.raises(GGUFError, match=r"general\.alignment is 3"):
        write_gguf(tmp_path / "a.gguf", {"general.alignment": 3}, {})


def test_an_error_leaves_what_was_there(tmp_path):
    """A tensor that cannot be made, or has too few bytes: the old file stays, and nothing else is left."""
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")

    def fails():
        yield np.zeros(4, np.float32)
        raise OSError("disk on fire")

    qtype = QuantizedArray(np.zeros((1, 4), np.uint8), (1, 2), "F16").qtype
    for parts, error in [(fails, OSError), (lambda: [np.zeros(1, np.uint8)], ValueError)]:
        with pytest.raises(error):
            write_gguf(path, {}, {"t": Planned((1, 8), qtype, parts)})
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_targets_that_cannot_be(tmp_path):
    """A source, by whatever name; a folder; a folder that is not there."""
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    (tmp_path / "link.gguf").symlink_to(path)
    with pytest.raises(ValueError, match=r"link\.gguf is the file that is being read"):
        write_gguf(tmp_path / "link.gguf", {}, {}, [path])
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_gguf(tmp_path, {}, {})
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_gguf(tmp_path / "no" / "a.gguf", {}, {})
    with pytest.raises(TypeError, match="uint64"):
        planned(np.zeros(2, np.uint64))
