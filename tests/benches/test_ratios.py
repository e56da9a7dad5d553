"""The CPU's work in units of a reference: what is too slow, and that a planted loss is found."""

import time

import pytest
import ratios
from history import Run
from threadpoolctl import threadpool_limits


def kept(machine, date, **found):
    return Run(machine, date, "0123456", "a test", ratios=found)


def test_bounds():
    """15 % over the newest ratios of this kind of machine; twice the highest of any where there are none."""
    runs = [kept("ours", "2026-01-01", a=9.0), kept("ours", "2026-01-02", a=2.0), kept("other", "2026-01-03", a=4.0)]
    assert ratios.bounds(runs, "ours") == {"a": pytest.approx(2.3)}
    assert ratios.bounds(runs, "unknown") == {"a": pytest.approx(18.0)}


def test_a_planted_loss_is_found():
    """A decode step that waits for as long as it takes is above its bound, that of one which does not."""
    with threadpool_limits(1):
        work = ratios.works()["decode, one step"]

        def slowed():
            time.sleep(ratios.seconds(work.run))

        found = ratios.measure({"usual": work, "slowed": ratios.Work(slowed, work.reference)}, 1.0)
    bounds = ratios.bounds([kept("ours", "2026-01-01", step=found["usual"])], "ours")
    assert found["slowed"] > bounds["step"] > found["usual"]


def test_one_slow_measurement_is_measured_again(monkeypatch):
    """Only what was slow, and what is slow each of three times is slow."""
    answers = iter([{"a": 2.0, "b": 2.0, "c": 1.0}, {"a": 1.0, "b": 1.9}, {"b": 1.8}])
    asked = []
    monkeypatch.setattr(ratios, "measure", lambda works, limit: (asked.append(set(works)), next(answers))[1])
    found, slow = ratios.check(dict.fromkeys("abc"), dict.fromkeys("abc", 1.5))
    assert asked == [{"a", "b", "c"}, {"a", "b"}, {"b"}] and slow == {"b"}
    assert found == {"a": 1.0, "b": 1.8, "c": 1.0}
