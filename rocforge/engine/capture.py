"""GraphRecorder: captures a step as a graph, and owns the graphs' memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rocforge.device.arrays import on_device
from rocforge.device.kernels import launches_overlap
from rocforge.device.libraries import cupy_module

OUT_OF_MEMORY = 2
"""hipErrorOutOfMemory and cudaErrorMemoryAllocation."""


class GraphRecorder:
    """Captures steps as graphs, on a stream of its own, in a memory pool for steps only.

    What a step frees as it is captured is used by the next one's: graphs share their memory, their results included, so
    they must run one after another.

    On ROCm a failed capture makes its stream unusable. So it is not the engine's, and is replaced after a failure.
    """

    def __init__(self, device: str):
        self._device, self._pool = device, cupy_module().cuda.MemoryPool(_device_memory)
        self._stream: Any = None

    @property
    def memory_reserved(self) -> int:
        """Bytes that the graphs' pool has taken of the device."""
        return int(self._pool.total_bytes())

    def memory(self) -> AbstractContextManager[None]:
        """In this context arrays are allocated in the graphs' pool."""
        context: AbstractContextManager[None] = cupy_module().cuda.using_allocator(self._pool.malloc)
        return context

    def free_unused(self) -> None:
        """Free blocks that no graph uses: a pool does so for the current device only, and not when it is dropped."""
        with on_device(self._device):
            self._pool.free_all_blocks()

    def capture(self, step: Callable[[], Any]) -> tuple[Any, Any] | None:
        """A graph of a step, and the array that it returns, which the next launch of any graph may overwrite.

        None, with a warning, if the capture fails: where CuPy refuses a library, with NotImplementedError.
        """
        cuda, returned, failure = cupy_module().cuda, None, None
        errors = (
            cuda.runtime.CUDARuntimeError,
            cuda.driver.CUDADriverError,
            cuda.cublas.CUBLASError,
            NotImplementedError,
        )
        self._pool.free_all_blocks(cuda.get_current_stream())  # what the step took when it ran kernel by kernel
        self._stream = self._stream or cuda.Stream(non_blocking=True)
        with self._stream as stream:
            stream.begin_capture()
            try:
                with launches_overlap():
                    returned = step()
            except errors as error:
                failure = error
            finally:
                try:
                    graph = stream.end_capture()
                except errors as error:  # whatever failed has ended the capture already
                    failure = failure or error
                    self._stream = None
        if failure is not None:
            warnings.warn(f"steps run without a graph, and slower: capture failed: {failure}", stacklevel=2)
            return None
        return graph, _unowned(returned)


def _unowned(array: Any) -> Any:
    """An array whose memory the pool may use again for the next graph."""
    cuda = cupy_module().cuda
    memory = cuda.UnownedMemory(array.data.ptr, array.nbytes, None, array.device.id)
    return cupy_module().ndarray(array.shape, array.dtype, cuda.MemoryPointer(memory, 0))


def _device_memory(size: int) -> Any:
    """An allocation of the graphs' pool; if memory is short, frees the unused blocks of CuPy's own pool first.

    A pool that gets CuPy's error of the runtime would free its own unused memory instead: what graphs work in.
    """
    cuda, pool = cupy_module().cuda, cupy_module().get_default_memory_pool()
    for _ in range(2):
        try:
            return cuda.MemoryPointer(cuda.Memory(size), 0)
        except cuda.runtime.CUDARuntimeError as error:
            if error.status != OUT_OF_MEMORY:
                raise
            pool.free_all_blocks()
    raise cuda.memory.OutOfMemoryError(size, pool.total_bytes())
