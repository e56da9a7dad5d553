"""Sampling on a device against rocforge.ops.sampling on the host: the same tokens, for every parameter."""

from __future__ import annotations

import cupy as cp
import numpy as np
import pytest

from rocforge.device.streams import Stream
from rocforge.errors import NonFiniteError
from rocforge.ops.device.sampling import NONE_ALLOWED, NONE_FINITE, Sampler, count_tokens, logprobs_device
from rocforge.ops.sampling import SamplingParams, logprobs, masked, sample

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers():
    """Whichever tests ran before."""
    RNG.bit_generator.state = START


class Slots:
    """A Sampler with a request in each slot, and what they have written so far."""

    def __init__(self, vocabulary: int, slots: int):
        self.stream, self.vocabulary, self.requests = Stream("gpu"), vocabulary, {}
        with self.stream:
            self.sampler = Sampler(vocabulary, slots)

    def begin(self, slot: int, params: SamplingParams, prompt=(), output=()) -> None:
        self.requests[slot] = params, list(prompt), list(output)
        counts = count_tokens(prompt, output, self.vocabulary) if params.counts_tokens else None
        with self.stream:
            self.sampler.begin(slot, params, counts, self.stream.upload)

    def tokens(self, logits: np.ndarray, slots, masks) -> tuple[np.ndarray, np.ndarray]:
        """What a step gives the host, and what it leaves in last_tokens."""
        host_tokens = self.stream.upload(np.full(len(slots), 99, np.int32))
        steps = [len(self.requests[slot][2]) for slot in slots]
        with self.stream:
            self.sampler(cp.asarray(logits), slots, steps, masks, host_tokens, self.stream.upload)
            return host_tokens.get(), self.sampler.last_tokens.get()[slots]

    def step(self, logits: np.ndarray, slots=None, masks=None) -> np.ndarray:
        """The tokens of a step of these slots, which the host must choose as well."""
        slots, masks = list(self.requests) if slots is None else slots, masks or {}
        tokens, last = self.tokens(logits, slots, masks)
        for row, slot in enumerate(slots):
            allowed = masked(logits[row], masks[row]) if row in masks else logits[row]
            assert tokens[row] == last[row] == sample(allowed, *self.requests[slot])
            self.requests[slot][2].append(int(tokens[row]))
        return tokens


def of_requests(vocabulary: int, params: list[SamplingParams], prompts=None, outputs=None) -> Slots:
    rows = len(params)
    slots = Slots(vocabulary, rows)
    for slot, request in enumerate(zip(params, prompts or [[]] * rows, outputs or [[]] * rows, strict=True)):
        slots.begin(slot, *request)
    return slots


def check(logits: np.ndarray, params: list[SamplingParams], prompts=None, outputs=None, masks=None) -> np.ndarray:
    """One step of a request for each row."""
    return of_requests(logits.shape[1], params, prompts, outputs).step(logits, masks=masks)


def mask_of(allowed: np.ndarray) -> np.ndarray:
    """Bits of an array of booleans, a token each."""
    padded = np.zeros(-(-len(allowed) // 32) * 32, bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.uint32)


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
    tokens, last = of_requests(3000, rows).tokens(logits, range(4), {})
    assert (tokens == NONE_FINITE).all() and ((last >= 0) & (last < 3000)).all()
    for row in range(4):
        with pytest.raises(NonFiniteError):
            sample(logits[row], rows[row], [], [])
    logprobs_device(cp.asarray(logits), cp.asarray(tokens), 5)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.8}, {"frequency_penalty": 1.0}])
def test_masks_hide_no_fault(options: dict):
    """Logits that are no numbers end a row also where its mask hides them; a mask that allows nothing does too."""
    logits, params = model_like(6, 3000), [SamplingParams(seed=0, **options)] * 6
    logits[0, 2999], logits[1, 7], logits[2, 7], logits[3, 1:] = np.nan, np.inf, -np.inf, -np.inf
    first = mask_of(np.arange(3000) == 1)
    masks = {0: first, 1: first, 2: first, 3: first, 4: np.zeros(94, np.uint32), 5: np.zeros(0, np.uint32)}
    tokens, last = of_requests(3000, params).tokens(logits, range(6), masks)
    assert tokens.tolist() == [NONE_FINITE] * 2 + [1] + [NONE_ALLOWED] * 3 and ((last >= 0) & (last < 3000)).all()
    for row in (0, 1, 3, 4, 5):
        with pytest.raises(NonFiniteError, match="the highest logit" if row < 2 else "the constraint leaves no token"):
            masked(logits[row], masks[row])


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


def test_more_runs_than_threads():
    """The rows of today's largest vocabularies, cut by rank, by share, and not at all."""
    options = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}, {"top_p": 0.9}, {"min_p": 0.02}
    check(model_like(3, 151669), [SamplingParams(temperature=0.8, seed=i, **o) for i, o in enumerate(options)])


FLAT = [
    {"top_p": 0.5},
    {"top_p": 0.999},
    {"top_p": 0.01},
    {"top_k": 40},
    {"top_k": 5000},
    {"top_k": 4000, "top_p": 0.7},
    {"top_k": 40, "top_p": 0.7},
]


@pytest.mark.parametrize("options", FLAT)
@pytest.mark.parametrize("spread", [0.5, 2.5])
def test_flat_distributions(options: dict, spread: float):
    """Too many likely tokens to list: a shorter list may do, or the cuts are found over the whole row."""
    logits = RNG.standard_normal((2, 8000), np.float32) * spread
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
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in range(160)]
    tokens = check(np.tile(logits, (160, 1)), params)
    assert np.abs(np.bincount(tokens, minlength=4) / 160 - np.exp(logits)).max() < 0.1


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


@pytest.mark.parametrize("vocabulary", [31, 3000, 5003])
def test_masks(vocabulary: int):
    """Rows with one among rows without, of every kind of sampling; a short one ends with tokens that may not come."""
    logits = model_like(8, vocabulary)
    kinds = {"temperature": 0}, {"temperature": 0.9}, {"temperature": 0.9, "top_k": 5}, {"temperature": 2.0}
    params = [SamplingParams(seed=i, **options) for i, options in enumerate(kinds * 2)]
    allowed = RNG.random((8, vocabulary)) < 0.1
    allowed[:, 3] = True
    masks = {row: mask_of(allowed[row]) for row in (0, 1, 2, 3, 6)}
    masks[3] = masks[3][:-1] if vocabulary > 32 else masks[3]
    masks[6] = np.concatenate([masks[6], np.full(3, 0xFFFFFFFF, np.uint32)])
    masks[6][len(masks[1]) - 1] |= 0x80000000  # past the vocabulary
    tokens = check(logits, params, masks=masks)
    assert all(allowed[row, tokens[row]] for row in masks)


EVERYTHING = [
    {"temperature": 0},
    {"temperature": 0.9},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    {"temperature": 0, "frequency_penalty": 1.5, "presence_penalty": 0.5},
    {"temperature": 1.1, "repetition_penalty": 1.4, "min_p": 0.01},
    {"temperature": 0.7, "logit_bias": {5: 12.0, 1000: -100.0}},
    {"temperature": 0, "logit_bias": {n: 9.0 for n in range(40)}, "repetition_penalty": 1.2},
    {"temperature": 1.0, "typical_p": 0.7, "frequency_penalty": 0.5},
    {"temperature": 0.9, "top_n_sigma": 1.5, "xtc_probability": 0.5, "logit_bias": {7: 3.0}},
]
CHAINS = [
    {"top_n_sigma": 1.0},
    {"top_n_sigma": 2.0, "top_k": 30},
    {"typical_p": 0.3},
    {"typical_p": 0.9, "top_p": 0.8},
    {"typical_p": 0.6, "min_p": 0.2, "top_k": 500},
    {"xtc_probability": 1.0, "xtc_threshold": 0.02},
    {"xtc_probability": 0.5, "xtc_threshold": 0.1, "top_p": 0.9},
    {"top_n_sigma": 3.0, "top_k": 900, "typical_p": 0.95, "top_p": 0.99, "min_p": 0.001, "xtc_probability": 0.7},
]


@pytest.mark.parametrize("vocabulary", [1, 2050, 9000])
def test_chains(vocabulary: int):
    """Each truncation is of what the one before has kept, beside rows without any, at temperatures around 1."""
    logits = model_like(len(CHAINS) + 2, vocabulary)
    logits[3, : vocabulary // 2] = -np.inf
    logits[4:6] = np.round(logits[4:6])  # many are equally likely
    rows = [SamplingParams(seed=i, temperature=(0.7, 1, 1.5)[i % 3], **options) for i, options in enumerate(CHAINS)]
    slots = of_requests(vocabulary, [*rows, SamplingParams(seed=8, temperature=1.0), SamplingParams(temperature=0)])
    slots.step(logits)
    slots.step(logits[::-1])


def test_batches_that_change():
    """Requests of every kind come, go, and take over slots; a step is of some of them in any order, with masks or
    without; memory for counts, masks and biases grows on the way."""
    rng, vocabulary, size = np.random.default_rng(1), 1500, 12
    slots, many = Slots(vocabulary, size), rng.standard_normal((4, size, vocabulary), np.float32) * 3
    for step in range(25):
        for slot in rng.choice(size, rng.integers(0, 3), replace=False).tolist():
            options = EVERYTHING[rng.integers(len(EVERYTHING))]
            prompt, output = (rng.integers(0, vocabulary, rng.integers(0, 30)).tolist() for _ in range(2))
            slots.begin(slot, SamplingParams(seed=int(rng.integers(1 << 40)), **options), prompt, output)
        used = rng.permutation(list(slots.requests)).tolist()[: rng.integers(0, size + 1)]
        masks = {row: mask_of(rng.random(vocabulary) < 0.2) for row in range(len(used)) if rng.random() < step / 50}
        slots.step(many[step % 4], used, masks)


def test_counts_of_ended_requests_are_given_to_others():
    """One request with penalties after another, each in another slot, takes the memory of one."""
    slots, logits = Slots(600, 8), model_like(1, 600)
    for slot in range(8):
        slots.begin(slot, SamplingParams(temperature=0, frequency_penalty=1.0))
        slots.step(logits, [slot])
        slots.step(logits, [slot])
        slots.sampler.end(slot)
    assert len(slots.sampler._counts.array) == 1


def test_steps_and_counts_advance():
    """Step for step what a loop on the host does: each draw at its own step, penalties by what came up."""
    vocabulary, prompt = 500, [1, 2, 3]
    logits = (RNG.standard_normal((2, vocabulary)) * 2).astype(np.float32)
    params = [SamplingParams(temperature=1.0, seed=7, frequency_penalty=1.0, repetition_penalty=1.2)] * 2
    slots = of_requests(vocabulary, params, [prompt] * 2)
    for _ in range(12):
        slots.step(logits)
    counts = [count_tokens(prompt, output, vocabulary) for _, _, output in slots.requests.values()]
    assert (np.sort(slots.sampler._counts.array.get(), 0) == np.sort(counts, 0)).all()


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


def test_logprobs_of_some_rows():
    """Those that are named, each with the token of its slot."""
    logits, tokens, places = model_like(5, 700), RNG.integers(0, 700, 9), np.array([[4, 0, 1], [7, 2, 3]])
    arrays = [cp.asarray(array.astype(np.int32)) for array in (tokens, places)]
    values, top_ids, _ = (a.get() for a in logprobs_device(cp.asarray(logits), arrays[0], 3, arrays[1]))
    for value, ids, row, slot in zip(values, top_ids, *places, strict=True):
        expected = logprobs(logits[row], int(tokens[slot]), 3)
        assert abs(value - expected.token) < 1e-4 and ids.tolist() == list(expected.top)


@pytest.mark.parametrize("shape", [(1, 10), (2, 11), (2, 9)])
def test_wrong_logits(shape: tuple[int, int]):
    slots = of_requests(10, [SamplingParams()] * 2)
    with pytest.raises(ValueError, match=r"for 2 rows of 10 tokens"):
        slots.tokens(np.zeros(shape, np.float32), [0, 1], {})


def test_vocabulary_too_large():
    with pytest.raises(ValueError, match="a vocabulary of 524289 tokens"):
        Sampler((1 << 19) + 1, 1)
