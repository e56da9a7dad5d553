"""Sampling on a device against rocforge.ops.sampling on the host: the same tokens, for every parameter."""

from __future__ import annotations

import cupy as cp
import numpy as np
import pytest

from rocforge.errors import NonFiniteError
from rocforge.ops.device.sampling import Sampler, count_tokens, logprobs_device
from rocforge.ops.sampling import SamplingParams, logprobs, sample

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers():
    """Whichever tests ran before."""
    RNG.bit_generator.state = START


def check(logits: np.ndarray, params: list[SamplingParams], prompts=None, outputs=None) -> np.ndarray:
    """One launch for all rows, and each row on the host."""
    rows, vocabulary = logits.shape
    prompts, outputs = prompts or [[]] * rows, outputs or [[]] * rows
    counts = cp.asarray(np.stack([count_tokens(p, o, vocabulary) for p, o in zip(prompts, outputs, strict=True)]))
    counts_rows = [i if p.counts_tokens else -1 for i, p in enumerate(params)]
    sampler = Sampler(params, [len(o) for o in outputs], counts_rows, counts)
    tokens = sampler(cp.asarray(logits)).get()
    expected = [sample(*row) for row in zip(logits, params, prompts, outputs, strict=True)]
    assert tokens.tolist() == expected
    return tokens


def model_like(rows: int, vocabulary: int) -> np.ndarray:
    """A few likely tokens over a broad rest, as language models give."""
    logits = RNG.standard_normal((rows, vocabulary), np.float32) * 2
    logits[:, RNG.integers(0, vocabulary, 40)] += RNG.uniform(4, 14, 40).astype(np.float32)
    return logits


@pytest.mark.parametrize("vocabulary", [1, 7, 2048, 2049, 32003, 151669])
def test_greedy(vocabulary: int):
    check(model_like(3, vocabulary), [SamplingParams(temperature=0)] * 3)


def test_greedy_takes_the_lowest_id_of_equals():
    logits = np.zeros((3, 9000), np.float32)
    logits[0, [8999, 4096, 5000]] = 1
    logits[1, [2047, 2048]] = 1
    assert check(logits, [SamplingParams(temperature=0)] * 3).tolist() == [4096, 2047, 0]


@pytest.mark.parametrize("seed", [0, 1, 3])
@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1, "top_p": 0.5}])
def test_no_numbers(monkeypatch, params: dict, seed: int):
    """Whatever a model gives, and LDS held, sampling ends without a token; the next step's embedding has a row for what
    it takes instead."""
    monkeypatch.setenv("HIPSIM_SEED", str(seed))
    logits = model_like(4, 3000)
    logits[0] = np.nan
    logits[1, 17], logits[2, 5], logits[3] = np.inf, np.nan, -np.inf
    rows = [SamplingParams(seed=0, **params)] * 4
    tokens = Sampler(rows, [0] * 4)(cp.asarray(logits)).get()
    assert (tokens == -1).all()
    for row in range(4):
        with pytest.raises(NonFiniteError):
            sample(logits[row], rows[row], [], [])
    logprobs_device(cp.asarray(logits), cp.asarray(tokens), 5)
    host_tokens, step = cp.zeros((2, 4), np.int32), cp.zeros(1, np.int32)
    taken = Sampler(rows, [0] * 4)(cp.asarray(logits), host_tokens=host_tokens, step=step).get()
    assert ((taken >= 0) & (taken < 3000)).all() and host_tokens.get().tolist() == [[-1] * 4, [0] * 4]


DRAWS = [
    {},
    {"temperature": 0.2},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 100000},
    {"top_p": 0.95},
    {"top_p": 0.01},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.02},
    {"top_k": 5, "min_p": 0.5, "temperature": 1.7},
]


@pytest.mark.parametrize("options", DRAWS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("vocabulary", [50, 32003])
def test_draws(options: dict, vocabulary: int):
    params = [SamplingParams(**{"temperature": 0.9, **options}, seed=100 + i) for i in range(6)]
    check(model_like(6, vocabulary), params)


@pytest.mark.parametrize("options", [{"top_p": 0.5}, {"top_k": 5000}, {"top_k": 4000, "top_p": 0.7}, {"top_p": 0.999}])
def test_flat_distributions(options: dict):
    """Too many likely tokens to list: the cuts are found over the whole row."""
    logits = RNG.standard_normal((2, 12000), np.float32)
    check(logits, [SamplingParams(temperature=1.0, seed=i, **options) for i in range(2)])


@pytest.mark.parametrize("options", [{"top_k": 10}, {"top_p": 0.3}, {"top_k": 3000, "top_p": 0.9}, {"top_k": 3500}])
def test_equal_logits(options: dict):
    """Of equally likely tokens, those of the lowest ids are kept, however many of them there are."""
    logits = np.round(RNG.standard_normal((3, 5000), np.float32))
    logits[2] = 0
    check(logits, [SamplingParams(temperature=1.0, seed=i, **options) for i in range(3)])


def test_frequencies():
    """Over many seeds, tokens come up as often as they are likely."""
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in range(300)]
    tokens = Sampler(params, [0] * 300)(cp.asarray(np.tile(logits, (300, 1)))).get()
    assert np.abs(np.bincount(tokens, minlength=4) / 300 - np.exp(logits)).max() < 0.1


def test_penalties():
    logits = model_like(6, 3000)
    options = {"repetition_penalty": 1.3}, {"presence_penalty": 1.5}, {"frequency_penalty": -0.7}
    both = {"repetition_penalty": 0.8, "presence_penalty": -1.0, "frequency_penalty": 2.0}
    params = [SamplingParams(temperature=0, **o) for o in (*options, both)]
    params += [SamplingParams(temperature=0.8, seed=5, **both), SamplingParams(temperature=0.8, seed=5)]
    likely = np.argsort(-logits, axis=1)[:, :30]
    prompts = [row[::2].tolist() for row in likely]
    outputs = [np.repeat(row[1::3], 3).tolist() for row in likely]
    check(logits, params, prompts, outputs)


def test_logit_bias():
    logits = model_like(4, 5000)
    params = [SamplingParams(temperature=0, logit_bias={4999: 100, 3: 7.5}), SamplingParams(temperature=0)]
    params += [SamplingParams(seed=1, logit_bias={i: -100 for i in range(0, 5000, 17)})] * 2
    check(logits, params)


def test_steps_and_counts_advance():
    """Replaying the launches is what a loop on the host does: each draw at its own step, penalties by what came up."""
    vocabulary, prompt = 500, [1, 2, 3]
    logits = (RNG.standard_normal((2, vocabulary)) * 2).astype(np.float32)
    params = [SamplingParams(temperature=1.0, seed=7, frequency_penalty=1.0, repetition_penalty=1.2)] * 2
    counts = cp.asarray(np.stack([count_tokens(prompt, [], vocabulary)] * 2))
    sampler = Sampler(params, [0, 0], [1, 0], counts)
    device, tokens = cp.asarray(logits), cp.empty(2, np.int32)
    outputs = [[], []]
    for _ in range(12):
        sampler(device, tokens)
        for row, token in enumerate(tokens.get()):
            assert token == sample(logits[row], params[row], prompt, outputs[row])
            outputs[row].append(int(token))
    assert (counts.get()[::-1] == [count_tokens(prompt, output, vocabulary) for output in outputs]).all()


@pytest.mark.parametrize("vocabulary, count", [(20, 20), (5003, 0), (5003, 5), (32003, 20)])
def test_logprobs(vocabulary: int, count: int):
    logits = model_like(3, vocabulary)
    logits[2] = np.round(logits[2])
    chosen = RNG.integers(0, vocabulary, 3)
    values, top_ids, top_values = (
        a.get() for a in logprobs_device(cp.asarray(logits), cp.asarray(chosen, dtype=np.int32), count)
    )
    for row in range(3):
        expected = logprobs(logits[row], int(chosen[row]), count)
        assert abs(values[row] - expected.token) < 1e-4
        assert top_ids[row].tolist() == list(expected.top)
        assert np.allclose(top_values[row], list(expected.top.values()), rtol=1e-5, atol=1e-4)


def test_wrong_rows():
    with pytest.raises(ValueError, match="for 2 rows"):
        Sampler([SamplingParams()] * 2, [0, 0])(cp.zeros((3, 10), np.float32))
