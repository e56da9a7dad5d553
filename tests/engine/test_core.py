"""EngineCore: what a step brings the requests of an engine, by their keys."""

import time

import pytest
from counting_model import GREEDY, CountingModel

from rocforge.engine.core import EngineCore
from rocforge.engine.engine import Engine
from rocforge.engine.reply import DeadlineError, StepError
from rocforge.ops.sampling import SamplingParams


@pytest.fixture
def core():
    with Engine(CountingModel(), cache_tokens=1024, max_batch_tokens=64) as engine:
        yield EngineCore(engine)


def steps(core):
    """The events of all steps until nothing runs."""
    while core.busy:
        yield core.step()


def test_events(core):
    """A request begins, gets its tokens, the first with what was found in the cache, and ends."""
    core.add(5, list(range(10)) * 10, GREEDY)
    events = [event for step in steps(core) for event in step]
    assert events[0] == (5, None, None, None, 0, None)
    assert [event.token for event in events[1:]] == list(range(10, 16)) + [0, 1]
    assert [event.finish_reason for event in events[1:]] == [None] * 7 + ["length"]
    core.add(6, list(range(10)) * 10, GREEDY)
    cached = [event.cached_tokens for step in steps(core) for event in step if event.token is not None]
    assert cached == [96] + [0] * 7


def test_cancelled_requests_bring_nothing(core):
    """Not even what a step that had begun would have given them; others go on."""
    for key in (1, 2):
        core.add(key, [key], SamplingParams(max_tokens=20, temperature=0))
    core.step()
    assert core.cancel(1) and not core.cancel(1) and not core.cancel(7)
    assert {event.key for step in steps(core) for event in step} == {2}
    assert core.engine.scheduler.state.idle


def test_deadlines(core):
    """Requests fail in the order of their deadlines, whenever they were submitted; those that ended before do not."""
    now = time.monotonic()
    for key, timeout, since in ((1, 600.0, now - 599.9), (2, 0.05, now), (3, 600.0, now)):
        core.add(key, [key], SamplingParams(max_tokens=400, temperature=0), timeout=timeout, submitted=since)
    core.add(4, [4], SamplingParams(max_tokens=1), timeout=0.01, submitted=now)
    assert {event.key for event in core.step() if event.finish_reason} == {4}
    failed = []
    while len(failed) < 2:
        failed += [event for event in core.step() if event.error]
        time.sleep(0.001)
    assert [event.key for event in failed] == [2, 1]
    assert [str(event.error) for event in failed] == [
        f"the request timed out after {s} seconds" for s in ("0.05", "600")
    ]
    assert all(isinstance(event.error, DeadlineError) for event in failed)


def test_deadlines_of_ended_requests_are_forgotten(core):
    """However far off they are."""
    for key in range(1000):
        core.add(key, [1], SamplingParams(max_tokens=1), timeout=600.0, submitted=time.monotonic())
        core.cancel(key)
    assert len(core._deadlines) < 100


def test_failing_steps(core):
    """Each fails its requests; one that succeeds begins the count anew, and the third in a row is raised."""
    model = core.engine.model
    for failures in (2, 3):
        model.failures = failures
        for _ in range(2):
            core.add(1, [1], GREEDY)
            (event,) = core.step()
            assert isinstance(event.error, StepError) and not core.busy
        core.add(2, [2], GREEDY)
        if failures == 2:
            assert [event.token for step in steps(core) for event in step if event.token is not None][:2] == [3, 4]
        else:
            with pytest.raises(MemoryError, match="no room"):
                core.step()
