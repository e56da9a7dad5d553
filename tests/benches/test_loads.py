"""benches/serving/load.py: which requests come, and when."""

import itertools

import numpy as np
import pytest
from serving.load import LONGEST, PREFIXES, SHORTEST, Load, Source


def jobs(load, count=2000, vocabulary=1000):
    return list(itertools.islice(load.jobs(vocabulary), count))


def test_closed_loop_keeps_its_number_in_flight():
    source = Source(Load(concurrency=3), 100, start=5.0)
    assert len(list(source.due(5.0, 0))) == 3
    assert not list(source.due(6.0, 3))
    ((_, at),) = source.due(7.0, 2)
    assert at == 7.0  # it comes when its place is free


def test_the_first_of_a_closed_loop_end_at_different_times():
    """They write 1 to 128 tokens, and all behind them 128."""
    first, later = jobs(Load(concurrency=200))[:200], jobs(Load(concurrency=200))[200:]
    assert {job.tokens for job in later} == {128}
    assert 1 <= min(job.tokens for job in first) < 10 and 118 < max(job.tokens for job in first) <= 128


def test_poisson_arrivals():
    """The mean gap is that of the rate, and so is its spread; a late look gives all that came meanwhile, with the time
    at which each came."""
    load = Load(rate=50.0)
    gaps = np.diff([job.at for job in jobs(load)])
    assert np.mean(gaps) == pytest.approx(1 / 50, rel=0.1) and np.std(gaps) == pytest.approx(1 / 50, rel=0.1)
    source, expected = Source(load, 100, start=2.0), jobs(load, 20)
    came = [at for _, at in source.due(2.0 + expected[9].at, 0)]
    assert came == [2.0 + job.at for job in expected[:10]]
    assert source.wait(2.0 + expected[9].at) == pytest.approx(min(expected[10].at - expected[9].at, 0.05))


def test_all_at_once():
    source = Source(Load(at_once=7), 100, start=0.0)
    assert len(list(source.due(0.0, 0))) == 7 and source.exhausted


def test_sharegpt_lengths():
    """The means that the docstring states, within the cut."""
    found = jobs(Load(rate=1, lengths="sharegpt"), 5000)
    prompts, outputs = [len(job.prompt) for job in found], [job.tokens for job in found]
    assert np.mean(prompts) == pytest.approx(220, rel=0.08) and np.mean(outputs) == pytest.approx(205, rel=0.08)
    assert min(prompts + outputs) >= SHORTEST and max(prompts + outputs) == LONGEST


def test_shares_and_prefixes():
    load = Load(rate=1, lengths=(16, 8), shared_prefix=32, constrained=0.1, cancelled=0.2)
    found = jobs(load)
    assert sum(job.constrained for job in found) == pytest.approx(200, rel=0.2)
    left = [job.cancel_after for job in found if job.cancel_after is not None]
    assert len(left) == pytest.approx(400, rel=0.2) and set(left) == set(range(1, 9))
    assert len({tuple(job.prompt[:32]) for job in found}) == PREFIXES
    assert len({tuple(job.prompt[32:]) for job in found}) == len(found)
    assert all(len(job.prompt) == 48 and max(job.prompt) < 1000 for job in found)


@pytest.mark.parametrize("load", [Load(concurrency=10), Load(at_once=10), Load(rate=10.0)], ids=str)
def test_parts_make_the_whole(load):
    """Three clients share a load, and no two of them send the same prompt."""
    parts = [load.part(i, 3) for i in range(3)]
    for name in ("concurrency", "at_once", "rate"):
        if whole := getattr(load, name):
            assert sum(getattr(part, name) for part in parts) == pytest.approx(whole)
    prompts = [tuple(job.prompt) for part in parts for job in jobs(part, 3)]
    assert len(set(prompts)) == 9


@pytest.mark.parametrize("fields", [{}, {"concurrency": 0}, {"concurrency": 1, "rate": 2.0}])
def test_a_load_has_one_kind_of_arrivals(fields):
    with pytest.raises(ValueError, match="one of concurrency, rate and at_once must be given"):
        Load(**fields)
