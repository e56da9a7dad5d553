"""The engine and its scheduler: batching changes nothing, budgets hold, preemption loses nothing, nothing leaks."""

from dataclasses import replace

import numpy as np
import pytest
from golden import build
from hypothesis import given, settings
from hypothesis import strategies as st

import rocforge as rf
from rocforge.cache import BlockPool
from rocforge.engine import Engine
from rocforge.load import load_model
from rocforge.sampling import SamplingParams
from rocforge.scheduler import Request, Scheduler, Status


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random llama."""
    path = tmp_path_factory.mktemp("engine") / "llama.gguf"
    build(path, "llama", "F32")
    return load_model(rf.open_gguf(path), device="cpu", context=512)


def finish(engine):
    """Run until all is done; the pool must be whole again."""
    tokens = []
    while engine.busy:
        step = engine.step()
        tokens += step
    assert engine.scheduler.pool.free == engine.scheduler.pool.blocks
    return tokens


def outputs(model, prompts, params, **options):
    with Engine(model, **options) as engine:
        requests = [engine.add(p, s) for p, s in zip(prompts, params, strict=True)]
        finish(engine)
        return [request.output for request in requests]


@pytest.fixture(scope="module")
def workload(model):
    """Prompts of many lengths, some with a common beginning, and their outputs computed alone."""
    rng = np.random.default_rng(0)
    common = list(rng.integers(0, model.config.vocabulary, 70))
    prompts = [list(rng.integers(0, model.config.vocabulary, n)) for n in (1, 31, 32, 33, 150, 64, 7)]
    prompts += [common + p[:5] for p in prompts[1:4]]
    params = [SamplingParams(max_tokens=20 + i, temperature=0.9, top_p=0.95, seed=i) for i in range(len(prompts))]
    alone = [outputs(model, [p], [s])[0] for p, s in zip(prompts, params, strict=True)]
    return prompts, params, alone


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch_tokens": 16},
        {"max_requests": 2},
        {"cache_tokens": 192, "max_batch_tokens": 64},
    ],
    ids=["all at once", "small chunks", "two at a time", "cache too small for all"],
)
def test_same_text_in_any_company(model, workload, options):
    """The same seed gives the same tokens whatever else runs, however prompts are cut, and through preemption."""
    prompts, params, alone = workload
    assert outputs(model, prompts, params, **options) == alone


def test_preemption_happens_and_loses_nothing(model, workload, monkeypatch):
    """With a cache that cannot hold the running requests, some are preempted (counted), and all end as if alone."""
    prompts, params, alone = workload
    count = []
    preempt = Scheduler._preempt
    monkeypatch.setattr(Scheduler, "_preempt", lambda self, request: (count.append(request), preempt(self, request)))
    assert outputs(model, prompts, params, cache_tokens=192) == alone
    assert count


def test_an_equal_prefix_is_not_computed_again(model, rng):
    """A second request with the same 70 tokens in front computes only what its full blocks do not hold."""
    prefix = list(rng.integers(0, model.config.vocabulary, 70))
    with Engine(model) as engine:
        first = engine.add([*prefix, 1], SamplingParams(max_tokens=4, temperature=0, logprobs=3))
        finish(engine)
        again = engine.add([*prefix, 1], SamplingParams(max_tokens=4, temperature=0, logprobs=3))
        other = engine.add([*prefix, 2], SamplingParams(max_tokens=1, temperature=0))
        work = engine.scheduler.schedule()
        assert [item.count for item in work] == [71 - 64, 71 - 64]
        for item in work:
            engine.scheduler.advance(item)
            engine.cancel(item.request)
        assert again.status is other.status is Status.FINISHED
        repeat = engine.add([*prefix, 1], SamplingParams(max_tokens=4, temperature=0, logprobs=3))
        reports = [token.logprobs for token in finish(engine)]
        assert repeat.output == first.output
    with Engine(model) as engine:
        engine.add([*prefix, 1], SamplingParams(max_tokens=4, temperature=0, logprobs=3))
        for report, token in zip(reports, finish(engine), strict=True):
            assert report.top == pytest.approx(token.logprobs.top, abs=1e-4)


def test_finish_reasons(model):
    """Length at max_tokens and at the context; stop at an end-of-generation token, which ignore_eos passes over."""
    params = SamplingParams(max_tokens=3, temperature=0, repetition_penalty=10)
    with Engine(model) as engine:
        engine.add([1, 2, 3], params)
        tokens = finish(engine)
    assert [t.finish_reason for t in tokens] == [None, None, "length"]
    assert tokens[0].id != tokens[1].id
    with Engine(model, {tokens[1].id}) as engine:
        engine.add([1, 2, 3], params)
        assert [t.finish_reason for t in finish(engine)] == [None, "stop"]
        engine.add([1, 2, 3], replace(params, ignore_eos=True))
        assert [t.id for t in finish(engine)] == [t.id for t in tokens]
    with Engine(model, cache_tokens=32) as engine:
        request = engine.add(list(range(30)), SamplingParams(temperature=0))
        assert finish(engine)[-1].finish_reason == "length" and request.length == 32


def test_logprobs(model):
    """Reported where asked for: of the raw logits, the greedy token the most likely one."""
    with Engine(model) as engine:
        engine.add([5], SamplingParams(max_tokens=2, temperature=0, logprobs=2))
        for token in finish(engine):
            assert max(token.logprobs.top, key=token.logprobs.top.get) == token.id
            assert len(token.logprobs.top) == 2 and token.logprobs.token == max(token.logprobs.top.values())


def test_bad_prompts(model):
    """Empty, too long, and with an unknown token: each says so; the engine goes on."""
    with Engine(model, cache_tokens=64) as engine:
        for prompt, message in [
            ([], "no tokens"),
            ([0] * 64, "64 tokens, and the limit is 64"),
            ([10**6], "outside 0"),
        ]:
            with pytest.raises(ValueError, match=message):
                engine.add(prompt)
        assert not engine.busy and engine.step() == []


def test_close_ends_everything(model):
    """Leaving the context frees all blocks, also after an error in the middle; a closed engine refuses requests."""
    with pytest.raises(KeyError), Engine(model) as engine:
        request = engine.add([1, 2, 3])
        engine.step()
        raise KeyError
    assert request.status is Status.FINISHED
    assert engine.scheduler.pool.free == engine.scheduler.pool.blocks
    with pytest.raises(RuntimeError, match="closed"):
        engine.add([1])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 9)),
        min_size=1,
        max_size=8,
    ),
    st.integers(11, 24),
    st.integers(1, 20),
    st.integers(1, 5),
    st.sets(st.integers(0, 40)),
)
def test_scheduler_rules(arrivals, blocks, budget, most, cancelled):
    """For any arrivals and cancellations: budgets hold, no block is written by two, each token is computed in order,
    decoding requests all run while the budget lasts, and everything ends."""
    pool = BlockPool(blocks, 4)
    scheduler = Scheduler(pool, budget, most)
    pending = sorted(arrivals, key=lambda a: a[2])
    limits, cached = {}, {}
    for step in range(3000):
        while pending and pending[0][2] <= step:
            prompt, count, _ = pending.pop(0)
            request = Request(list(prompt), SamplingParams(seed=0))
            limits[request] = count
            scheduler.add(request)
        if step in cancelled and scheduler.running:
            scheduler.finish(scheduler.running[0])
        work = scheduler.schedule()
        assert sum(item.count for item in work) <= budget and len(scheduler.running) <= most
        if scheduler.running:
            assert work
        written = [request.table[p // 4] for request, n in work for p in range(request.computed, request.computed + n)]
        owners = {}
        for request, n in work:
            for position in range(request.computed, request.computed + n):
                assert owners.setdefault(request.table[position // 4], request) is request
        assert len(written) == sum(item.count for item in work)
        for item in work:
            request, samples = item.request, item.samples
            for position in range(request.computed + item.count):
                if position < request.computed:
                    # what is taken over from the cache is what was computed for the same tokens
                    assert cached[request.table[position // 4], position % 4] == request.tokens(0, position + 1)
                else:
                    cached[request.table[position // 4], position % 4] = request.tokens(0, position + 1)
            scheduler.advance(item)
            if samples:
                request.output.append(len(request.output) % 2)
                if len(request.output) == limits[request]:
                    scheduler.finish(request)
        if not pending and not len(scheduler):
            break
    assert not len(scheduler) and pool.free == blocks
