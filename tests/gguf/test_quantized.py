"""rocforge.gguf.quantized: tensors as a mix has them, weighed by their importance, a piece of rows at a time."""

import numpy as np
import pytest
from gguf_files import write

import rocforge as rf
from rocforge.gguf import quantized
from rocforge.gguf.imatrix import ImportanceMatrix, Inputs
from rocforge.gguf.mixes import Mix
from rocforge.gguf.quantized import Quantized
from rocforge.gguf.writer import write_gguf
from rocforge.loading.files import packer

EXPERTS, ROWS, COLUMNS = 3, 5, 256


@pytest.fixture
def tensors(rng):
    """Floats of a small model of which nothing but names and shapes is one's."""
    shapes = {
        "token_embd.weight": (ROWS, COLUMNS),
        "blk.0.attn_q.weight": (ROWS, COLUMNS),
        "blk.0.ffn_up_exps.weight": (EXPERTS, ROWS, COLUMNS),
        "blk.0.attn_norm.weight": (COLUMNS,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def file(tmp_path, tensors):
    """The file, open."""
    with rf.open_gguf(write(tmp_path / "f32.gguf", tensors, {"llama.block_count": ("uint32", 1)})) as file:
        yield file


@pytest.fixture
def importance(rng):
    def inputs(matrices):
        return Inputs(rng.random((matrices, COLUMNS)).astype(np.float32), np.full(matrices, 2, np.float32))

    return ImportanceMatrix({"blk.0.attn_q.weight": inputs(1), "blk.0.ffn_up_exps.weight": inputs(EXPERTS)}, ["t"], 3)


def test_each_tensor(file, tensors, importance, monkeypatch):
    """What rf.quantize gives for the whole, with the importance of each matrix, however small the pieces are."""
    monkeypatch.setattr(quantized, "PIECE", 2 * COLUMNS)
    made = Quantized(file, Mix("Q4_K", pure=True), packer("cpu"), importance)
    made.check()
    for name, array in tensors.items():
        if array.ndim == 1:
            assert (made[name] == array).all()
            continue
        weights = importance.weights(name, array.shape)
        weights = weights if weights is None or array.ndim > 2 else weights[0]
        assert made[name].shape == array.shape
        assert (made[name].data == rf.quantize(array, "Q4_K", weights).data).all(), name
    assert made["blk.0.attn_q.weight"] is made["blk.0.attn_q.weight"]


def test_written(file, tensors, importance, tmp_path):
    """The file has the types and the keys that say how it was made; progress sums up to the bytes that were read."""
    made, read = Quantized(file, Mix("Q8_0"), packer("cpu"), importance), []
    write_gguf(tmp_path / "q8.gguf", made.metadata, made.planned(read.append), made.paths)
    assert sum(read) == sum(array.nbytes for array in tensors.values())
    with rf.open_gguf(tmp_path / "q8.gguf") as written:
        assert list(written) == list(file)
        assert {name: written.tensor_info(name).qtype for name in written} == {
            n: f.qtype for n, f in made.after.items()
        }
        assert all(np.abs(np.asarray(written[name]) - tensors[name]).max() < 0.02 for name in tensors)
        metadata = written.metadata
    assert metadata["general.file_type"] == 7 and metadata["general.quantization_version"] == 2
    about = {key: value for key, value in metadata.items() if key.startswith("quantize.")}
    assert list(about.values()) == ["", "t", 2, 3] and metadata["llama.block_count"] == 1


def test_floats(file, tensors, tmp_path):
    """To BF16, and from there to F32 and F16: as those types round."""
    half = Quantized(file, Mix("BF16"), packer("cpu"))
    write_gguf(tmp_path / "bf16.gguf", half.metadata, half.planned(), half.paths)
    with rf.open_gguf(tmp_path / "bf16.gguf") as bf16:
        expected = rf.quantize(tensors["token_embd.weight"], "BF16").dequantize()
        whole = Quantized(bf16, Mix("F32"), packer("cpu"))["token_embd.weight"]
        assert whole.dtype == np.float32 and (whole == expected).all()
        short = Quantized(bf16, Mix("F16"), packer("cpu"))["token_embd.weight"]
        assert (np.asarray(short) == expected.astype(np.float16)).all()


def test_what_makes_no_sense(file, tmp_path):
    """The least bits without importance, and what is quantized already, unless it is allowed or kept."""
    with pytest.raises(ValueError, match=r"has blk\.0\.\w+\.weight in IQ2_XXS, which needs an importance matrix"):
        Quantized(file, Mix("IQ2_XXS"), packer("cpu")).check()
    first = Quantized(file, Mix("Q8_0"), packer("cpu"))
    write_gguf(tmp_path / "q8.gguf", first.metadata, first.planned(), first.paths)
    with rf.open_gguf(tmp_path / "q8.gguf") as packed:
        again = Quantized(packed, Mix("Q4_0"), packer("cpu"))
        with pytest.raises(ValueError, match=r"tensor token_embd\.weight is Q8_0 already"):
            again.check()
        again.check(again=True)
        assert again["blk.0.attn_q.weight"].qtype.name == "Q4_0"
        kept = Quantized(packed, Mix("BF16"), packer("cpu"), keep_packed=True)
        kept.check()
        assert not kept.changed and kept.metadata["general.file_type"] == 7
