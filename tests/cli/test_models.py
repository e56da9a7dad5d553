"""`rocforge models` and `rocforge inspect`: what the headers say, also of files that mean harm."""

import json

import gguf
import numpy as np
import pytest
from gguf_files import write

import rocforge as rf
from rocforge.cli.output import binary_size, count

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    """Two models, one below a folder of its own, a split set's later member, and a file that is none."""
    (tmp_path / "below").mkdir()
    tensors = {"a.weight": np.zeros((4, 64), np.float32), "b.weight": np.zeros((32,), np.float32)}
    metadata = {"llama.context_length": ("uint32", 4096), "general.file_type": ("uint32", 15)}
    write(tmp_path / "below" / "one.gguf", tensors, metadata)
    blocks = gguf.quants.quantize(np.ones((64, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    write(tmp_path / "two.gguf", {"a.weight": (blocks, gguf.GGMLQuantizationType.Q8_0), "n": np.zeros(8, np.float32)})
    (tmp_path / "big-00002-of-00002.gguf").write_bytes(b"not looked at")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03")
    return tmp_path


@pytest.fixture
def hub(tmp_path, folder):
    """A Hub cache of one repository with two quantizations."""
    snapshot = tmp_path / "hub" / "models--owner--repo" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("repo-Q4_K_M.gguf", "repo-Q8_0.gguf"):
        (snapshot / name).write_bytes((folder / "two.gguf").read_bytes())
    (snapshot / "README.md").write_text("no model")
    (refs := snapshot.parents[1] / "refs").mkdir()
    (refs / "main").write_text("abc")
    return {"HF_HUB_CACHE": str(tmp_path / "hub")}


def test_models(rocforge, folder, hub):
    """Cache and folders, as a table and as JSON; a broken file is named on stderr and stops nothing."""
    done = rocforge("models", folder / "below", folder, environment=hub)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["model", "architecture", "parameters", "size", "quantization", "context"]
    assert lines[1][:4] == ["hf:owner/repo:Q4_K_M", "llama", "4.10", "K"] and lines[2][0] == "hf:owner/repo:Q8_0"
    one = next(line for line in lines if line[0].endswith("one.gguf"))
    size = (folder / "below" / "one.gguf").stat().st_size
    assert one[1:5] == ["llama", "288", *binary_size(size).split()] and one[-2:] == ["Q4_K_M", "4096"]
    assert [line[-2] for line in lines if line[0].endswith("two.gguf")] == ["Q8_0"]
    assert "broken.gguf" in done.stderr and "00002" not in done.stdout + done.stderr
    found = json.loads(rocforge("models", folder / "below", "--json", environment=hub).stdout)
    assert [m["name"] for m in found][:2] == ["hf:owner/repo:Q4_K_M", "hf:owner/repo:Q8_0"]
    assert found[2]["parameters"] == 288 and found[2]["context"] == 4096 and found[1]["context"] is None


def test_no_models(rocforge, tmp_path):
    """Nothing found is said on stderr; stdout stays empty, or an empty list."""
    nowhere = {"HF_HUB_CACHE": str(tmp_path / "none")}
    done = rocforge("models", environment=nowhere)
    assert done.stdout == "" and "no models" in done.stderr
    assert json.loads(rocforge("models", "--json", environment=nowhere).stdout) == []


def test_inspect_shows_all(rocforge, model):
    """Every key and every tensor is there; JSON holds the values whole."""
    with rf.open_gguf(model) as file:
        text = rocforge("inspect", model).stdout
        for key in file.metadata:
            assert f"\n{key} " in text
        for name in file:
            assert f"\n{name} " in text
        assert max(map(len, text.splitlines())) < 200
        found = json.loads(rocforge("inspect", model, "--json").stdout)
        assert found["metadata"]["tokenizer.ggml.tokens"] == file.metadata["tokenizer.ggml.tokens"]
        assert {t["name"]: tuple(t["shape"]) for t in found["tensors"]} == {n: file.tensor_info(n).shape for n in file}
        assert sum(t["nbytes"] for t in found["tensors"]) == file.nbytes


def test_a_file_cannot_command_the_terminal(rocforge, tmp_path):
    """Control characters in keys, values and names are written out."""
    hostile = "x\x1b[2Jy\nz"
    path = write(tmp_path / "hostile.gguf", {hostile: np.zeros(8, np.float32)}, {"general.name": ("string", hostile)})
    text = rocforge("inspect", path).stdout
    assert r"x\x1b[2Jy\nz" in text and "\x1b" not in text
    assert sum("x\\x1b" in line for line in text.splitlines()) == 2


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (binary_size, 0, "0 B"),
        (binary_size, 1023, "1023 B"),
        (binary_size, 1024, "1.0 KiB"),
        (binary_size, 5 * 2**30 + 2**29, "5.5 GiB"),
        (binary_size, 2**60, "1048576.0 TiB"),
        (count, 999, "999"),
        (count, 11_014_656, "11.01 M"),
        (count, 8_030_261_248, "8.03 B"),
    ],
)
def test_units(function, value, text):
    """Sizes in powers of 1024, counts in powers of 1000."""
    assert function(value) == text
