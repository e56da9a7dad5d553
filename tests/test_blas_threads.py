"""BLAS threads follow the free processors: counted from the kernel's times, set for the work, and set back after it."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from golden import demo
from threadpoolctl import ThreadpoolController, threadpool_limits

import rocforge as rf
from rocforge.device import blas_threads
from rocforge.device.blas_threads import PERIOD, BlasThreads, FreeProcessors


class Machine:
    """Four processors, of which this process may use three, and their times as Linux shows them."""

    def __init__(self, folder, monkeypatch):
        self.stat, self.quota = folder / "stat", folder / "cpu.max"
        self.now = self.worked = 100.0
        self.idle = [0.0] * 4
        monkeypatch.setattr(blas_threads.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(blas_threads.time, "process_time", lambda: self.worked)
        monkeypatch.setattr(blas_threads.os, "sched_getaffinity", lambda _: {0, 1, 3})
        self.passes(0, 0, 0)

    def passes(self, seconds, others, ours):
        """Time in which other processes use that many of the three processors, and this process that many."""
        tick = os.sysconf("SC_CLK_TCK")
        self.now, self.worked = self.now + seconds, self.worked + seconds * ours
        for processor in (0, 1, 3):
            self.idle[processor] += seconds * (3 - others - ours) / 3
        lines = [f"cpu{i} 7 7 7 {round(idle * tick)} 0 3 0 9 0 0" for i, idle in enumerate(self.idle)]
        self.stat.write_text("\n".join(["cpu  9 9 9 9 9", *lines, "intr 5 6", "ctxt 8", ""]))

    @property
    def free(self):
        return FreeProcessors(str(self.stat), str(self.quota))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def test_free_processors(machine):
    """What was idle or this process's own; at least one; the last count until the next period is over."""
    free = machine.free
    assert free.count() == 1  # nothing is known yet
    machine.passes(1, others=0.1, ours=1)
    assert free.count() == 3
    machine.passes(PERIOD / 2, others=1, ours=2)
    assert free.count() == 3
    machine.passes(1, others=1, ours=2)
    assert free.count() == 2
    machine.passes(1, others=1.5, ours=1.5)
    assert free.count() == 1
    machine.passes(1, others=3, ours=0)
    assert free.count() == 1
    machine.passes(1, others=0, ours=0)
    assert free.count() == 3


@pytest.mark.parametrize(("quota", "count"), [("max 100000", 3), ("200000 100000", 2), ("50000 100000", 1)])
def test_a_quota_limits_them(machine, quota, count):
    """A container's limit, in whole processors."""
    machine.quota.write_text(quota + "\n")
    free = machine.free
    machine.passes(1, others=0, ours=1)
    assert free.count() == count


def test_without_the_kernels_times(tmp_path):
    """Elsewhere than on Linux, all processors count as free."""
    assert FreeProcessors(str(tmp_path / "none")).count() == len(os.sched_getaffinity(0))


class Free:
    """So many."""

    def __init__(self, number):
        self.number = number

    def count(self):
        return self.number


def threads():
    return [library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()]


def in_a_thread(function):
    """What it returns in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def here(function):
    return function()


@pytest.mark.parametrize("run", [here, in_a_thread])
def test_limit_and_back(run):
    """No more than are free, no more than the user allows, and afterwards what the user had; in a server's thread too.

    Work of another thread at the same time has the same limit, and does not lift it.
    """

    def check():
        with threadpool_limits(4, user_api="blas"):
            allowed = threads()
            assert allowed, "no BLAS that threadpoolctl knows"
            limit = BlasThreads(Free(1))
            with limit.limited():
                assert set(threads()) == {1}

                def other():
                    with limit.limited():
                        return set(threads())

                assert in_a_thread(other) == {1} and set(threads()) == {1}
            assert threads() == allowed
            with BlasThreads(Free(99)).limited():
                assert threads() == allowed

    run(check)


def test_a_model_is_run_within_it(monkeypatch):
    """Every pass of a model on the CPU: of the engine, of a call, of hidden states."""
    model, tokenizer = rf.load(demo.bundled(), device="cpu")
    ids = np.array(tokenizer.encode("import os"))
    with threadpool_limits(4, user_api="blas"):
        monkeypatch.setattr("rocforge.nn.transformer.blas_threads", BlasThreads(Free(1)))
        for run in (model, model.hidden, lambda ids: rf.generate(model, tokenizer, list(ids), max_tokens=1)):
            seen = []
            with model.edit({"blk.0.ffn_down": lambda y, seen=seen: seen.extend(threads()) or y}):
                run(ids)
            assert set(seen) == {1}
