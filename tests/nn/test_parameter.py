"""Assignment of a model's arrays: checked at once, in the form that is fast, and without touching anybody else's."""

import numpy as np
import pytest
from golden import build

import rocforge as rf
from rocforge.nn import Linear

TOKENS = np.arange(3, 20)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The file of a small model whose output is its embedding."""
    path = tmp_path_factory.mktemp("models") / "model.gguf"
    build(path, "qwen3", "Q8_0")
    return path


@pytest.fixture
def model(path):
    return rf.load(path, device="cpu")[0]


def test_every_kind_of_array(model):
    """NumPy's, packed ones and lists give the same logits, and are in the form in which loading leaves weights."""
    layer, before = model.blk[0].ffn_down, model(TOKENS)
    floats = rf.asnumpy(layer.weight)
    for value in (floats, floats.tolist(), rf.quantize(floats, "F32"), np.asfortranarray(floats).astype(np.float64)):
        layer.weight = value
        np.testing.assert_allclose(model(TOKENS), before, atol=1e-4)
        fast = layer.weight.keep_float32 if isinstance(value, rf.QuantizedArray) else layer.weight.flags.f_contiguous
        assert fast and layer.weight is not value
    layer.bias = np.full(len(floats), 0.5)
    assert layer.bias.dtype == np.float32 and not np.allclose(model(TOKENS), before)
    layer.bias = None
    np.testing.assert_allclose(model(TOKENS), before, atol=1e-4)


WRONG = [
    ("weight", np.zeros((3, 4)), ValueError, r"blk\.0\.attn_q\.weight: of shape \(3, 4\); allowed is an array"),
    ("weight", 3, ValueError, r"of shape \(\); allowed is an array of numbers of shape \(512, 256\)"),
    ("weight", [[1.0], [2.0, 3.0]], ValueError, r"blk\.0\.attn_q\.weight: .*inhomogeneous"),
    ("weight", "zeros", TypeError, "of dtype <U5; allowed is an array of numbers"),
    ("weight", None, TypeError, r"blk\.0\.attn_q\.weight: None; allowed is"),
    ("weight", rf.quantize(np.zeros((256, 512)), "Q8_0").T, TypeError, "transpose of packed rows"),
    ("wieght", np.zeros((512, 256)), AttributeError, "Linear has no array of that name; it has weight, bias"),
]


def test_what_cannot_be_assigned(model):
    """The error has the path, what was given and what is allowed; nothing has changed."""
    layer = model.blk[0].attn_q
    before = layer.weight
    for name, value, error, message in WRONG:
        with pytest.raises(error, match=message):
            setattr(layer, name, value)
        assert layer.weight is before and not hasattr(layer, "wieght")
    with pytest.raises(TypeError, match=r"blk\.0\.attn_q is a Linear, and an array is no module; its arrays are"):
        model.blk[0].attn_q = np.zeros((512, 256))


def test_in_place(model, path):
    """A norm's weight changes in place, in this model alone; what a user has assigned stays the user's."""
    other = rf.load(path, device="cpu")[0]
    norm, before = model.blk[0].attn_norm, other(TOKENS)
    fused = model.fused
    norm.weight *= 2
    assert model.fused is not fused, "a change in place is noticed"
    assert not np.allclose(model(TOKENS), before)
    np.testing.assert_array_equal(other(TOKENS), before)
    norm.weight[:] = other.blk[0].attn_norm.weight
    np.testing.assert_array_equal(model(TOKENS), before)
    given = np.ones(256, np.float32)
    norm.weight = given
    norm.weight *= 3
    assert (given == 1).all()


def test_tied_weights(model):
    """The embedding and the output stay one array, whichever is assigned; a new module stands alone."""
    model.output = Linear(*model.token_embd.weight.shape[::-1])
    model.output.weight = alone = rf.asnumpy(model.token_embd.weight)
    model.token_embd.weight = alone * 0
    assert model.output.weight.any()


def test_tied_weights_of_a_file(tmp_path):
    """A file without an output: assigning to one of the two is assigning to both."""
    build(tmp_path / "model.gguf", "llama", "Q8_0")
    model = rf.load(tmp_path / "model.gguf", device="cpu")[0]
    for layer in (model.output, model.token_embd):
        layer.weight = rf.asnumpy(layer.weight) / 2
        assert model.output.weight is model.token_embd.weight


def test_layers_by_hand():
    """A layer that no file has filled takes arrays as they come, of its shape."""
    layer = Linear(4, 3)
    layer.weight = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(layer(np.ones((1, 4), np.float32)), [[6, 22, 38]])
    with pytest.raises(ValueError, match=r"Linear\.weight: of shape \(4,\)"):
        layer.weight = np.ones(4)
