"""Memory of engines on a device: none is lost, and where it runs short, what nothing uses is given back."""

import gc
import threading
from dataclasses import replace

import cupy as cp
import pytest
from simulated import little_memory, on_the_simulator, only_simulated

import rocforge as rf
from rocforge.device.blas import workspace_nbytes
from rocforge.device.cards import card_of
from rocforge.engine import step as steps
from rocforge.load import load_model

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]

PARAMS = rf.SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def model(path):
    return load_model(rf.open_gguf(path), "gpu")


def run(engine, prompts, params=PARAMS):
    requests = [engine.add(prompt, params) for prompt in prompts]
    while engine.busy:
        engine.step()
    return [request.output for request in requests]


@only_simulated
@pytest.mark.parametrize("tokens", [1, 4])
def test_engines_leave_nothing(model, tokens):
    """The device has as much free after the sixth engine as after the second; the first compiles and loads. An engine
    has made one step, kernel by kernel, or several, which are captured."""
    free = []
    for _ in range(6):
        with rf.Engine(model, cache_tokens=256) as engine:
            run(engine, [[1, 2, 3]], replace(PARAMS, max_tokens=tokens))
        del engine
        gc.collect()
        cp.get_default_memory_pool().free_all_blocks()
        free.append(cp.cuda.runtime.memGetInfo()[0])
    assert free[5] == free[1]


@only_simulated
def test_graphs_share_their_memory(model):
    """Those of many shapes take little more than that of the largest alone, and to compile them leaves nothing."""
    sizes = {"cache_tokens": 64, "max_batch_tokens": 192, "max_requests": 8}
    with rf.Engine(model, **sizes) as engine:
        runner = engine._runner
        with engine._stream:
            for _ in range(2):
                runner._run(runner.shapes[-1], [])
        alone = runner.memory_reserved
    pool = cp.get_default_memory_pool()
    with rf.Engine(model, **sizes) as engine:
        before = pool.total_bytes()
        engine.prepare()
        assert len(engine._runner._plans) == 10 and engine._runner.memory_reserved < 1.1 * alone
        assert pool.total_bytes() - before < 0.1 * alone


def test_an_engine_that_is_made_during_a_capture(model, monkeypatch):
    """One thread's engine begins while another's graph is captured: both go on, with the same tokens."""
    step, outputs = steps._Plan._forward, []

    def other():
        with rf.Engine(model, cache_tokens=128) as engine:
            outputs.append(run(engine, [[1, 2, 3]]))

    def with_another(plan):
        if threading.current_thread() is threading.main_thread() and cp.cuda.get_current_stream().is_capturing():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        return step(plan)

    monkeypatch.setattr(steps._Plan, "_forward", with_another)
    with rf.Engine(model, cache_tokens=128) as engine:
        assert outputs == [] and run(engine, [[1, 2, 3]]) == outputs[0]


# ---- where it runs short


BEGIN = """
import gc
import cupy as cp
from rocforge.load import load_model
model = load_model(rf.open_gguf(path), "gpu")
params = rf.SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
free = lambda: cp.cuda.runtime.memGetInfo()[0]
def run(engine, prompts):
    requests = [engine.add(prompt, params) for prompt in prompts]
    while engine.busy:
        engine.step()
    return [request.output for request in requests]
"""
HOARDED = """
few = [[1 + i, 2, 3] for i in range(8)]
with rf.Engine(model, cache_tokens=8192, max_batch_tokens=2048, max_requests=64) as engine:
    wanted = run(engine, few)
with rf.Engine(model, cache_tokens=8192, max_batch_tokens=2048, max_requests=64) as engine:
    run(engine, [[5 + i] * 120 for i in range(3)])
    cp.empty(8 << 20, cp.uint8)
    gc.collect()
    hog = cp.cuda.runtime.malloc(free() - (64 << 10))
    hoarded = cp.get_default_memory_pool().free_bytes()
    print(hoarded > 4 << 20, run(engine, few) == wanted)
"""
TOO_LARGE = """
try:
    rf.Engine(model, cache_tokens=10_000_000)
except rf.OutOfMemoryError as error:
    print("cache:", error)
with rf.Engine(model, cache_tokens=4096, max_batch_tokens=2048) as engine:
    wanted = run(engine, [[1, 2, 3]])
    cp.get_default_memory_pool().free_all_blocks()
    hog = cp.cuda.runtime.malloc(free() - (1 << 20))
    for i in range(8):
        engine.add([5 + i] * 250, params)
    try:
        while engine.busy:
            engine.step()
    except rf.OutOfMemoryError as error:
        print("prompt:", error)
    engine.cancel_all()
    print("after:", run(engine, [[1, 2, 3]]) == wanted)
"""

PREPARED = """
with rf.Engine(model, max_batch_tokens=2048, max_requests=256) as engine:
    engine.prepare()
    print(engine.cache_tokens < 50_000, len(run(engine, [[1, 2, 3]])[0]))
"""


@only_simulated
def test_a_cache_leaves_what_steps_take(path):
    """An engine that sizes its own cache by what is free has room for all of its graphs."""
    memory = little_memory(80 << 20) + workspace_nbytes(card_of(0))  # of the stream that captures
    assert on_the_simulator(BEGIN + PREPARED, path, MEMORY=memory) == "True 4\n"


@only_simulated
def test_a_pool_that_keeps_what_another_needs(path):
    """What others have left in CuPy's pool goes to decode steps, which have a pool of their own."""
    assert on_the_simulator(BEGIN + HOARDED, path, MEMORY=little_memory(96 << 20)) == "True True\n"


@only_simulated
def test_a_step_without_room(path):
    """A cache or a prompt that does not fit is an OutOfMemoryError with what was free; smaller ones work then."""
    cache, prompt, after = on_the_simulator(BEGIN + TOO_LARGE, path, MEMORY=little_memory(96 << 20)).splitlines()
    assert cache.startswith("cache: KV cache: Out of memory allocating") and "gpu:0 has" in cache
    assert prompt.startswith("prompt: step: Out of memory allocating") and "gpu:0 has" in prompt
    assert after == "after: True"


def test_nothing_sees_an_engine_being_made(path):
    """Its rehearsal of a step shows itself to no observer, and to no edit that has to be called each time."""
    watched, seen = load_model(rf.open_gguf(path), "gpu"), []
    with watched.blk[0].observe(lambda *args: seen.append(args)):
        rf.Engine(watched, max_batch_tokens=32, max_requests=2).close()
    with watched.edit({"blk.0": lambda output, *args: seen.append(args) or output}):
        rf.Engine(watched, max_batch_tokens=32, max_requests=2).close()
    assert not seen
