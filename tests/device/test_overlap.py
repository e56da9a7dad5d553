"""Launches that overlap, against the simulator's adversary: what a kernel reads before it waits is old."""

import gc
import os

import cupy as cp
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from golden import build, families

import rocforge as rf
from rocforge.device import tuning
from rocforge.device.kernels import Kernel, launches_recorded
from rocforge.load import load_model
from rocforge.nn import Module

pytestmark = [
    pytest.mark.skipif("HIPSIM_ARCH" not in os.environ, reason="for the simulator's adversary"),
    pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="kernels are not the simulator's"),
    pytest.mark.slow,
    pytest.mark.any_wave,
]

KERNELS = r"""
extern "C" __global__ void store_one(int* a, int value) {
    hipsim_wait_for_previous();
    a[threadIdx.x] = value;
}
extern "C" __global__ void store_hastily(int* a, int value) {
    hipsim_let_next_begin();
    hipsim_wait_for_previous();
    a[threadIdx.x] = value;
}
extern "C" __global__ void look(int* early, int* late, const int* a, const int* b) {
    early[threadIdx.x] = 10 * a[threadIdx.x] + b[threadIdx.x];
    int seen = early[threadIdx.x];
    hipsim_wait_for_previous();
    early[threadIdx.x] = seen;
    late[threadIdx.x] = 10 * a[threadIdx.x] + b[threadIdx.x];
}
extern "C" __global__ void fail(int* a) {
    if (a[threadIdx.x] == 0) *(volatile int*)16 = 1;
    hipsim_wait_for_previous();
}
extern "C" __global__ void never(int* a) { a[threadIdx.x] = 1; }
"""


@pytest.fixture(autouse=True)
def little_memory():
    """What tests before have left in CuPy's pool is given back: all memory is copied at each launch that overlaps."""
    gc.collect()
    cp.get_default_memory_pool().free_all_blocks()


@pytest.fixture
def kernels():
    module = cp.RawModule(code=KERNELS)
    return {name: module.get_function(name) for name in ("store_one", "store_hastily", "look", "fail", "never")}


@pytest.fixture
def overlap(monkeypatch):
    monkeypatch.setenv("HIPSIM_OVERLAP", "1")


def chain(kernels, second):
    """a and b become 1 by one kernel each, and are read early and late by a third."""
    with cp.cuda.Stream(non_blocking=True) as stream:
        a, b, early, late = (cp.zeros(64, np.int32) for _ in range(4))
        kernels["store_one"]((1,), (64,), (a, np.int32(1)))
        kernels[second]((1,), (64,), (b, np.int32(1)))
        kernels["look"]((1,), (64,), (early, late, a, b))
        stream.synchronize()
    return sorted(set(early.get().tolist())), sorted(set(late.get().tolist()))


def test_in_order(kernels):
    """Where launches do not overlap, all is written before it is read."""
    assert chain(kernels, "store_one") == ([11], [11])


def test_what_is_read_too_early_is_old(kernels, overlap):
    """What the kernel before writes is seen after the wait alone; what an older one wrote is there."""
    assert chain(kernels, "store_one") == ([10], [11])


def test_a_kernel_that_lets_the_next_begin_before_it_waits(kernels, overlap):
    """Then nothing of the kernel before that has been written either."""
    assert chain(kernels, "store_hastily") == ([0], [11])


def test_a_copy_is_in_order(kernels, overlap):
    """Only kernels overlap."""
    with cp.cuda.Stream(non_blocking=True) as stream:
        a, b, early, late = (cp.zeros(64, np.int32) for _ in range(4))
        kernels["store_one"]((1,), (64,), (a, np.int32(1)))
        b.data.copy_from_device_async(a.data, a.nbytes, stream)
        kernels["look"]((1,), (64,), (early, late, a, b))
        stream.synchronize()
    assert (early.get() == 11).all() and (late.get() == 11).all()


def test_a_kernel_that_does_not_wait(kernels, overlap):
    """It is named."""
    a = cp.zeros(64, np.int32)
    kernels["never"]((1,), (64,), (a,))
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match=r"never.*returned before it waited"):
        cp.cuda.Device().synchronize()


def test_a_fault_before_the_wait(kernels, overlap):
    """What the kernel before has written is there again afterwards."""
    with cp.cuda.Stream(non_blocking=True) as stream:
        a = cp.zeros(64, np.int32)
        kernels["store_one"]((1,), (64,), (a, np.int32(1)))
        kernels["fail"]((1,), (64,), (a,))
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="fail"):
            stream.synchronize()
        assert (a.get() == 1).all()
    assert chain(kernels, "store_one") == ([10], [11])


def memory_of(value):
    """Where the arrays among a launch's arguments lie: first bytes and ends."""
    if isinstance(value, cp.ndarray):
        return [(value.data.ptr, value.data.ptr + value.nbytes)]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [place for part in parts for place in memory_of(part)]


@pytest.mark.parametrize("architecture", ["gemma4-experts", "deepseek2-lite", "qwen2moe"])
def test_what_runs_beside_a_launch_writes_elsewhere(tmp_path, architecture, monkeypatch):
    """Not where that one reads, though nobody else needs it any more; and nobody waits for more than one launch."""
    families.build(tmp_path / "model.gguf", architecture, GGMLQuantizationType.Q8_0)
    model, launched = load_model(rf.open_gguf(tmp_path / "model.gguf"), "gpu"), []
    launch = Kernel.__call__

    def recorded(kernel, grid, block, args, shared=0):
        if beside := "RF_BESIDE" in kernel.defines:
            written = memory_of([args[name] for name in ("logits", "quantized", "out") if name in args])
            was_beside, _, before = launched[-1]
            assert written and not was_beside
            assert not any(a < end and start < b for a, b in written for start, end in before), kernel.name
        launched.append((beside, kernel.name, memory_of(args)))  # the arrays themselves would stay
        return launch(kernel, grid, block, args, shared)

    monkeypatch.setattr(Kernel, "__call__", recorded)
    with tuning.trying(beside=True):
        for tokens in (1, 2, 6):
            model(np.arange(tokens, dtype=np.int32) + 5)
    names = {name for beside, name, _ in launched if beside}
    assert names == {"router", "experts_gated"}


class Constant(Module):
    """A user's module in the place of another, which launches nothing."""

    def __init__(self, output):
        self.output = output

    def forward(self, x):
        return cp.broadcast_to(self.output, (len(x), self.output.shape[-1]))


def test_nobody_runs_beside_what_it_needs(tmp_path, overlap, monkeypatch):
    """Where a user's module stands for the launch that the experts run beside, they follow the router."""
    families.build(tmp_path / "model.gguf", "gemma4-experts", GGMLQuantizationType.Q8_0)
    model = load_model(rf.open_gguf(tmp_path / "model.gguf"), "gpu")
    for block in model.blk:
        block.ffn.dense.ffn_down = Constant(cp.full(model.config.dim, 0.1, np.float32))
    with tuning.trying(beside=True):
        overlapping = rf.asnumpy(model(np.array([7], np.int32)))
        monkeypatch.setenv("HIPSIM_OVERLAP", "0")
        np.testing.assert_array_equal(overlapping, rf.asnumpy(model(np.array([7], np.int32))))


SAMPLED = {"temperature": 0.8, "top_p": 0.9, "seed": 1, "logprobs": 2}
GREEDY = {"temperature": 0, "logprobs": 0}
BESIDE = "gemma4-experts", "deepseek2-lite"
"""Models of which launches may run beside those before them."""
"""The kernels of sampling take more of the simulator's time than a small model."""


@pytest.mark.parametrize(
    ("architecture", "sampling"),
    [("llama", SAMPLED), *((name, GREEDY) for name in ("qwen3", "gemma2", "phi3", "gpt-oss", *BESIDE))],
)
def test_generation(tmp_path, rng, architecture, sampling, overlap, monkeypatch):
    """Tokens and log-probabilities of a prompt, of decode steps, and of steps with both, single launches and a graph's,
    alone and in a batch, are bit for bit what they are without overlap, also of launches that run beside others."""
    if architecture in families.FAMILIES:
        families.build(tmp_path / "model.gguf", architecture, GGMLQuantizationType.Q8_0)
    else:
        build(tmp_path / "model.gguf", architecture, "Q8_0")
    model = load_model(rf.open_gguf(tmp_path / "model.gguf"), "gpu")
    prompts = [rng.integers(0, model.config.vocabulary, n).tolist() for n in (5, 3)]

    def written(count):
        with rf.Engine(model, cache_tokens=256) as engine:
            params = rf.SamplingParams(max_tokens=4, ignore_eos=True, **sampling)
            todo, tokens = prompts[:count], []
            while engine.busy or todo:
                if todo:
                    engine.add(todo.pop(0), params)
                tokens += [(token.id, token.logprobs) for token in engine.step()]
            return tokens

    overlapping = []
    for beside in (False, True):
        with tuning.trying(beside=beside):
            overlapping.append([written(count) for count in (1, 2)])
    launched = []
    with tuning.trying(beside=True), launches_recorded(launched.append):
        model(np.zeros(1, np.int32))
    assert any("RF_BESIDE" in kernel.defines for kernel in launched) == (architecture in BESIDE)
    monkeypatch.setenv("HIPSIM_OVERLAP", "0")
    assert all(tokens == [written(count) for count in (1, 2)] for tokens in overlapping)
