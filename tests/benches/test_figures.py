"""benches/serving/figures.py, on made-up arrival times: what counts, and what the percentiles are."""

import pytest
from serving.figures import Trace, Window, figures, percentiles


def trace(submitted, *arrivals, prompt=10, **fields):
    return Trace(submitted, prompt, list(arrivals), **fields)


def test_percentiles():
    """Of 101 gaps of 0 to 100 ms each percentile is its own number; of one gap all are that; of none there is none."""
    gaps = [i / 1000 for i in range(100, -1, -1)]
    assert percentiles(gaps) == pytest.approx({"p50": 50, "p99": 99, "max": 100})
    assert percentiles([0.002]) == pytest.approx({"p50": 2, "p99": 2, "max": 2})
    assert percentiles([0.0, 0.01]) == pytest.approx({"p50": 5, "p99": 9.9, "max": 10})
    assert percentiles([]) is None


def test_only_what_happens_within_the_window_counts():
    """A request that began before the window counts from there on, one that ends after it until there."""
    early = trace(0.0, 0.5, 0.9, 1.1, 1.4, finished=1.4)
    late = trace(1.5, 1.75, 1.9, 2.5, prompt=30, finished=2.5)
    found = figures([early, late], Window(1.0, 2.0))
    assert found["output_tokens_per_second"] == 4  # 1.1, 1.4, 1.75, 1.9
    assert found["total_tokens_per_second"] == 34  # and the prompt whose first token came within
    assert found["requests_per_second"] == found["finished"] == 1
    assert found["ttft_ms"] == pytest.approx({"p50": 250, "p99": 250, "max": 250})
    assert found["gap_ms"]["max"] == pytest.approx(300)  # 1.1 to 1.4; 0.9 to 1.1 began before, 1.9 to 2.5 ends after
    assert found["gap_ms"]["p50"] == pytest.approx(225)


def test_rates_are_by_the_length_of_the_window():
    found = figures([trace(0.0, 1.0, 2.0, 3.0, 4.0)], Window(0.0, 8.0))
    assert (found["output_tokens_per_second"], found["total_tokens_per_second"]) == (0.5, 1.75)


def test_gaps_are_within_a_request():
    """Two requests whose tokens alternate: the gaps are each one's own."""
    found = figures([trace(0, 1, 2, 3), trace(0, 1.5, 2.5, 3.5)], Window(0, 4))
    assert found["gap_ms"] == pytest.approx({"p50": 1000, "p99": 1000, "max": 1000})


def test_tokens_that_arrive_together():
    """Where the server says how many tokens a reply has, an arrival is its share of them; for one that is still in
    flight, as many as an arrival has of the others."""
    told = trace(0, 1, 2, tokens=6, finished=2)
    in_flight = trace(0, 1, 2, 3)
    found = figures([told, in_flight], Window(0, 4))
    assert found["output_tokens_per_second"] == (6 + 9) / 4


def test_waiting():
    """Those that have no token at the end of the window, and for how long; not those that came later, or gave up."""
    given_up = trace(0.5, finished=0.6, error="refused")
    found = figures([trace(0.0), trace(1.0, 2.5), trace(1.0, 1.5), trace(2.1), given_up], Window(0.5, 2.0))
    assert (found["waiting"], found["waiting_ms"]) == (2, pytest.approx(2000))
    assert (found["errors"], found["error"]) == (1, "refused")


def test_nothing_came():
    found = figures([], Window(0, 1))
    assert found["output_tokens_per_second"] == 0 and not found["ttft_ms"] and not found["gap_ms"]


def test_steps():
    """Steps that lie in the window as a whole."""
    found = figures([], Window(1, 2), [(0.5, 1.2), (1.2, 1.3), (1.3, 1.9), (1.9, 2.4)])
    assert found["step_ms"] == pytest.approx({"p50": 350, "p99": 595, "max": 600})
