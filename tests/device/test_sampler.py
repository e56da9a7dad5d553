"""The engine's sampler on a device: requests come to slots, leave them, and are ahead of what the host has read."""

import gc
import weakref

import cupy as cp
import numpy as np
import pytest
from constraints import Alternating

from rocforge.device.streams import Stream
from rocforge.engine.breakers import breakers_of
from rocforge.engine.request import Request, Status
from rocforge.engine.sampler import DeviceSampler
from rocforge.errors import NonFiniteError
from rocforge.ops.mirostat import Mirostat
from rocforge.ops.sampling import SamplingParams, logprobs, masked, sample

pytestmark = pytest.mark.any_wave

VOCABULARY, SLOTS = 700, 6
PENALTIES = {"frequency_penalty": 1.2, "presence_penalty": 0.3, "repetition_penalty": 1.3}
KINDS = [
    {"temperature": 0},
    {"temperature": 0.9, "logprobs": 3},
    {"temperature": 0.8, **PENALTIES},
    {"temperature": 0, **PENALTIES, "logprobs": 0},
    {"temperature": 1.0, "top_p": 0.9, "logit_bias": {3: 5.0}},
    {"temperature": 0, "min_tokens": 3},
    {"temperature": 1.0, "min_tokens": 2, "logit_bias": {3: 5.0}},
]
DRY = {"dry_multiplier": 3.0, "dry_allowed_length": 1, "dry_sequence_breakers": [[5], [6, 7]]}
KINDS += [
    {"temperature": 0, **DRY},
    {"temperature": 0.7, **DRY, **PENALTIES, "logit_bias": {3: 5.0}, "min_tokens": 2},
    {"temperature": 1.0, "mirostat": 2, "mirostat_tau": 2.0, "mirostat_eta": 0.6, "logprobs": 2},
    {"temperature": 0.8, "mirostat": 1, **DRY},
]
ENDS = frozenset(range(0, VOCABULARY, 3))


class Bench:
    """A sampler on a stream of its own. All rows have nearly the same logits, so that penalties decide."""

    def __init__(self):
        self.stream = Stream("gpu")
        with self.stream:
            self.sampler = DeviceSampler(self.stream, VOCABULARY, SLOTS)
            self.logits = cp.empty((SLOTS + 2, VOCABULARY), np.float32)  # of all steps, as a captured one has them
        self.rng = np.random.default_rng(3)
        self.likely = self.rng.standard_normal(VOCABULARY) * 3

    def launch(self, requests, slots, ahead=0):
        """Queue a step of requests that wait for `ahead` tokens; its tokens, and a check of them by the host's."""
        noise = self.rng.standard_normal(self.logits.shape) / 10
        logits = (self.likely + noise).astype(np.float32)
        with self.stream:
            steps = [len(request.output) + ahead for request in requests]
            pending = self.sampler.launch(self.stream.upload(logits, self.logits), requests, slots, steps)

        def read():
            masks = [request.constraint and request.constraint.bits() for request in requests]
            for request, row, mask, got in zip(requests, logits, masks, pending.get(), strict=False):
                allowed = row if mask is None else masked(row, mask)
                text = (request.params, request.prompt, request.output, request.ends)
                assert got.token == sample(allowed, *text, request.penalties(), request.mirostat)
                assert not got.error
                count = request.params.logprobs
                if count is None:
                    assert got.logprobs is None
                else:
                    expected = logprobs(row, got.token, count)
                    assert got.logprobs.token == pytest.approx(expected.token, abs=1e-4)
                    assert list(got.logprobs.top) == list(expected.top)
                request.output.append(got.token)

        return read


def request_of(rng, constraint=None, **options):
    prompt = rng.integers(0, VOCABULARY, 10).tolist()
    params = SamplingParams(seed=int(rng.integers(1 << 40)), **options)
    mirostat = Mirostat(params.mirostat, params.mirostat_tau, params.mirostat_eta) if params.mirostat else None
    state = {"breakers": breakers_of(params), "mirostat": mirostat}
    return Request(prompt, params, constraint, ends=ENDS, status=Status.RUNNING, **state)


@pytest.mark.parametrize("seed", range(2))
def test_requests_come_and_go(seed):
    """Steps of whoever is there, in any order, some queued before the tokens of the last one are read."""
    bench, rng, seated = Bench(), np.random.default_rng(seed), {}
    for _ in range(12):
        for slot in rng.choice(SLOTS, rng.integers(0, 3), replace=False).tolist():
            if slot in seated:
                seated.pop(slot).status = Status.FINISHED
            constraint = Alternating(VOCABULARY) if rng.random() < 0.2 else None
            seated[slot] = request_of(rng, constraint, **KINDS[rng.integers(len(KINDS))])
        slots = rng.permutation(list(seated)).tolist()
        free = not any(seated[slot].follows_text for slot in slots)
        reads = [bench.launch([seated[slot] for slot in slots], slots)]
        if free:
            reads.append(bench.launch([seated[slot] for slot in slots], slots, ahead=1))
        for read in reads:
            read()


def test_steps_that_follow(monkeypatch):
    """Steps of the same requests bring nothing to the device, which counts their steps and tokens; biases do."""
    bench, sizes = Bench(), []
    upload = bench.stream.upload
    monkeypatch.setattr(bench.stream, "upload", lambda array, *to: (sizes.append(array.size), upload(array, *to))[1])
    free = [request_of(bench.rng, **kind) for kind in KINDS[:1] + KINDS[2:4]]
    for slots in ([4, 0, 2], [4, 0, 2], [0, 4, 2]):
        reads = [bench.launch(free, slots)]
        sizes.clear()
        for _ in range(4):
            reads.append(bench.launch(free, slots, ahead=1))
            reads.pop(0)()
        reads.pop()()
        assert sizes == [bench.logits.size, 2] * 4  # of log-probabilities, whose they are
    biased = request_of(bench.rng, **KINDS[4])
    bench.launch([biased], [5])()
    sizes.clear()
    bench.launch([biased], [5])()
    assert len(sizes) == 2


@pytest.mark.parametrize("options", KINDS[-4:])
def test_what_follows_the_text(options):
    """DRY and mirostat go by all tokens that came before: the device draws what the host draws, and repeats less."""
    bench = Bench()
    request, plain = request_of(bench.rng, **options), request_of(bench.rng, temperature=options["temperature"])
    for _ in range(8):
        bench.launch([plain, request], [1, 2])()
    assert request.mirostat is None or request.mirostat.mu != 2 * request.params.mirostat_tau
    if options["temperature"] == 0:
        assert len(set(request.output)) > len(set(plain.output)) and request.penalties()


@pytest.mark.parametrize("options", KINDS[5:7])
def test_no_end_before_min_tokens(options):
    """None of the tokens that end a text is drawn early; later they are, as on the host."""
    bench = Bench()
    bench.likely[list(ENDS)] += 9
    request = request_of(bench.rng, **options)
    for _ in range(6):
        bench.launch([request], [2])()
    early = options["min_tokens"]
    assert ENDS.isdisjoint(request.output[:early]) and ENDS.issuperset(request.output[early:])


def test_a_step_is_repeated():
    """Its first token is dropped: what it counted is forgotten."""
    bench = Bench()
    request = request_of(bench.rng, temperature=0, **PENALTIES)
    bench.launch([request], [1])()
    bench.launch([request], [1])
    for _ in range(4):
        bench.launch([request], [1])()


def test_a_request_comes_back():
    """To its slot after another has had it, and to another slot."""
    bench = Bench()
    first, second = (request_of(bench.rng, temperature=0, **PENALTIES) for _ in range(2))
    for request, slot in [(first, 0), (second, 0), (first, 0), (first, 4), (second, 1), (first, 0)]:
        bench.launch([request], [slot])()


def test_counts_of_requests_that_ended():
    """Their memory is given to those that come; while they run, and in a step of theirs, they keep it."""
    bench = Bench()
    requests = [request_of(bench.rng, temperature=0, **PENALTIES) for _ in range(SLOTS)]
    for slot, request in enumerate(requests):
        bench.launch([request], [slot])()
        bench.launch([request], [slot])()
        request.status = Status.FINISHED
    counts = bench.sampler._sampler._counts
    assert len(counts.array) == 1
    requests[4].status = Status.WAITING  # preempted
    last = [request_of(bench.rng, temperature=0, **PENALTIES) for _ in range(3)]
    bench.launch([requests[5], *last], [5, 0, 1, 2])()
    bench.launch([*last, requests[5], requests[4]], [0, 1, 2, 5, 4])()
    assert len(counts.array) == SLOTS


def test_no_request_is_kept_alive():
    """One that is gone leaves nothing; its slot can be given to the next."""
    bench = Bench()
    request = request_of(bench.rng, temperature=0.5, logprobs=2, **PENALTIES)
    gone = weakref.ref(request)
    bench.launch([request], [0])()
    del request
    gc.collect()
    assert gone() is None
    bench.launch([request_of(bench.rng, temperature=0)], [0])()


def test_errors():
    """Rows that have no token say why; the others have theirs. A token that has to be known is asked for."""
    bench = Bench()
    nothing = Alternating(VOCABULARY)
    nothing.bits = lambda: np.zeros(1, np.uint32)
    broken, finished = Alternating(VOCABULARY, "bits"), Alternating(VOCABULARY, "accept")
    broken.accepted = finished.accepted = [1, 2, 3]
    requests = [request_of(bench.rng, c, temperature=0) for c in (None, None, nothing, broken, finished)]
    requests[4].status = Status.FINISHED
    logits = np.tile(np.arange(VOCABULARY, dtype=np.float32), (5, 1))
    logits[0, 9] = np.nan
    with bench.stream:
        there = bench.stream.upload(logits)
        sampled = bench.sampler.launch(there, requests, range(5), [0] * 5).get()
        with pytest.raises(ValueError, match="step 2 of a request of which 0 tokens are known"):
            bench.sampler.launch(there, requests[:1], [0], [2])
    kinds = [NonFiniteError, type(None), NonFiniteError, RuntimeError, type(None)]
    assert [type(one.error) for one in sampled] == kinds and [one.token for one in sampled] == [-1, 699, -1, -1, 699]
    assert "the highest logit" in str(sampled[0].error) and "leaves no token" in str(sampled[2].error)
