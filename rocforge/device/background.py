"""BackgroundCompilation: compiles kernels, or loads them from the cache, in threads of its own."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from rocforge.device.compile_process import compiler_of_a_thread
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module

MOST_THREADS = 16


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
