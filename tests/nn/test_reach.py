"""Reach: functions that only launch on arrays are told from those that do more, of any kind."""

import functools
import time

import numpy as np
import pytest

import rocforge as rf
from rocforge.nn.reach import reached, same_reach

factor, names, host = 0.5, ["a"], np.ones(4, np.float32)
counter = 0


def helper(y):
    return rf.softcap(y, 30.0) * factor


def counts(y):
    global counter
    counter += 1
    return y


def generator(y):
    yield y


class Callable:
    def __call__(self, y):
        return y


def closing_over(value):
    return lambda y: y * value


PURE = {
    "arithmetic": lambda y: y * 2 + 1,
    "op": rf.gelu,
    "ops": lambda y, x: rf.add(y, rf.scale(x, factor)),
    "helper": lambda y: helper(y) - y.mean(axis=-1, keepdims=True),
    "ufunc": np.tanh,
    "module's functions": lambda y: np.where(y > 0, y, np.exp(y) - np.pi),
    "index": lambda y: y[:, 3:5] + y[0, 3],
    "partial": functools.partial(helper),
    "closure": closing_over(0.5),
    "default": lambda y, scale=0.5: y * scale,
    "either module": lambda y: rf.get_array_module(y).sin(y),
    "positions": lambda y, x, batch: np.where(batch.positions[:, None] == 3, 0, y),
}
EFFECTS = {
    "append": lambda y: names.append(y) or y,
    "list": closing_over([1.0]),
    "array on the host": lambda y: y + host,
    "print": lambda y: print(y) or y,
    "counter": counts,
    "clock": lambda y: y * time.time(),
    "value": lambda y: y * y.item(),
    "copy to the host": lambda y: rf.asnumpy(y),
    "random": lambda y: y + np.random.normal(),
    "branch": lambda y: y if len(y) > 1 else -y,
    "indices": lambda y: y[:, [0, 1]],
    "tuple of indices": lambda y: y[:, (0, 1)],
    "method of an object": {}.get,
    "object": Callable(),
    "generator": generator,
    "partial of one": functools.partial(counts),
    "helper of one": lambda y: counts(y),
    "unknown name": lambda y: y + nothing_of_that_name,  # noqa: F821
    "function within": lambda y: (lambda z: z)(y),
}


def setting_an_element(y):
    y[:, 3] = 0
    y[0, 3] += 2
    return y


def writing_to_a_dict(y):
    EFFECTS["seen"] = y
    return y


@pytest.mark.parametrize("function", [*PURE.values(), setting_an_element], ids=[*PURE, "setting an element"])
def test_pure_functions(function):
    """Those of array arithmetic and ops, whatever kind of function they are."""
    assert reached(function) is not None


@pytest.mark.parametrize("function", [*EFFECTS.values(), writing_to_a_dict], ids=[*EFFECTS, "writing to a dict"])
def test_effects(function):
    """Anything with an effect on the host, or that might have one."""
    assert reached(function) is None


def test_a_change_of_what_is_reached_is_seen(monkeypatch):
    """A global number, or one in a helper, set anew."""
    function = PURE["helper"]
    before = reached(function)
    assert same_reach(before, reached(function))
    monkeypatch.setitem(globals(), "factor", 0.25)
    assert not same_reach(before, reached(function))
    assert not same_reach(None, None)
