"""Streams: what is queued on one keeps its order, copies between products too, and nothing else is used."""

import os
import threading

import cupy as cp
import numpy as np
import pytest
from golden import build

import rocforge as rf
from rocforge.device import streams, tuning
from rocforge.ops.device.plan import MAX_TILE_TOKENS
from rocforge.selftest.weights import random_weight, relative_error

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]

only_simulated = pytest.mark.skipif("HIPSIM_ARCH" not in os.environ, reason="a real device may be right by chance")
ROWS = 2 * MAX_TILE_TOKENS + 6
"""Those of x that the BLAS library multiplies, also where it has no float16 copy of the weights."""
"""Of x: a product of the BLAS library's."""
several_devices = pytest.mark.skipif(cp.cuda.runtime.getDeviceCount() < 2, reason="there is one GPU")


@pytest.fixture
def strict(monkeypatch):
    """On the simulator, work on the null stream fails from here on."""
    monkeypatch.setenv("HIPSIM_STRICT_STREAM", "1")


def current():
    return cp.cuda.runtime.getDevice(), cp.cuda.get_current_stream().ptr


# ---- contexts


def test_contexts_nest():
    """A context makes device and stream current, and gives back what was; the second time too."""
    before, outer, inner = current(), rf.Stream("gpu"), rf.Stream("gpu:0")
    for _ in range(2):
        with outer:
            first = current()
            with inner, outer:
                assert current() == first
            assert current() == first != before
    assert current() == before and repr(inner) == "Stream('gpu:0')"


def test_an_error_leaves_the_context():
    before = current()
    with pytest.raises(ZeroDivisionError), rf.Stream("gpu"):
        _ = 1 / 0
    assert current() == before


@several_devices
def test_a_device_for_each_thread():
    """The current device is the thread's own; arrays are made on it and copied from it, whatever others do."""
    start, seen = threading.Barrier(2), {}

    def work(number):
        with rf.Stream(f"gpu:{number}") as stream:
            start.wait()
            x = cp.full(1000, number + 1)
            seen[number] = x.device.id, stream.upload(x.get()).device.id, stream.download(x * 2).get()[0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {0: (0, 0, 2), 1: (1, 1, 4)}


@several_devices
def test_streams_of_two_devices():
    """`wait_for` orders work of one device after that of another, with a copy between them."""
    first, second = rf.Stream("gpu:0"), rf.Stream("gpu:1")
    with first:
        x = cp.arange(1000) * 3
    second.wait_for(first)
    with second:
        y = cp.empty(1000, x.dtype)
        y.data.copy_from_device_async(x.data, x.nbytes)
        y += 1
    assert (second.download(y).get() == 3 * np.arange(1000) + 1).all()


# ---- copies


@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4), (100000,)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_there_and_back(strict, rng, shape, dtype):
    """Values come back; the host's array is free at once, and what changes later on the device is not what was read."""
    x = np.array(100 * rng.random(shape), dtype)
    original, stream = x.copy(), rf.Stream("gpu")
    with stream:
        y = stream.upload(x.T)
        x[...] = 1
        pending = stream.download(y.T)
        y.fill(2)
    back = pending.get()
    assert pending.done and back.shape == shape and back.dtype == dtype and (back == original).all()
    assert stream.download(y).get().shape == shape[::-1]


def test_many_uploads_on_their_way(strict):
    """Host memory of copies that have not run is not used again for the next ones."""
    stream = rf.Stream("gpu")
    arrays = [stream.upload(np.full(1000, i, np.int32)) for i in range(20)]
    assert [int(stream.download(array).get()[-1]) for array in arrays] == list(range(20))
    stream.synchronize()
    assert not streams._IN_FLIGHT._kept


@pytest.mark.parametrize("seed", range(3))
def test_what_nobody_holds_any_more(strict, monkeypatch, seed):
    """Pinned memory is not given to the next copy while one that was forgotten, or whose stream was, is on its way."""
    monkeypatch.setenv("HIPSIM_SEED", str(seed))
    with rf.Stream("gpu") as stream:
        ones = cp.ones(1000, np.int32)
        for i in range(2, 12):
            stream.download(ones)
            assert (stream.download(stream.upload(np.full(1000, i, np.int32))).get() == i).all()
    arrays = [rf.Stream("gpu").upload(np.full(1000, i, np.int32)) for i in range(20)]
    cp.cuda.Device().synchronize()
    assert [int(stream.download(array).get()[-1]) for array in arrays] == list(range(20))


@pytest.mark.parametrize(
    "order", [pytest.param("", marks=only_simulated), "synchronize", "wait_for"], ids=["none", "host", "device"]
)
def test_two_streams(strict, order):
    """Work of one stream that reads another's waits if it is told to, and else, on the simulator, comes too early."""
    first, second = rf.Stream("gpu"), rf.Stream("gpu")
    x = first.upload(np.zeros(1000, np.float32))
    first.synchronize()
    with first:
        x.fill(5)
    if order == "synchronize":
        first.synchronize()
    elif order == "wait_for":
        second.wait_for(first)
    got = second.download(x).get()
    first.synchronize()
    assert (got == (5 if order else 0)).all()


# ---- the fault: a product on a stream of its own, then a copy on the device


COPIES = {
    "assignment": lambda a, b: b.__setitem__(..., a),
    "copyto": lambda a, b: cp.copyto(b, a),
    "slices": lambda a, b: b[:, ::2].__setitem__(..., a[:, ::2]) or b[:, 1::2].__setitem__(..., a[:, 1::2]),
    "of a copy": lambda a, b: cp.copyto(b, a.copy()),
    "bytes": lambda a, b: b.data.copy_from_device_async(a.data, a.nbytes),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("seed", range(3))
def test_a_copy_waits_for_the_product(strict, monkeypatch, rng, seed, copy):
    """What inference once read unfinished: however a copy on the device is written, it follows the BLAS library."""
    monkeypatch.setenv("HIPSIM_SEED", str(seed))
    weight, x = random_weight(rng, "Q8_0", (24, 64)), rng.standard_normal((ROWS, 64)).astype(np.float32)
    with rf.Stream("gpu") as stream:
        there, residual = weight.to_device("gpu"), cp.zeros((ROWS, 24), np.float32)
        stream.synchronize()
        copy(rf.linear(stream.upload(x), there), residual)
        residual *= 2
        y = stream.download(residual).get()
    assert tuning.of(0).dequantize_rows >= 24
    assert relative_error(y, 2 * x.astype(np.float64) @ weight.dequantize().astype(np.float64).T) < 1e-3


@only_simulated
def test_a_copy_on_the_null_stream_does_not(monkeypatch, rng):
    """The fault itself: the copy is not ordered with the product, and reads what was there before."""
    weight, x = random_weight(rng, "Q8_0", (24, 64)), rng.standard_normal((ROWS, 64)).astype(np.float32)
    with rf.Stream("gpu") as stream:
        there, residual = weight.to_device("gpu"), cp.zeros((ROWS, 24), np.float32)
        stream.synchronize()
        y = rf.linear(stream.upload(x), there)
        with cp.cuda.Stream.null as null:
            residual.data.copy_from_device_async(y.data, y.nbytes)
        null.synchronize()
        early = stream.download(residual).get()
        assert not np.array_equal(early, stream.download(y).get())
        monkeypatch.setenv("HIPSIM_STRICT_STREAM", "1")
        with cp.cuda.Stream.null, pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="on the null stream"):
            residual.data.copy_from_device_async(y.data, y.nbytes)


# ---- a generation


GREEDY = rf.SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
SAMPLED = rf.SamplingParams(max_tokens=6, seed=3, top_p=0.9, ignore_eos=True)
PENALTIES = {"repetition_penalty": 1.3, "presence_penalty": 0.3, "frequency_penalty": 0.5, "logit_bias": {7: 3.0}}


def generated(path, requests, fp16_weights=None):
    """Tokens of prompts of several lengths, and their log-probabilities, from loading to the end."""
    model, tokenizer = rf.load(path, "gpu", fp16_weights=fp16_weights)
    assert sum(len(prompt) for prompt, _ in requests) > MAX_TILE_TOKENS  # a step that calls the BLAS library
    with rf.Engine(model, tokenizer.eog_token_ids, cache_tokens=160) as engine:
        told = {engine.add(*request): [] for request in requests}
        while engine.busy:
            for token in engine.step():
                told[token.request].append((token.id, token.logprobs))
    return list(told.values())


def test_generation_in_every_order(path, strict, monkeypatch):
    """From `rf.load` to the last token nothing is on the null stream, and other orders of work give the same tokens."""
    requests = [([1, 2, 3], GREEDY), (list(range(50)), SAMPLED), ([9] * 17, SAMPLED)]
    expected = generated(path, requests)
    assert [len(tokens) for tokens in expected] == [4, 6, 6]
    for seed in (1, 2):
        monkeypatch.setenv("HIPSIM_SEED", str(seed))
        assert generated(path, requests) == expected


@pytest.mark.parametrize(
    ("variant", "fp16_weights"), [("qwen3moe", True), ("gemma2", True), ("gpt-oss", False), ("phi3", False)]
)
def test_generation_of_other_architectures(tmp_path, strict, monkeypatch, variant, fp16_weights):
    """So it is with experts, windows and softcaps, float16 values kept or not, and whatever sampling takes."""
    build(tmp_path / "model.gguf", variant, "Q8_0")
    params = rf.SamplingParams(max_tokens=4, seed=3, logprobs=2, ignore_eos=True, **PENALTIES)
    requests = [(list(range(MAX_TILE_TOKENS)), params), ([9], params)]
    expected = generated(tmp_path / "model.gguf", requests, fp16_weights)
    monkeypatch.setenv("HIPSIM_SEED", "1")
    assert generated(tmp_path / "model.gguf", requests, fp16_weights) == expected
    assert [len(tokens) for tokens in expected] == [4, 4]
