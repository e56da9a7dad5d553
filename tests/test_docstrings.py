"""Every public name has an example, and each example gives what it says."""

import doctest
import inspect
import re
from types import SimpleNamespace

import numpy as np
import pytest
from golden import demo

import rocforge as rf
from rocforge.nn.module import Module
from rocforge.nn.transformer import Transformer


def public_names():
    """Name -> object: those of the package, and the public attributes of its classes."""
    for name in rf.__all__:
        value = getattr(rf, name)
        yield name, value
        if inspect.isclass(value):
            yield from attributes_of(name, value)


def attributes_of(name, cls):
    """Methods and properties that a class itself defines; those that it has from NumPy have NumPy's docstrings."""
    for attribute, value in vars(cls).items():
        value = getattr(value, "__func__", value)
        ours = inspect.isfunction(value) and value.__module__.startswith("rocforge")
        if not attribute.startswith("_") and (ours or isinstance(value, property)):
            yield f"{name}.{attribute}", value


NAMES = dict(public_names())
OTHERS = {
    "rocforge": rf,
    **{cls.__name__: cls for cls in (Module, Transformer)},
    **dict(attributes_of("Module", Module)),
    **dict(attributes_of("Transformer", Transformer)),
}
"""What a user meets beside the public names: their examples are run, where they have any."""


class Nearly(doctest.OutputChecker):
    """Numbers are compared to five digits: the last ones are the processor's."""

    NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")

    def check_output(self, want, got, optionflags):
        numbers = ([float(number) for number in self.NUMBER.findall(text)] for text in (want, got))
        want_numbers, got_numbers = numbers
        if len(want_numbers) == len(got_numbers) and np.allclose(want_numbers, got_numbers, rtol=1e-5, atol=1e-6):
            want, got = self.NUMBER.sub("#", want), self.NUMBER.sub("#", got)
        return super().check_output(want, got, optionflags)


@pytest.fixture(scope="module")
def names():
    """What examples may use without a word: the modules, and the demo model as `rf.load` gives it."""
    model, tokenizer = rf.load(demo.bundled(), device="cpu")
    return {"rf": rf, "np": np, "model": model, "tokenizer": tokenizer, "SimpleNamespace": SimpleNamespace}


@pytest.mark.parametrize("name", NAMES)
def test_has_an_example(name):
    """Classes, functions and methods have one; properties say in their docstring what they are."""
    text = inspect.getdoc(NAMES[name]) or ""
    assert text and (isinstance(NAMES[name], property) or ">>>" in text), f"{name} has no example in its docstring"


@pytest.mark.parametrize("name", {**NAMES, **OTHERS})
def test_example_gives_what_it_says(name, names, tmp_path, monkeypatch):
    """In a folder that holds the demo model as model.gguf."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").symlink_to(demo.bundled().resolve())
    text = inspect.getdoc({**NAMES, **OTHERS}[name]) or ""
    if "import cupy" in text and rf.device_info().device == "cpu":
        pytest.skip("there is no GPU to run it on")
    example = doctest.DocTestParser().get_doctest(text, dict(names), name, None, 0)
    runner = doctest.DocTestRunner(checker=Nearly(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    runner.run(example, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_a_wrong_example_fails():
    """Numbers may differ in the last digits, and in nothing else."""
    check = Nearly().check_output
    assert check("array([0.123456])\n", "array([0.1234561])\n", 0)
    assert not check("array([0.1234])\n", "array([0.1235])\n", 0)
    assert not check("(1, 2)\n", "(1, 3)\n", 0) and not check("[0.5]\n", "[0.5, 0.5]\n", 0)
