"""Steps on a device: replayed graphs against kernels queued one by one, and steps that run ahead of the host."""

import gc
import os

import cupy as cp
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from golden import build, families

import rocforge as rf
from rocforge.device.kernels import launches_recorded
from rocforge.engine import step as steps
from rocforge.engine.capture import GraphRecorder
from rocforge.engine.inputs import decode_sizes, prompt_sizes
from rocforge.engine.request import Request
from rocforge.engine.scheduler import ScheduledChunk
from rocforge.engine.state import SequenceState
from rocforge.load import load_model

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]

PARAMS = [
    {"temperature": 0, "logprobs": 3},
    {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 1.0, "top_k": 20, "min_p": 0.01, "logit_bias": {7: 3.0, 9: -2.0}},
]


@pytest.fixture(scope="module")
def models(path):
    """A small random llama on the CPU and on the device."""
    return [load_model(rf.open_gguf(path), device) for device in ("cpu", "gpu")]


@pytest.fixture
def model(models):
    return models[1]


@pytest.fixture
def prompts(model, rng):
    return [rng.integers(0, model.config.vocabulary, n).tolist() for n in (3, 29, 17)]


def run(model, prompts, params=None, between=lambda engine, requests, step: None, **options):
    """The outputs of a request for each prompt, with logprobs, of an engine that leaves nothing behind."""
    params = params or [rf.SamplingParams(max_tokens=8 + i, seed=i, **p) for i, p in enumerate(PARAMS)]
    with rf.Engine(model, **{"cache_tokens": 512, **options}) as engine:
        requests = [engine.add(p, s) for p, s in zip(prompts, params, strict=True)]
        seen, step = {request: [] for request in requests}, 0
        while engine.busy:
            for token in engine.step():
                seen.setdefault(token.request, []).append((token.id, token.logprobs))
            step += 1
            between(engine, requests, step)
        assert engine.scheduler.state.idle
    assert all([id for id, _ in tokens] == request.output for request, tokens in seen.items())
    return list(seen.values())


def follows(models, prompt, tokens):
    """Whether each token is the CPU's most likely one after the prompt and those before it, or next to it.

    Bit equality is not to be had: other numbers of rows are summed in another order, and rounding to int8 magnifies it.
    """
    ids = [id for id, _ in tokens]
    logits = models[0](np.array(prompt + ids))[len(prompt) - 1 : -1]
    return (logits.max(1) - logits[np.arange(len(ids)), ids] < 0.3 * logits.std()).all()


def test_graphs_change_nothing(model, prompts, monkeypatch):
    """With graphs and without, bit for bit: tokens of every kind of sampling, and log-probabilities."""
    graphs = run(model, prompts)
    assert [len(tokens) for tokens in graphs] == [8, 9, 10]
    monkeypatch.setenv("ROCFORGE_GRAPHS", "0")
    assert run(model, prompts) == graphs


@pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")
def test_graphs_are_used(model, prompts, monkeypatch):
    """Most steps are one launch of a graph, and each shape of step captures once."""
    captured, launched = GraphRecorder.capture, []

    class Counted:
        def __init__(self, graph):
            self.graph = graph

        def launch(self):
            launched.append(self)
            self.graph.launch()

    def capture(recorder, step):
        graph, logits = captured(recorder, step)
        return Counted(graph), logits

    monkeypatch.setattr(GraphRecorder, "capture", capture)
    run(model, prompts[:2], [rf.SamplingParams(max_tokens=n, temperature=0) for n in (10, 20)])
    assert len(launched) >= 14 and len(set(launched)) == 2


@pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")
def test_nothing_is_captured_once_prepared(model, prompts, monkeypatch):
    """After `prepare`, prompts, chunks, mixtures and decodes of any number of requests replay what is there."""
    capture, captures, done = GraphRecorder.capture, [], []
    monkeypatch.setattr(GraphRecorder, "capture", lambda *args: captures.append(args) or capture(*args))
    with rf.Engine(model, cache_tokens=512, max_batch_tokens=32, max_requests=4) as engine:
        engine.prepare(done.append)
        shapes = len(decode_sizes(4)) + len(prompt_sizes(32))
        assert len(captures) == shapes == 5 and done[-1] == "capturing steps: 4 of 5"
        for prompt in [*prompts, prompts[1][::-1]]:
            engine.add(prompt, rf.SamplingParams(max_tokens=6, temperature=0))
            engine.step()
        while engine.busy:
            engine.step()
    assert len(captures) == shapes


def test_stats(model, prompts):
    """Every step is counted, with its time on the device."""
    with rf.Engine(model, cache_tokens=512) as engine:
        engine.add(prompts[0], rf.SamplingParams(max_tokens=6, temperature=0))
        count = 0
        while engine.busy:
            engine.step()
            count += 1
        stats = engine.stats
    assert count == stats.steps == 6
    assert 0 < stats.longest < stats.seconds and stats.waited >= 0


def test_sizes_of_steps():
    """In ascending order, up to the most."""
    assert decode_sizes(5) == [1, 2, 4, 5] and decode_sizes(256)[-3:] == [192, 224, 256]
    assert prompt_sizes(16) == [16] and prompt_sizes(2048)[-3:] == [1792, 1920, 2048]
    for sizes in (decode_sizes(1000), prompt_sizes(8192)):
        assert sizes == sorted(set(sizes))


@pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")
@pytest.mark.parametrize("failures", [1, 1000])
def test_capture_that_fails(model, prompts, monkeypatch, failures):
    """A step in whose capture something illegal is done runs kernel by kernel, with the same tokens; that is told."""
    params = [rf.SamplingParams(max_tokens=12, temperature=0)]
    expected, step, captures = run(model, prompts[:1], params), steps._Plan._forward, []

    def disturbed(plan):
        logits = step(plan)
        if cp.cuda.get_current_stream().is_capturing():
            captures.append(plan)
            if len(captures) <= failures:
                cp.cuda.runtime.deviceSynchronize()
        return logits

    monkeypatch.setattr(steps._Plan, "_forward", disturbed)
    with pytest.warns(UserWarning, match="without a graph"):
        assert run(model, prompts[:1], params) == expected
    assert len(captures) == min(failures + 1, steps.ATTEMPTS)


@pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")
def test_memory_of_a_graph_is_its_own(model, prompts):
    """What was taken during its capture nobody else is given: with all unused memory freed, the same tokens come."""

    def free(*_):
        gc.collect()
        cp.get_default_memory_pool().free_all_blocks()

    params = [rf.SamplingParams(max_tokens=6, temperature=0, logprobs=1)]
    assert run(model, prompts[:1], params, free) == run(model, prompts[:1], params)


def test_host_is_one_step_behind(model, prompts, monkeypatch):
    """A step, of prompts too, is queued before the tokens of the one before it are read, until a request's last one."""
    calls, launch, tokens = [], steps.StepRunner.launch, steps.PendingStep.tokens
    monkeypatch.setattr(steps.StepRunner, "launch", lambda *args: calls.append("launch") or launch(*args))
    monkeypatch.setattr(steps.PendingStep, "tokens", lambda step: calls.append("read") or tokens(step))
    run(model, prompts[:1], [rf.SamplingParams(max_tokens=5, temperature=0)])
    assert calls == ["launch", *["launch", "read"] * 4, "read"]


def launched(model):
    """Names of the kernels of a decode step of one request, in order."""
    kernels = []
    with rf.Stream("gpu") as stream, launches_recorded(kernels.append), rf.Engine(model, cache_tokens=64) as engine:
        groups = len(engine.cache.paged)
        state = SequenceState([[0] for _ in range(groups)], row=0, uploaded=[0] * groups)
        request = Request([1], rf.SamplingParams(temperature=0), state=state)
        runner = steps.StepRunner(stream, model, engine.cache, 64, 1, 2)
        runner.launch([ScheduledChunk(request, 0, 1, True)]).sample()
    return [kernel.name for kernel in kernels]


def test_launches_of_a_step(model):
    """Five launches a layer: q, k and v; attention; its output with the norm; gate and up; down with the next norm."""
    layer = ["matvec", "attention_decode", "matvec_then_norm", "matvec_gated", "matvec_then_norm"]
    first = ["begin_step", "rope_angles", "dequantize_float32", "rms_norm"]
    assert launched(model) == [*first, *layer * model.config.layers, "matvec", "sample_slices", "sample_rows"]


ATTENTION, NORMED_MLP = ["matvec", "attention_decode", "matvec", "add_normed"], ["matvec_gated", "matvec", "add_normed"]
ROUNDED = ["matvec", "attention_decode", "quantize_activations", "matvec", "add_normed"]
"""Of models whose heads are no whole cells, so that attention writes floats."""
LAYERS = {
    "gemma2": [*ATTENTION, *NORMED_MLP],
    "gemma3": [*ATTENTION, *NORMED_MLP],
    "olmo2": ["matvec", "rms_norm", "rms_norm", *ATTENTION[1:], *NORMED_MLP],
    "glm4": [*ROUNDED, *NORMED_MLP],
    "exaone4": [*ROUNDED, *NORMED_MLP],
    "gemma4-experts": [
        *ATTENTION[:3],
        "add_normed_for_several",
        *["matvec_gated", "router", "matvec"],
        *["experts_gated", "experts_down"],
        "add_two_normed",
    ],
    "gemma4-shared": [*ATTENTION, *NORMED_MLP, "matvec", "geglu", "matvec", "add_normed"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_launches_with_norms_behind(tmp_path, name):
    """A norm behind a part, the residual and the next norms are one launch: seven a layer, ten with experts beside."""
    path = tmp_path / "model.gguf"
    if name in families.FAMILIES:
        families.build(path, name, GGMLQuantizationType.Q8_0)
    else:
        build(path, name, "Q8_0")
    model = load_model(rf.open_gguf(path), "gpu")
    names = [kernel for kernel in launched(model) if kernel != "rope_store"]  # of layers that share keys
    layers = LAYERS[name] * model.config.layers
    first = len(names) - len(layers) - names[::-1].index("add_normed" if "experts" not in name else "add_two_normed")
    assert names[first:][: len(layers)] == layers


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "qwen3"])
def test_angles_are_older_than_attention(tmp_path, architecture):
    """No attention follows directly upon a kernel that writes what it reads before it waits for that kernel."""
    build(tmp_path / "model.gguf", architecture, "Q8_0")
    names = launched(load_model(rf.open_gguf(tmp_path / "model.gguf"), "gpu"))
    before = {names[i - 1] for i, name in enumerate(names) if name == "attention_decode"}
    assert before == {"matvec"}


def test_requests_come_and_go(models, prompts):
    """Requests that join and are cancelled while steps are queued, which run in the rows of others."""
    params = [rf.SamplingParams(max_tokens=18, temperature=0)] * 3

    def between(engine, requests, step):
        if step == 6:
            engine.cancel(requests[1])
        if step == 9:
            engine.add(prompts[1], params[1])
        if step == 14:
            engine.cancel(requests[0])

    outputs = run(models[1], prompts, params, between)
    lengths = [len(tokens) for tokens in outputs]
    assert 10 <= lengths[0] <= 14 and 4 <= lengths[1] <= 6 and lengths[2:] == [18, 18]
    assert all(follows(models, *pair) for pair in zip([*prompts, prompts[1]], outputs, strict=True))


def test_all_cancelled_then_another(models, prompts):
    """A queued step that nobody waits for any more is no step of the next request."""
    params = [rf.SamplingParams(max_tokens=9, temperature=0)]

    def between(engine, requests, step):
        if step == 4:
            engine.cancel_all()
            engine.add(prompts[0], params[0])

    _, tokens = run(models[1], prompts[1:2], params, between)
    assert len(tokens) == 9 and follows(models, prompts[0], tokens)


def test_preempted(models, prompts):
    """A cache too small for all: requests give way and come back."""
    params = [rf.SamplingParams(max_tokens=18, temperature=0)] * 3
    outputs = run(models[1], prompts, params, cache_tokens=128)
    assert [len(tokens) for tokens in outputs] == [18] * 3
    assert all(follows(models, *pair) for pair in zip(prompts, outputs, strict=True))


def test_watched_modules(model, prompts):
    """An observer sees every step once, other values each time; decode steps have a power of two of rows."""
    seen, params = [], [rf.SamplingParams(max_tokens=8, temperature=0)] * 3
    expected = run(model, prompts, params)
    with model.blk[1].ffn_down.observe(lambda y: seen.append(rf.asnumpy(y))):
        assert run(model, prompts, params) == expected
    assert {len(array) for array in seen[1:]} == {4}
    assert len({array[:3].tobytes() for array in seen}) == len(seen) == 8


def test_a_failed_step(models, prompts, monkeypatch):
    """After an exception the engine can be used again, and it still ends cleanly."""
    params = [rf.SamplingParams(max_tokens=12, temperature=0)]
    launch = steps.StepRunner.launch

    def between(engine, requests, step):
        if step == 5:
            monkeypatch.setattr(steps.StepRunner, "launch", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                engine.step()
            monkeypatch.setattr(steps.StepRunner, "launch", launch)
            engine.cancel_all()
            engine.add(prompts[0], params[0])

    _, tokens = run(models[1], prompts[1:2], params, between)
    assert len(tokens) == 12 and follows(models, prompts[0], tokens)


def test_logprobs_are_of_the_logits(models, prompts):
    """What is reported beside the tokens is near what the CPU's unchanged logits give."""
    (tokens,) = run(models[1], prompts[1:2], [rf.SamplingParams(max_tokens=5, temperature=0.8, seed=3, logprobs=4)])
    logits = models[0](np.array(prompts[1] + [id for id, _ in tokens])).astype(np.float64)[len(prompts[1]) - 1 : -1]
    exact = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for row, (id, report) in zip(exact, tokens, strict=True):
        assert abs(report.token - row[id]) < 0.3 * logits.std() and len(report.top) == 4
        assert list(report.top.values()) == sorted(report.top.values(), reverse=True)
