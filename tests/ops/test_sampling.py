"""Sampling against its definition: what is kept, what is drawn how often, and that draws depend on nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.errors import NonFiniteError
from rocforge.ops.sampling import SamplingParams, logprobs, masked, sample, uniform


def draws(logits, count=4000, **options):
    """How often each token is drawn, over many steps of one request."""
    params = SamplingParams(seed=7, **options)
    tokens = [sample(logits, params, [0], [0] * step) for step in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_uniform_is_uniform_and_fixed():
    """The sequence for a seed is fixed for all time, spreads over [0, 1), and seeds do not repeat each other."""
    values = np.array([[uniform(seed, step) for step in range(500)] for seed in (0, 1, 2**63)])
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.03 and abs(values.std() - 12**-0.5) < 0.02
    assert abs(np.corrcoef(values)[0, 1]) < 0.15
    # the first output of the published splitmix64 for seed 0 is 0xE220A8397B1DCDAF
    assert uniform(0, 0) == (0xE220A8397B1DCDAF >> 40) / 2**24


def test_greedy_takes_the_first_of_equals():
    """Temperature 0 is argmax, and of equal logits the lowest id."""
    logits = np.array([1, 5, 5, 2], np.float32)
    assert sample(logits, SamplingParams(temperature=0), [0], []) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(rng, temperature):
    """Every token is drawn as often as its probability says."""
    logits = rng.standard_normal(8).astype(np.float32)
    assert abs(draws(logits, temperature=temperature) - softmax(logits / temperature)).max() < 0.04


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_kept_tokens(data):
    """top_k, then the smallest top_p set of those, then min_p: never a token outside, and together as defined."""
    size = data.draw(st.integers(1, 12))
    raw = data.draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))
    logits = np.array(raw, np.float32)
    k, p, m = data.draw(st.integers(0, 14)), data.draw(st.floats(0.05, 1)), data.draw(st.floats(0, 1))
    order = sorted(range(size), key=lambda i: (-raw[i], i))[: k or None]
    weights = np.exp(logits.astype(np.float64) - logits.max())
    total, kept, reached = sum(weights[i] for i in order), [], 0.0
    for i in order:
        if p == 1 or reached < p * total * (1 - 1e-12):
            kept.append(i)
        reached += weights[i]
    kept = [i for i in kept if weights[i] >= m * (1 - 1e-12)]
    borderline = any(abs(w - p * total) < 1e-9 for w in np.cumsum([weights[i] for i in order]))
    params = SamplingParams(temperature=1, top_k=k, top_p=p, min_p=m, seed=data.draw(st.integers(0, 2**64)))
    seen = {sample(logits, params, [0], [0] * step) for step in range(60)}
    if not borderline:
        assert seen <= set(kept)
        # a token this likely is missed in 60 draws with a probability under 1e-9
        share = {i: weights[i] / sum(weights[j] for j in kept) for i in kept}
        assert {i for i, s in share.items() if s > 0.3} <= seen


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([30, 500, 3000]),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from([0, 1, 40, 499, 5000]),
    st.sampled_from([1e-9, 0.3, 0.9, 0.999, 1 - 1e-12, 1]),
    st.sampled_from([0, 0.01, 1]),
)
def test_cuts_of_large_vocabularies(seed, size, spread, k, p, m):
    """The tokens that sorting the whole vocabulary would draw from, though few of them are sorted."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.standard_normal(size) * spread, 2).astype(np.float32)
    logits[rng.random(size) < 0.1] = -np.inf
    logits[0] = 0
    weights = np.exp(logits - logits.max(), dtype=np.float64)
    order = np.argsort(-weights, kind="stable")[: k or None]
    total = (np.sort(weights)[-k:] if k else weights).sum()
    before = np.cumsum(weights[order]) - weights[order]
    kept = np.sort(order[((p == 1) | (before < p * total)) & (weights[order] >= m)])
    params = SamplingParams(temperature=1, top_k=k, top_p=p, min_p=m, seed=seed)
    for step in range(20):
        sums = np.cumsum(weights[kept])
        drawn = kept[np.searchsorted(sums, uniform(seed, step) * sums[-1], side="right")]
        assert sample(logits, params, [0], [0] * step) == drawn


def test_masked(rng):
    """Tokens keep their logits where their bit is set; those past the mask's end have none."""
    logits = rng.standard_normal(70).astype(np.float32)
    before = logits.copy()
    for words, last in ((3, 70), (2, 64), (4, 70), (1, 32)):
        result = masked(logits, np.full(words, 0x80000002, np.uint32))
        allowed = [i for i in range(last) if i % 32 in (1, 31)]
        assert np.flatnonzero(np.isfinite(result)).tolist() == allowed and (result[allowed] == logits[allowed]).all()
    assert (logits == before).all()


@pytest.mark.parametrize("words", [0, 1, 3])
def test_masks_that_allow_nothing(words):
    """An error that says so, also where the one token that is allowed has no logit."""
    with pytest.raises(NonFiniteError, match="the constraint leaves no token"):
        masked(np.zeros(70, np.float32), np.zeros(words, np.uint32))
    with pytest.raises(NonFiniteError, match="the constraint leaves no token"):
        masked(np.array([-np.inf, 1], np.float32), np.ones(1, np.uint32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_masks_hide_no_fault(bad):
    """Logits that are not finite are an error also where no mask lets them through."""
    with pytest.raises(NonFiniteError, match="the highest logit"):
        masked(np.array([0, bad], np.float32), np.ones(1, np.uint32))


def test_penalties_and_bias(rng):
    """Each term changes the logit as documented: repetition by prompt and text, the others by the text's counts."""
    logits = np.array([2.0, -2.0, 1.0, 0.0, 0.5], np.float32)
    prompt, output = [0, 1], [2, 2]
    expected = logits.copy()
    expected[[0, 2]] /= 1.5
    expected[1] *= 1.5
    expected[2] -= 2 * 0.3 + 0.2
    expected[4] += 1.0
    params = SamplingParams(
        temperature=1,
        repetition_penalty=1.5,
        frequency_penalty=0.3,
        presence_penalty=0.2,
        logit_bias={4: 1.0},
        seed=3,
    )
    before = logits.copy()
    tokens = []
    for seed in range(4000):
        options = {**params.__dict__, "seed": seed}
        tokens.append(sample(logits, SamplingParams(**options), prompt, output))
    assert abs(np.bincount(tokens, minlength=5) / 4000 - softmax(expected)).max() < 0.04
    assert (logits == before).all()


def test_top_n_sigma():
    """So many deviations, of the finite logits, below the highest one."""
    logits = np.array([4, 3, 1, 0, -np.inf, 2], np.float32)
    deviation = np.std([4, 3, 1, 0, 2])
    for n in (0.1, 1.5, 3):
        kept = {i for i in range(6) if logits[i] >= 4 - n * deviation}
        assert set(np.flatnonzero(draws(logits, 3000, temperature=1.5, top_n_sigma=n))) == kept


def test_typical():
    """1.33 nats are expected: the surprise of 0.2 is nearest to that, then 0.15's, 0.5's, 0.1's and 0.05's."""
    logits = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05], np.float32))
    for p, kept in ((0.1, {1}), (0.3, {1, 2}), (0.5, {0, 1, 2}), (0.9, {0, 1, 2, 3}), (1.0, {*range(5)})):
        assert set(np.flatnonzero(draws(logits, 2000, temperature=1, typical_p=p))) == kept


def test_xtc():
    """Of tokens with the threshold or more the least likely stays; so often as the probability says."""
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    assert set(np.flatnonzero(draws(logits, 500, temperature=1, xtc_probability=1, xtc_threshold=0.14))) == {2, 3}
    assert set(np.flatnonzero(draws(logits, 500, temperature=1, xtc_probability=1, xtc_threshold=0.3))) == {0, 1, 2, 3}
    assert set(np.flatnonzero(draws(logits, 500, temperature=1, xtc_probability=1, xtc_threshold=0.6))) == {0, 1, 2, 3}
    share = draws(logits, 4000, temperature=1, xtc_probability=0.3, xtc_threshold=0.14)[:2].sum()
    assert abs(share - 0.7 * 0.75) < 0.03


def test_a_bias_of_minus_100_bans():
    """As the OpenAI API has it."""
    logits = np.array([10, 0, 0], np.float32)
    assert draws(logits, 200, temperature=1, logit_bias={0: -100})[0] == 0


def test_logprobs(rng):
    """Natural logs of the softmax of the raw logits; the most likely tokens, in order."""
    logits = rng.standard_normal(50).astype(np.float32)
    report = logprobs(logits, 3, 4)
    expected = np.log(softmax(logits.astype(np.float64)))
    assert report.token == pytest.approx(expected[3], abs=1e-6)
    assert list(report.top) == np.argsort(-expected)[:4].tolist()
    assert list(report.top.values()) == pytest.approx(np.sort(expected)[::-1][:4], abs=1e-6)


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", 2),
        ("typical_p", 0),
        ("top_n_sigma", -1),
        ("xtc_probability", 1.5),
        ("xtc_threshold", -0.5),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("max_tokens", 0),
        ("logprobs", 21),
    ],
)
def test_ranges(field, value):
    """A value outside its range is a ValueError with name, value and range."""
    with pytest.raises(ValueError, match=f"{field} is {value!r}; allowed is"):
        SamplingParams(**{field: value})


def test_other_checks():
    """Bias values, empty stop strings; one stop string may be given plainly; a seed is drawn where none is given."""
    with pytest.raises(ValueError, match="logit_bias of token 5 is 101"):
        SamplingParams(logit_bias={5: 101})
    with pytest.raises(ValueError, match="min_tokens is 3; allowed is up to max_tokens, 2"):
        SamplingParams(min_tokens=3, max_tokens=2)
    with pytest.raises(ValueError, match="stop is"):
        SamplingParams(stop=["a", ""])
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams().seed != SamplingParams().seed


@pytest.mark.parametrize(
    "field, value",
    [
        ("max_tokens", 2.5),
        ("max_tokens", "3"),
        ("max_tokens", True),
        ("top_k", 2.5),
        ("top_k", None),
        ("seed", 1.0),
        ("logprobs", 2.0),
        ("temperature", "0.5"),
        ("temperature", None),
        ("min_p", [0.1]),
        ("logit_bias", [1]),
        ("stop_token_ids", 5),
        ("stop_token_ids", [2.5]),
        ("logit_bias", {"5": 1}),
        ("logit_bias", {5: "1"}),
    ],
)
def test_types(field, value):
    """A value of another type is a TypeError with the parameter's name, and is not rounded."""
    with pytest.raises(TypeError, match=f"{field}.* is .*; allowed"):
        SamplingParams(**{field: value})


@pytest.mark.parametrize("value", [0, 1e-46, 1e39, float("inf"), float("nan"), 10**400])
def test_penalties_are_what_float32_holds(value):
    """No factor that becomes zero or infinite."""
    with pytest.raises(ValueError, match="repetition_penalty is"):
        SamplingParams(repetition_penalty=value)


def test_numbers_of_numpy():
    """They become Python's own, whatever uses them later."""
    params = SamplingParams(
        seed=np.int64(3), top_k=np.uint8(4), temperature=np.float32(0.5), logit_bias={np.int32(1): np.float64(2)}
    )
    assert [params.seed, params.top_k, params.temperature, params.logit_bias] == [3, 4, 0.5, {1: 2.0}]
    kinds = [type(value) for value in (params.seed, params.top_k, params.temperature, *params.logit_bias)]
    assert kinds == [int, int, float, int]


@pytest.mark.parametrize("temperature", [0, 1e-38, 5e-324, 9.9e-6])
def test_tiny_temperatures_are_greedy(temperature):
    """Logits divided by them would be infinite."""
    params = SamplingParams(temperature=temperature)
    assert params.temperature == 0 and sample(np.array([3, 5, 4], np.float32), params, [0], []) == 1
    assert SamplingParams(temperature=1e-5).temperature == 1e-5


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1}, {"temperature": 1, "logit_bias": {1: 5.0}}])
@pytest.mark.parametrize("bad", [[0, np.nan, 1], [0, np.inf, 1], [-np.inf] * 3, [np.nan] * 3])
def test_logits_that_are_not_finite(params, bad):
    """They give an error, never a token; -inf, which a constraint puts, is fine beside a number."""
    with pytest.raises(NonFiniteError, match="the highest logit is no finite number"):
        sample(np.array(bad, np.float32), SamplingParams(seed=0, **params), [], [])
    assert sample(np.array([-np.inf, 0, -np.inf], np.float32), SamplingParams(seed=0, **params), [], []) == 1
