"""What counts as passed, and what a check's process makes of an outcome and of an exception."""

import numpy as np
import pytest

from rocforge.selftest.__main__ import run
from rocforge.selftest.check import Check, Error, Figure, Outcome, exact
from rocforge.selftest.run import Job

JOB = Job("order", True, 7)


@pytest.mark.parametrize(
    ("value", "passes"), [(0.5, True), (1.0, True), (1.01, False), (np.nan, False), (np.inf, False)]
)
def test_bounds(value, passes):
    """No number is within no bound."""
    found = run(Check("one", lambda rng: Outcome({"x": Error(value, 1.0), "y": Error(0.0, 0.0)})), JOB)
    assert found["failure"] == (None if passes else "error above tolerance: x")


def test_exact():
    """The share of elements that differ; NaNs are equal, shapes and dtypes have to be."""
    a = np.array([1, np.nan, 3, 4], np.float32)
    assert exact(a, a.copy()) == (0, 0) and exact(a, a + np.array([0, 0, 0, 1], np.float32)).value == 0.25
    with pytest.raises(ValueError, match="float64"):
        exact(a, a.astype(np.float64))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        exact(a, a[:3])


def test_an_exception_is_a_failure():
    """With the end of its traceback."""

    def broken(rng):
        raise RuntimeError("hipErrorIllegalAddress")

    found = run(Check("broken", broken), JOB)
    assert found["failure"].endswith("RuntimeError: hipErrorIllegalAddress") and "in broken" in found["failure"]
    assert found["name"] == "broken" and "errors" not in found


def test_numbers_by_seed():
    """The same for one check and seed, whatever ran before; others for another."""

    def drawn(name, seed):
        figures = run(
            Check(name, lambda rng: Outcome(figures={"x": Figure(rng.random(), "")})), Job("order", True, seed)
        )
        return figures["figures"]["x"]["value"]

    assert drawn("a", 1) == drawn("a", 1)
    assert len({drawn("a", 1), drawn("b", 1), drawn("a", 2)}) == 3
