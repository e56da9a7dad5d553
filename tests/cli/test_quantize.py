"""`rocforge quantize`, `imatrix` and `convert`: what they write and say, and a user's mistakes in one line."""

import numpy as np
import pytest
from checkpoint_files import PROMPT, write
from golden import relative_error

import rocforge as rf
from rocforge.cli import main
from rocforge.gguf.imatrix import read_imatrix
from rocforge.imatrix import collect_imatrix


@pytest.fixture
def command(capsys):
    """Runs the command in this process; gives its exit code, what it printed, and its errors."""

    def run(*arguments):
        code = main(list(map(str, arguments)))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def folder(tmp_path):
    """A checkpoint."""
    return write(tmp_path / "llama", "llama")


@pytest.fixture
def bf16(folder, command):
    """The file that `rocforge convert` makes of it."""
    path = folder.with_suffix(".gguf")
    assert command("convert", folder, path, "--quiet") == (0, "", "")
    return path


def test_convert(folder, bf16, tmp_path, command):
    """As the checkpoint is, or in another type; the model is the same."""
    with rf.open_gguf(bf16) as file:
        assert file.tensor_info("output.weight").qtype.name == "BF16" and file.metadata["general.name"] == "Llama"
    logits = rf.load(folder, "cpu")[0](PROMPT)
    assert relative_error(rf.load(bf16, "cpu")[0](PROMPT), logits) < 1e-6
    code, printed, _ = command("convert", folder, tmp_path / "q8.gguf", "--type", "q8_0")
    assert code == 0 and printed.splitlines()[1].startswith("quant size = 0.1") and "bits a weight" in printed
    assert relative_error(rf.load(tmp_path / "q8.gguf", "cpu")[0](PROMPT), logits) < 0.05


def test_quantize(bf16, tmp_path, command):
    """A mix with an exception; a dry run shows the same and writes nothing."""
    options = ("--type", "Q4_0", "--tensor-type", "attn_v=q8_0", "--output-tensor-type", "F16")
    code, printed, _ = command("quantize", bf16, "--dry-run", *options)
    lines = printed.splitlines()
    assert code == 0 and lines[0].split() == ["tensor", "shape", "type", "becomes", "MiB", "MiB"]
    becomes = {line.split()[0]: line.split()[-3] for line in lines[1:] if ".weight" in line}
    code, printed, _ = command("quantize", bf16, tmp_path / "q4.gguf", *options)
    assert code == 0 and lines[-2:] == printed.splitlines()
    with rf.open_gguf(tmp_path / "q4.gguf") as file:
        assert becomes == {name: file.tensor_info(name).qtype.name for name in file}
        kinds = (file.tensor_info(f"{name}.weight").qtype.name for name in ("blk.1.attn_v", "blk.1.attn_k", "output"))
        assert list(kinds) == ["Q8_0", "Q4_0", "F16"]


def test_imatrix(bf16, tmp_path, command):
    """The matrix that is collected is written, and quantizing by it changes weights and metadata."""
    text, path = tmp_path / "text.txt", tmp_path / "i.gguf"
    text.write_text("the band and then " * 20)
    code, _, told = command("imatrix", bf16, text, "-o", path, "--chunk", 16, "--chunks", 3, "--device", "cpu")
    assert code == 0 and "14 tensors, 3 chunks of 16 tokens" in told
    read, collected = read_imatrix(path), collect_imatrix(*rf.load(bf16, "cpu"), text.read_text(), 16, 3)
    assert read.datasets == [str(text)] and read.inputs.keys() == collected.inputs.keys()
    assert all((read.inputs[name].sums == collected.inputs[name].sums).all() for name in read.inputs)
    files = []
    for options in ((), ("--imatrix", path)):
        assert command("quantize", bf16, tmp_path / "q.gguf", "--type", "Q4_0", "--quiet", *options)[0] == 0
        with rf.open_gguf(tmp_path / "q.gguf") as file:
            files.append((file["blk.0.ffn_up.weight"].data.tobytes(), file.metadata.get("quantize.imatrix.file")))
    assert files[0][0] != files[1][0] and [file[1] for file in files] == [None, str(path)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("quantize", "{bf16}", "--type", "Q4_0"), 2, "OUT is missing"),
        (("quantize", "{bf16}", "out.gguf"), 2, "missing option '--type'"),
        (("quantize", "{bf16}", "{bf16}", "--type", "Q4_0"), 2, "is the file that is being read"),
        (("quantize", "{bf16}", "{none}/out.gguf", "--type", "Q4_0"), 1, "no such folder"),
        (("quantize", "{bf16}", "out.gguf", "--type", "Q4"), 2, "type 'Q4' is unknown; allowed are"),
        (("quantize", "{bf16}", "out.gguf", "--type", "Q4_0", "--tensor-type", "Q8_0"), 2, "allowed is REGEX=TYPE"),
        (("quantize", "{bf16}", "out.gguf", "--type", "Q4_0", "--tensor-type", "(=Q8_0"), 2, "no regular expression"),
        (("quantize", "{bf16}", "out.gguf", "--type", "Q4_0", "--imatrix", "{bf16}"), 1, "no importance matrix"),
        (("quantize", "{none}", "out.gguf", "--type", "Q4_0"), 1, "no such file"),
        (("convert", "{bf16}", "out.gguf"), 2, "no such folder"),
        (("convert", "{folder}/..", "out.gguf"), 1, "has no config.json"),
        (("imatrix", "{bf16}", "{none}"), 1, "No such file"),
        (("imatrix", "{bf16}", "{bf16}"), 2, "is no UTF-8 text"),
        (("imatrix", "{bf16}", "{text}"), 2, "fewer than a chunk of"),
    ],
)
def test_mistakes(bf16, folder, tmp_path, command, monkeypatch, arguments, code, message):
    """A line, a hint and an exit code; no file is left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the")
    places = {"bf16": bf16, "folder": folder, "none": tmp_path / "none", "text": tmp_path / "text.txt"}
    before = set(tmp_path.iterdir())
    ended, printed, error = command(*(argument.format(**places) for argument in arguments))
    assert (ended, printed) == (code, "") and message in error and "hint: " in error and "Traceback" not in error
    assert set(tmp_path.iterdir()) == before


def test_other_commands_take_a_folder(folder, command):
    """What it would become is shown, and it runs."""
    code, printed, _ = command("inspect", folder)
    assert code == 0 and printed.startswith("checkpoint, 22 tensors, ") and ", BF16\n" in printed
    assert "llama.attention.head_count_kv" in printed and "blk.1.attn_v.weight" in printed
    code, printed, _ = command("generate", folder, "the band", "--max-tokens", 3, "--device", "cpu", "--quiet")
    assert code == 0 and printed


def test_sums_are_of_the_text(folder):
    """Counts are of tokens, and sums those of the inputs that a hook sees."""
    model, tokenizer = rf.load(folder, "cpu")
    text = "the band and then " * 4
    matrix, seen = collect_imatrix(model, tokenizer, text, 8, 1), []
    with model.edit({"blk.1.ffn_down": lambda y, x: seen.append(x.copy()) or y}):
        model(np.array(tokenizer.encode(text)[:8]))
    with pytest.raises(ValueError, match="chunk is 257; allowed are 1 to the model's context of 256"):
        collect_imatrix(model, tokenizer, text, 257)
    inputs = matrix.inputs["blk.1.ffn_down.weight"]
    assert inputs.counts.tolist() == [8] and np.allclose(inputs.sums[0], np.square(seen[0]).sum(axis=0), rtol=1e-5)
