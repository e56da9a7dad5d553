"""Warmup: compiles a model's kernels, or loads them from the cache, while its weights load."""

from __future__ import annotations

import atexit
import contextlib
import copy
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rocforge.device.arrays import on_device
from rocforge.device.compile_process import compiler_of_a_thread
from rocforge.device.kernels import Kernel, launches_recorded
from rocforge.device.libraries import cupy_module
from rocforge.engine.inputs import begin_step
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.module import Module
from rocforge.nn.state import blocks_for
from rocforge.nn.transformer import Transformer
from rocforge.ops.device.plan import MAX_TILE_TOKENS
from rocforge.ops.device.sampling import Sampler
from rocforge.ops.sampling import SamplingParams

MOST_THREADS = 16
PROMPT_TOKENS = (16, MAX_TILE_TOKENS + 1)
"""A short prompt and a long one. Prompts of 3 to 64 tokens use one of four tile widths, of which warmup compiles one:
the others take a second or two each, once."""


def compile_for(model: Transformer) -> BackgroundCompilation:
    """Begin to compile what a request needs: its decode steps, prompts, and sampling.

    Args:
        model: on a GPU; its weights need not have their values yet.
    """
    with on_device(model.device):
        compilation = BackgroundCompilation()
        try:
            record_kernels(model, compilation.add)
        except BaseException:
            compilation.cancel()
            raise
    return compilation


def record_kernels(model: Transformer, record: Callable[[Kernel], Any]) -> None:
    """Call `record` with each kernel that a decode step, prompts and sampling would launch.

    Runs the model itself on zeros, with launches recorded instead, and without layers that add no new kernel. Library
    calls do run, which initializes the BLAS library.
    """
    model = copy.copy(model)
    model.blk = distinct(model.blk)
    with on_device(model.device):
        with cupy_module().cuda.Stream(non_blocking=True) as stream, launches_recorded(record):
            record(begin_step)
            sampler = Sampler(model.config.vocabulary, 1)
            sampler.begin(0, SamplingParams(temperature=0, seed=0), None, _ignored)
            host_tokens = cupy_module().zeros(1, np.int32)
            sampler(model(np.zeros(1, np.int32)), [0], [0], {}, host_tokens, _ignored)
            for tokens in PROMPT_TOKENS:
                blocks = blocks_for(tokens)
                model(np.zeros(tokens, np.int32), Batch.of(model.new_cache(blocks), [Chunk(0, tokens, range(blocks))]))
        stream.synchronize()
        del sampler, host_tokens
        cupy_module().get_default_memory_pool().free_all_blocks(stream)


def _ignored(array: Any, out: Any) -> None:
    """In place of an upload: no kernel runs that would read it."""


def distinct(layers: Sequence[Module]) -> list[Module]:
    """The fewest layers that use all of the model's kernels: every pair of kinds that follow each other, and the last.
    Recording takes host time, which loading needs itself."""
    kinds = [repr(layer) for layer in layers]
    pairs: dict[tuple[str, str], int] = {}
    for i, pair in enumerate(itertools.pairwise(kinds)):
        pairs.setdefault(pair, i)
    return [layer for i in pairs.values() for layer in layers[i : i + 2]] + [layers[-1]]


class BackgroundCompilation:
    """Compiles kernels for the current device in background threads; a launch waits for its own kernel only.

    hiprtc compiles one program at a time in a process, so on AMD each thread has a compiler process. NVRTC compiles in
    several threads. Errors are raised where the kernel is launched.

    Attributes:
        missing: modules that were not in the cache, and are not compiled yet.
    """

    def __init__(self) -> None:
        self._device = cupy_module().cuda.runtime.getDevice()
        self._known: set[Any] = set()
        self._waiting: deque[Any] = deque()
        self._threads: list[threading.Thread] = []
        self._missing: set[Any] = set()
        atexit.register(self.cancel)

    @property
    def missing(self) -> int:
        return len(self._missing)

    def add(self, kernel: Kernel) -> None:
        """Queue a kernel; one that was queued before is skipped."""
        module = kernel.module(self._device)
        if module in self._known:
            return
        self._known.add(module)
        if not module.on_disk:
            self._missing.add(module)
        self._waiting.append(module)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) < processors():
            # daemon: the interpreter joins other threads before atexit calls `cancel`
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()

    def _work(self) -> None:
        with cupy_module().cuda.Device(self._device), compiler_of_a_thread() as compile:
            while self._waiting:
                with contextlib.suppress(IndexError):  # another thread was faster
                    module = self._waiting.popleft()
                    module.prepare(compile)
                    self._missing.discard(module)

    def wait(self, progress: Callable[[int], Any] = lambda missing: None) -> None:
        """Wait until all are compiled.

        Args:
            progress: called now and then with `missing`.
        """
        for thread in self._threads:
            while thread.is_alive():
                progress(self.missing)
                thread.join(0.2)
        self._work()  # kernels queued as the threads were ending
        progress(self.missing)
        atexit.unregister(self.cancel)

    def cancel(self) -> None:
        """Drop the queue, and wait for compilations in progress."""
        self._waiting.clear()
        self.wait()


def processors() -> int:
    """Compiler threads: one for each processor of this process, up to MOST_THREADS."""
    return min(len(os.sched_getaffinity(0)), MOST_THREADS)
