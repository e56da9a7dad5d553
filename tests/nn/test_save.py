"""Saving models: what was not changed has the bytes that were loaded, and what cannot be saved is named."""

from pathlib import Path

import numpy as np
import pytest
from fuzz_gguf import architectures
from golden import families, relative_error
from packed_vectors import with_vectors_in

import rocforge as rf
from rocforge.errors import UnsupportedModelError
from rocforge.gguf.writer import planned, write_gguf
from rocforge.load import load_model
from rocforge.models import build_model
from rocforge.nn import Linear, Module

TOKENS = np.arange(5, 12)


@pytest.fixture(params=sorted(architectures()))
def path(request, tmp_path):
    """A small file of each architecture."""
    (tmp_path / "model.gguf").write_bytes(architectures()[request.param].bytes())
    return tmp_path / "model.gguf"


@pytest.fixture
def llama(tmp_path):
    (tmp_path / "llama.gguf").write_bytes(architectures()["llama"].bytes())
    return rf.load(tmp_path / "llama.gguf", "cpu")[0]


def test_unchanged(path, tmp_path):
    """A loaded model, tied or not, with its rope factors and tokenizer, is saved as the file was, bit for bit."""
    model, _ = rf.load(path, "cpu")
    model(TOKENS)
    model.save(tmp_path / "saved.gguf")
    assert (tmp_path / "saved.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["gemma4-shared", "gemma3n"])
def test_what_is_not_read(tmp_path, name):
    """Tensors that a model does without are saved with the rest."""
    families.build(tmp_path / "model.gguf", name)
    load_model(rf.open_gguf(tmp_path / "model.gguf"), "cpu").save(tmp_path / "saved.gguf")
    first, second = (rf.open_gguf(tmp_path / f"{stem}.gguf") for stem in ("model", "saved"))
    assert list(first) == list(second) and set(families.FAMILIES[name].unread) <= {*second}
    assert all((np.asarray(first[name]) == np.asarray(second[name])).all() for name in first)


@pytest.mark.parametrize("kind", ["BF16", "Q8_0"])
def test_vectors_keep_their_type(path, tmp_path, kind):
    """Norms and biases that the file has in another type than float32 keep it, until they are changed."""
    with rf.open_gguf(path) as file:
        tensors, _ = with_vectors_in(file, kind)
        kept = {name: planned(tensors[name]) for name in tensors}
        write_gguf(tmp_path / "vectors.gguf", file.metadata, kept)
    model, _ = rf.load(tmp_path / "vectors.gguf", "cpu")
    model.save(tmp_path / "saved.gguf")
    assert (tmp_path / "saved.gguf").read_bytes() == (tmp_path / "vectors.gguf").read_bytes()
    model.output_norm.weight = model.output_norm.weight * np.float32(1.001)
    model.save(tmp_path / "changed.gguf")
    with rf.open_gguf(tmp_path / "changed.gguf") as file:
        assert file.tensor_info("output_norm.weight").qtype.name == "F32"
        assert (file["output_norm.weight"] == model.output_norm.weight).all()


def test_changes_are_saved(llama, tmp_path):
    """A weight in another format, one in float16, a value of the metadata: the rest stays; it runs as before saving."""
    down = llama.blk[0].ffn_down.weight
    llama.blk[0].ffn_down.weight = rf.quantize(np.asarray(down, np.float32) * 2, "Q4_0")
    llama.blk[0].attn_v.weight = rf.quantize(np.asarray(llama.blk[0].attn_v.weight, np.float32), "F16")
    llama.metadata["general.name"] = "edited"
    llama.save(tmp_path / "saved.gguf")
    with rf.open_gguf(tmp_path / "saved.gguf") as file:
        kinds = {name: file.tensor_info(name).qtype.name for name in ("blk.0.ffn_down.weight", "blk.0.attn_v.weight")}
        assert list(kinds.values()) == ["Q4_0", "F16"] and file.metadata["general.name"] == "edited"
        again = load_model(file, "cpu")
    assert relative_error(again(TOKENS), llama(TOKENS)) < 1e-6


def test_an_output_that_is_no_longer_tied(tmp_path):
    """Where the embedding of a tied model is replaced, the output stays, and the file has both."""
    tied = next(m for m in architectures().values() if all(entry.name != "output.weight" for entry in m.tensors))
    (tmp_path / "tied.gguf").write_bytes(tied.bytes())
    model, _ = rf.load(tmp_path / "tied.gguf", "cpu")
    model.token_embd.weight = np.asarray(model.token_embd.weight, np.float32) * 2
    model.save(tmp_path / "saved.gguf")
    again, _ = rf.load(tmp_path / "saved.gguf", "cpu")
    assert (again(TOKENS) == model(TOKENS)).all()


def test_fewer_layers(llama, tmp_path):
    """A layer less is a model less its tensors, once the metadata says so."""
    del llama.blk[1:]
    with pytest.raises(Exception, match="block_count"):
        llama.save(tmp_path / "saved.gguf")
    llama.metadata["llama.block_count"] = 1
    llama.save(tmp_path / "saved.gguf")
    assert (rf.load(tmp_path / "saved.gguf", "cpu")[0](TOKENS) == llama(TOKENS)).all()


def test_a_split_set_becomes_one_file(llama, tmp_path):
    """Keys of the split are left out, and the file opens alone."""
    llama.metadata.update({"split.no": 0, "split.count": 2, "split.tensors.count": 3})
    llama.save(tmp_path / "saved.gguf")
    with rf.open_gguf(tmp_path / "saved.gguf") as file:
        assert not [key for key in file.metadata if key.startswith("split.")]


class Doubled(Module):
    """A module of a user's own."""

    def __init__(self, inner):
        self.inner = inner

    def forward(self, *args):
        return 2 * self.inner(*args)


class Louder(Linear):
    """One that has the tensors of another."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_what_a_file_cannot_say_is_refused(llama, tmp_path):
    """Modules of other classes, with their tensors or not; parameters too many or too few; the loaded file itself."""
    layer, louder = llama.blk[0], Louder(1, 1)
    original = layer.ffn_down
    vars(louder).update(vars(original))
    for module, name in [(Doubled(original), "Doubled"), (louder, "Louder")]:
        layer.ffn_down = module
        with pytest.raises(ValueError, match=rf"blk\.0\.ffn_down is a {name}; .* and Linear is what"):
            llama.save(tmp_path / "saved.gguf")
    layer.ffn_down = original
    layer.probe = Doubled(None)
    with pytest.raises(ValueError, match=r"blk\.0\.probe is a Doubled; .* no module"):
        llama.save(tmp_path / "saved.gguf")
    del layer.probe
    layer.extra = np.zeros(3, np.float32)
    with pytest.raises(UnsupportedModelError, match=r"without a place in this model: blk\.0\.extra"):
        llama.save(tmp_path / "saved.gguf")
    del layer.extra
    with pytest.raises(ValueError, match="is the file that is being read"):
        llama.save(tmp_path / "llama.gguf")
    assert [each.name for each in tmp_path.iterdir()] == ["llama.gguf"]


def test_nothing_to_save(tmp_path):
    (tmp_path / "model.gguf").write_bytes(architectures()["llama"].bytes())
    with rf.open_gguf(tmp_path / "model.gguf") as file, pytest.raises(ValueError, match="has not been loaded"):
        build_model(file).save(tmp_path / "saved.gguf")


def test_the_demo_model(tmp_path):
    """The repository's model, whose file llama.cpp's writer made."""
    demo = Path(__file__).resolve().parents[2] / "examples/demo_model/demo-11M-Q8_0.gguf"
    rf.load(demo, "cpu")[0].save(tmp_path / "saved.gguf")
    assert (tmp_path / "saved.gguf").read_bytes() == demo.read_bytes()
