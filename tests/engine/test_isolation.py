"""Adapters, edits and observers are one model's: they change no other model, and no engine of another one, whatever
runs in other threads meanwhile."""

import contextlib
import threading

import pytest
from adapters import random_lora
from golden import build

import rocforge as rf
from rocforge.load import load_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of one file."""
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    build(path, "llama-linear", "Q8_0")
    return [load_model(rf.open_gguf(path), "cpu") for _ in range(2)]


def run(model, lora=None, tokens=12):
    params = rf.SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, lora=lora)
    with rf.Engine(model, cache_tokens=128) as engine:
        requests = [engine.add([5, 40, prompt], params) for prompt in (7, 8)]
        while engine.busy:
            engine.step()
    return [request.output for request in requests]


@contextlib.contextmanager
def adapter(model, rng):
    """The name that requests with it give."""
    model.adapters["x"] = random_lora(rng, model, ["attn_q", "ffn_down", "output"], size=1)
    yield "x"
    del model.adapters["x"]


@contextlib.contextmanager
def edit(model, rng):
    with model.edit({"blk.*.ffn_down": -1.0}):
        yield None


@contextlib.contextmanager
def observer(model, rng):
    with model.capture("blk.*.attn_output"):
        yield None


@pytest.mark.parametrize("meddle", [adapter, edit, observer])
def test_other_models_are_untouched(models, rng, meddle):
    """Two models, an engine and a thread each, of which one is meddled with again and again: the other one's texts stay
    what they were, and the first one's are what they are alone."""
    meddled, other = models
    plain = run(other)
    with meddle(meddled, rng) as lora:
        alone = run(meddled, lora)
    assert (alone == plain) is (meddle is observer)
    found, done = [], threading.Event()

    def repeat():
        while not done.is_set():
            found.append(run(other))

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        for _ in range(4):
            with meddle(meddled, rng) as lora:
                run(meddled, lora)
            assert run(meddled) == plain
    finally:
        done.set()
        thread.join()
    assert found and all(outputs == plain for outputs in found)
    assert run(other) == plain and not other.adapters


def test_observers_see_their_model_alone(models):
    """What runs on another model, in another thread, is not shown."""
    observed, other = models
    seen = []
    with observed.output.observe(lambda y: seen.append(threading.current_thread().name)):
        thread = threading.Thread(target=run, args=(other,), name="other")
        thread.start()
        run(observed)
        thread.join()
    assert seen and set(seen) == {threading.current_thread().name}


def test_two_engines_of_one_model(models, rng):
    """A request's adapter is its own, also beside another engine's requests of the same model."""
    model = models[0]
    plain = run(model)
    with adapter(model, rng) as lora:
        alone, found = run(model, lora), {}

        def note(name):
            found[name] = run(model, name)

        threads = [threading.Thread(target=note, args=(name,)) for name in (lora, None)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {lora: alone, None: plain} and alone != plain
