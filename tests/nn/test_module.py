"""Module: paths, loading whole or not at all, the printed tree, and captured outputs."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rocforge.errors import UnsupportedModelError
from rocforge.nn import Linear, Module, RMSNorm, tree
from rocforge.ops.quantize import quantize


class Inner(Module):
    inline = True

    def __init__(self):
        self.norm = RMSNorm(4, 1e-5)
        self.up = Linear(4, 8, bias="optional")

    def forward(self, x):
        return self.up(self.norm(x))


class Layer(Module):
    def __init__(self):
        self.inner, self.down = Inner(), Linear(8, 4)

    def forward(self, x):
        return x + self.down(self.inner(x))


class Model(Module):
    def __init__(self, layers=3):
        self.blk = [Layer() for _ in range(layers)]

    def forward(self, x):
        for layer in self.blk:
            x = layer(x)
        return x


def weights(rng, layers=3):
    arrays = {}
    for i in range(layers):
        arrays[f"blk.{i}.norm.weight"] = np.ones(4, np.float32)
        arrays[f"blk.{i}.up.weight"] = rng.standard_normal((8, 4)).astype(np.float32)
        arrays[f"blk.{i}.down.weight"] = rng.standard_normal((4, 8)).astype(np.float32)
    return arrays


def test_paths_are_flat_through_inline_modules(rng):
    """An inline module adds no name: blk.0.up.weight, as a path and as attributes."""
    model, arrays = Model(), weights(rng)
    arrays["blk.1.up.bias"] = np.ones(8, np.float32)
    model.load_weights(arrays)
    assert dict(model.named_parameters()).keys() == arrays.keys()
    assert model.blk[0].up.weight is arrays["blk.0.up.weight"]
    assert model.blk[0].up.bias is None and model.blk[1].up.bias is arrays["blk.1.up.bias"]
    with pytest.raises(AttributeError, match="Layer has no attribute 'sideways'"):
        _ = model.blk[0].sideways


def test_vectors_are_float32(rng):
    """Norms and biases of any type become so, and bare arrays of a type that no product takes; packed matrices stay."""
    model, arrays = Model(), weights(rng)
    arrays["blk.0.norm.weight"] = quantize(np.ones((4,)), "BF16")
    arrays["blk.1.norm.weight"] = np.full(4, 1.5, np.float16)
    arrays["blk.0.up.bias"] = np.full(8, 0.1)
    arrays["blk.0.up.weight"] = packed = quantize(rng.standard_normal((8, 4)), "F16")
    arrays["blk.0.down.weight"] = rng.standard_normal((4, 8))
    arrays["blk.1.up.weight"] = half = np.ones((8, 4), np.float16)
    model.load_weights(arrays)
    first, second = model.blk[0], model.blk[1]
    vectors = first.norm.weight, second.norm.weight, first.up.bias, first.down.weight
    assert all(type(vector) is np.ndarray and vector.dtype == np.float32 for vector in vectors)
    assert (first.norm.weight == 1).all() and (second.norm.weight == 1.5).all()
    assert first.up.weight is packed and second.up.weight is half
    assert np.isfinite(model(np.ones((1, 4), np.float32))).all()


def test_load_names_every_fault_and_loads_nothing(rng):
    """Missing, extra and misshapen arrays are all named, and no parameter has changed."""
    model, arrays = Model(), weights(rng)
    del arrays["blk.2.norm.weight"]
    arrays["blk.0.up.weight"] = np.zeros((8, 5))
    arrays["blk.9.up.weight"] = np.zeros((8, 4))
    with pytest.raises(UnsupportedModelError) as error:
        model.load_weights(arrays)
    for part in (
        "1 missing: blk.2.norm.weight",
        "blk.0.up.weight is (8, 5) and should be (8, 4)",
        "without a place in this model: blk.9.up.weight",
    ):
        assert part in str(error.value)
    model.load_weights(weights(rng))


def test_repr_is_a_tree(rng):
    """A line a module, with shapes and types; equal layers share one, another one does not."""
    model, arrays = Model(4), weights(rng, 4)
    arrays["blk.3.up.weight"] = arrays["blk.3.up.weight"].astype(np.float16)
    model.load_weights(arrays)
    assert repr(model).splitlines() == [
        "Model()",
        "  blk.0-2: Layer()",
        "    norm: RMSNorm(weight 4 float32)",
        "    up: Linear(weight 8 x 4 float32)",
        "    down: Linear(weight 4 x 8 float32)",
        "  blk.3: Layer()",
        "    norm: RMSNorm(weight 4 float32)",
        "    up: Linear(weight 8 x 4 float16)",
        "    down: Linear(weight 4 x 8 float32)",
    ]


def test_capture(rng):
    """Outputs by path, patterns allowed, in the context alone; a path unknown is an error."""
    model = Model()
    model.load_weights(weights(rng))
    x = rng.standard_normal((2, 4)).astype(np.float32)
    with model.capture("blk.*.up", "blk.1") as seen:
        y = model(x)
        assert set(seen) == {"blk.0.up", "blk.1.up", "blk.2.up", "blk.1"}
        np.testing.assert_array_equal(seen["blk.2.up"], model.blk[2].up(model.blk[2].norm(seen["blk.1"])))
        seen.clear()
    assert (model(x) == y).all() and not seen
    with pytest.raises(ValueError, match=r"'blk\.7'"), model.capture("blk.7"):
        pass


def test_captures_end_in_any_order(rng):
    """Each context takes back its own watch alone."""
    model = Model()
    model.load_weights(weights(rng))
    x = rng.standard_normal((2, 4)).astype(np.float32)
    first, second = model.capture("blk.1"), model.capture("blk.*")
    seen_first, seen_second = first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    model(x)
    assert not seen_first and "blk.1" in seen_second
    second.__exit__(None, None, None)
    assert not any(module.observers for _, module in model.named_modules())


def test_edits(rng):
    """By path: numbers multiply, arrays replace, functions give; in order, in the context alone, errors or not."""
    model = Model()
    model.load_weights(weights(rng))
    x = rng.standard_normal((2, 4)).astype(np.float32)
    before = model(x)
    layer, first = model.blk[0], model.blk[0](x)
    with model.edit({"blk.*.down": 0.0}):
        np.testing.assert_array_equal(model(x), x)
    with model.edit({"blk.0": np.arange(4)}), model.capture("blk.0") as seen:
        model(x)
    np.testing.assert_array_equal(seen["blk.0"], [[0, 1, 2, 3]] * 2)
    with model.edit({"blk.0": lambda y: y + 1, "blk.[0]": 2}), model.edit({"blk.0": lambda y, x: y + x}):
        np.testing.assert_allclose(layer(x), (first + 1) * 2 + x, rtol=1e-6)
    with pytest.raises(KeyError), model.edit({"blk.0": 3}):
        raise KeyError
    np.testing.assert_array_equal(model(x), before)
    np.testing.assert_array_equal(layer(x), first)
    assert not any("edits" in vars(module) for _, module in model.named_modules())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"blk.0.dawn": 1}, ValueError, r"no module's path matches 'blk\.0\.dawn'; near it: blk\.0\.down"),
        ({"blk.0": "twice"}, TypeError, r"edit of blk\.0: 'twice' is of type str; allowed are a function"),
        ({"blk.0": np.array(["twice"])}, TypeError, "is of type ndarray; allowed are a function"),
        ({"blk.0": lambda: 0}, TypeError, "the function takes no argument; it is called with the output"),
        ({"blk.0": lambda y, x, batch: y}, TypeError, "takes 2 inputs after the output, and the module has 1"),
        ({"blk.0": lambda y: y.fill(0)}, TypeError, r"edit of blk\.0: the function gave None"),
        ({"blk.0": lambda y: y[:1]}, ValueError, r"gave the shape \(1, 4\) for an output of \(2, 4\)"),
        ({"blk.0": lambda y: 1.0}, TypeError, "gave a builtins array for a numpy array"),
        ({"blk.0": [1.0, 2.0]}, ValueError, r"of shape \(2,\) does not broadcast to the output's \(2, 4\)"),
    ],
)
def test_edits_that_cannot_be(rng, changes, error, message):
    """The error names the module and what is wrong, and nothing stays."""
    model = Model()
    model.load_weights(weights(rng))
    with pytest.raises(error, match=message), model.edit(changes):
        model(np.ones((2, 4), np.float32))
    assert not any(module.edits for _, module in model.named_modules())


def test_edits_of_many_threads(rng):
    """While threads edit and observe, others look at the tree: no change is lost, and none makes a walk fail."""
    model = Model()
    model.load_weights(weights(rng))
    stop = time.monotonic() + 0.3

    def edit(number):
        while time.monotonic() < stop:
            with model.edit({"blk.*.up": number}), model.capture("blk.*"):
                pass

    def look(_):
        while time.monotonic() < stop:
            tree.tree_changed()
            model.reach()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda job: job[0](job[1]), [(edit, n) for n in range(4)] + [(look, 0)] * 2))
    assert not any(module.edits or module.observers for _, module in model.named_modules())
