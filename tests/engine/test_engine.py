"""The engine: batching changes nothing, budgets hold, preemption loses nothing, nothing leaks."""

from dataclasses import replace

import numpy as np
import pytest
from golden import build

import rocforge as rf
from rocforge.engine.engine import Engine
from rocforge.engine.host_step import HostStep
from rocforge.engine.pacing import INTER_TOKEN_MS
from rocforge.engine.request import Status
from rocforge.engine.sampler import SampledToken
from rocforge.engine.scheduler import Scheduler, counted
from rocforge.load import load_model
from rocforge.ops.sampling import SamplingParams, sample


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
    assert engine.scheduler.state.idle
    return tokens


def outputs(model, prompts, params, **options):
    with Engine(model, **options) as engine:
        requests = [engine.add(p, s) for p, s in zip(prompts, params, strict=True)]
        finish(engine)
        return [request.output for request in requests]


def same(model, prompt, params, output, alone):
    """Whether two outputs are equal, as far as to a draw that falls on the border of two tokens.

    A batch's sums are in another order than those of a request alone. Logits then differ by some 1e-5, which decides a
    draw in ten thousand; noise of 1e-4 gives both tokens where it does.
    """
    if output == alone or len(output) != len(alone):
        return output == alone
    step = next(i for i, (a, b) in enumerate(zip(output, alone, strict=True)) if a != b)
    logits, chance = model(np.array([*prompt, *alone[:step]]))[-1], np.random.default_rng(0)
    noisy = [logits + chance.normal(0, 1e-4, logits.shape).astype(np.float32) for _ in range(50)]
    return {output[step], alone[step]} <= {sample(row, params, prompt, alone[:step]) for row in noisy}


def near(top, alone):
    """Whether the five most likely of ten tokens are among the ten of the other report, and as likely to 1e-4."""
    likely = list(alone)[:5]
    return [top.get(id) for id in likely] == pytest.approx([alone[id] for id in likely], abs=1e-4)


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


@pytest.mark.slow
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
    together = outputs(model, prompts, params, **options)
    assert all(same(model, *request) for request in zip(prompts, params, together, alone, strict=True))


def test_preemption_happens_and_loses_nothing(model, workload, monkeypatch):
    """With a cache that cannot hold the running requests, some are preempted (counted), and all end as if alone."""
    prompts, params, alone = workload
    count = []
    preempt = Scheduler.preempt
    monkeypatch.setattr(Scheduler, "preempt", lambda self, request: (count.append(request), preempt(self, request)))
    together = outputs(model, prompts, params, cache_tokens=192)
    assert all(same(model, *request) for request in zip(prompts, params, together, alone, strict=True))
    assert count


@pytest.mark.parametrize("types", [{}, {"cache_type_k": "q8_0", "cache_type_v": "q4_0"}], ids=["f32", "packed"])
def test_an_equal_prefix_is_not_computed_again(model, rng, types):
    """A second request with the same 70 tokens in front computes only what its full blocks do not hold."""
    prefix = list(rng.integers(0, model.config.vocabulary, 70))
    with Engine(model, **types) as engine:
        first = engine.add([*prefix, 1], SamplingParams(max_tokens=4, temperature=0, logprobs=10))
        finish(engine)
        again = engine.add([*prefix, 1], SamplingParams(max_tokens=4, temperature=0, logprobs=10))
        other = engine.add([*prefix, 2], SamplingParams(max_tokens=1, temperature=0))
        work = engine.scheduler.schedule()
        assert [item.tokens for item in work] == [71 - 64, 71 - 64]
        for item in work:
            engine.scheduler.advance(item)
            engine.cancel(item.request)
        assert again.status is other.status is Status.FINISHED
        repeat = engine.add([*prefix, 1], SamplingParams(max_tokens=4, temperature=0, logprobs=10))
        reports = [token.logprobs for token in finish(engine)]
        assert repeat.output == first.output
    with Engine(model, **types) as engine:
        engine.add([*prefix, 1], SamplingParams(max_tokens=4, temperature=0, logprobs=10))
        for report, token in zip(reports, finish(engine), strict=True):
            assert near(report.top, token.logprobs.top)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    """A small random llama with room for long prompts."""
    path = tmp_path_factory.mktemp("engine") / "llama.gguf"
    build(path, "llama-linear", "F32")
    return load_model(rf.open_gguf(path), device="cpu", context=4096)


def count_tokens(engine):
    """Note how many tokens each step runs, by request."""
    counts, run = {}, engine._runner.launch

    def counting(work):
        for item in work:
            counts[item.request] = counts.get(item.request, 0) + item.tokens
        return run(work)

    engine._runner.launch = counting
    return counts


@pytest.mark.slow
def test_a_2k_prefix_is_computed_once(long_model, rng):
    """Of a second request with the same 2048 tokens in front only what differs runs, with the same logits."""
    prefix = list(rng.integers(0, long_model.config.vocabulary, 2048))
    params = SamplingParams(max_tokens=3, temperature=0, logprobs=10)
    reports = []
    for warm in (False, True):
        with Engine(long_model, cache_tokens=8192) as engine:
            counts = count_tokens(engine)
            if warm:
                engine.add([*prefix, 1, 2, 3], params)
                finish(engine)
            request = engine.add([*prefix, 4, 5], params)
            tokens = finish(engine)
            reports.append([token.logprobs.top for token in tokens])
            assert counts[request] == (2 if warm else 2050) + 2
            assert request.num_cached_tokens == (2048 if warm else 0)
    for alone, shared in zip(*reports, strict=True):
        assert near(shared, alone)


def test_requests_that_come_together_share_a_prefix(long_model, rng):
    """Of four requests with one prompt, at once, one computes it and the others wait for its blocks."""
    prompt = list(rng.integers(0, long_model.config.vocabulary, 1000))
    params = [SamplingParams(max_tokens=5, temperature=1, seed=seed) for seed in range(4)]
    alone = [outputs(long_model, [prompt], [p])[0] for p in params]
    with Engine(long_model, cache_tokens=8192) as engine:
        counts = count_tokens(engine)
        requests = [engine.add(prompt, p) for p in params]
        finish(engine)
    assert all(same(long_model, prompt, *p) for p in zip(params, [r.output for r in requests], alone, strict=True))
    assert sorted(counts.values()) == [1000 % 32 + 4] * 3 + [1000 + 4]


def test_a_shared_prefix_outlives_its_first_user(long_model, rng):
    """Blocks are free when the last request that holds them goes: cancelling the first does not harm the second."""
    prompt = list(rng.integers(0, long_model.config.vocabulary, 200))
    params = SamplingParams(max_tokens=40, temperature=1, seed=1)
    (alone,) = outputs(long_model, [[*prompt, 7]], [params])
    with Engine(long_model, cache_tokens=1024) as engine:
        first = engine.add(prompt, params)
        engine.step()
        second = engine.add([*prompt, 7], params)
        while not second.output:
            engine.step()
        shared = set(first.state.tables[0]) & set(second.state.tables[0])
        assert len(shared) == 200 // 32
        engine.cancel(first)
        (pool,) = engine.scheduler.state.pools
        free = pool.free
        others = [engine.add(list(rng.integers(0, 200, 300)), SamplingParams(max_tokens=2)) for _ in range(3)]
        assert pool.blocks - free == len(second.state.tables[0])
        finish(engine)
    assert same(long_model, [*prompt, 7], params, second.output, alone)
    assert all(other.status is Status.FINISHED for other in others)


@pytest.mark.parametrize("target", [None, 40])
def test_decoding_keeps_its_pace_beside_a_long_prompt(long_model, target):
    """By times that grow with the work, the gaps between tokens meet the target while 4000 tokens of another request
    come in, which get the rest of the time."""
    with Engine(long_model, cache_tokens=8192, inter_token_ms=target) as engine:
        seconds = []

        def timed(work):
            decodes, tokens = counted(work)
            seconds.append(0.004 + 0.0002 * decodes + 0.0001 * (tokens - decodes))
            requests = [item.request for item in work if item.needs_logits]
            return HostStep(work, requests, [SampledToken(5)] * len(requests), seconds[-1])

        engine._runner.launch = timed
        params = SamplingParams(max_tokens=900, temperature=0, ignore_eos=True)
        writers = [engine.add([i], params) for i in range(4)]
        for _ in range(20):
            engine.step()
        seconds.clear()
        long = engine.add([5] * 4000, SamplingParams(max_tokens=1))
        while long.status is not Status.FINISHED:
            assert {token.request for token in engine.step()} >= set(writers)
        goal = (target or INTER_TOKEN_MS["cpu"]) / 1e3
        assert max(seconds[1:]) < 1.05 * goal < 1.2 * np.median(seconds)
        engine.cancel_all()


def test_a_failing_constraint_ends_its_request_alone(model):
    """Its error comes as the token; the other requests of the step get theirs."""

    class Broken:
        def bits(self):
            return np.ones(1, np.uint32)

        def accept(self, token):
            raise RuntimeError(f"not {token}")

    with Engine(model) as engine:
        good = engine.add([1, 2], SamplingParams(max_tokens=2))
        bad = engine.add([1, 3], SamplingParams(max_tokens=2), Broken())
        tokens = {token.request: token for token in engine.step()}
        assert tokens[bad].finish_reason == "error" and str(tokens[bad].error) == "not 0"
        assert tokens[good].error is None and bad.status is Status.FINISHED
        finish(engine)


def test_after_a_failing_step(model):
    """`cancel_all` gives everything back, and the engine goes on."""
    with Engine(model) as engine:
        run = engine._runner.launch
        engine._runner.launch = lambda work: 1 / 0
        engine.add([1, 2, 3])
        engine.add(list(range(100)))
        with pytest.raises(ZeroDivisionError):
            engine.step()
        engine.cancel_all()
        assert not engine.busy and engine.scheduler.state.idle
        engine._runner.launch = run
        engine.add([1, 2, 3], SamplingParams(max_tokens=2))
        assert len(finish(engine)) == 2


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
        engine.add([1, 2, 3], replace(params, min_tokens=3))
        longer = [t.id for t in finish(engine)]
        assert longer[0] == tokens[0].id and tokens[1].id not in longer[:2] and len(longer) == 3
        engine.add([1, 2, 3], replace(params, ignore_eos=True, stop_token_ids=[tokens[2].id]))
        assert [t.finish_reason for t in finish(engine)] == [None, None, "stop"]
        with pytest.raises(ValueError, match="stop_token_ids has a token id outside 0 to"):
            engine.add([1], SamplingParams(stop_token_ids=[1 << 30]))
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
            ([], "is empty"),
            ([0] * 64, "64 tokens; the limit is 64"),
            ([10**6], "outside 0"),
        ]:
            with pytest.raises(ValueError, match=message):
                engine.add(prompt)
        assert not engine.busy and engine.step() == []


@pytest.mark.parametrize("name", ["cache_tokens", "max_batch_tokens", "max_requests"])
def test_sizes_that_are_not(model, name):
    """An engine that could never do anything is not made."""
    with pytest.raises(ValueError, match=f"{name} is 0; allowed is 1 or more"):
        Engine(model, **{name: 0})


def test_close_ends_everything(model):
    """Leaving the context frees all blocks, also after an error in the middle; a closed engine refuses requests."""
    with pytest.raises(KeyError), Engine(model) as engine:
        request = engine.add([1, 2, 3])
        engine.step()
        raise KeyError
    assert request.status is Status.FINISHED
    assert engine.scheduler.state.idle
    with pytest.raises(RuntimeError, match="closed"):
        engine.add([1])
