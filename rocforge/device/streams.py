"""Streams: queues of work, each on one device, and copies that keep their order.

Work on a stream runs in the order in which it was queued, and the host does not wait for it. Only `Stream.wait_for`
orders two streams; see docs/streams.md.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module, on_device, resolve_device
from rocforge.device.libraries import cupy_module


class Stream:
    """A queue of work on one device, and a context: what a thread does inside it is queued there.

        with rf.Stream("gpu:1") as stream:
            y = model(tokens)            # gpu:1 is this thread's current device, and the stream its current stream
            pending = stream.download(y)
        logits = pending.get()           # waits for the copy, and so for all that was queued before it

    Ops, libraries and CuPy's own functions all follow the current stream, `b[...] = a` between arrays on the device
    too. It is a non-blocking stream: nothing orders it with the null stream, which is CuPy's where no other is current.
    Contexts nest, several threads may be inside at a time, and leaving one does not wait. On "cpu" there is nothing to
    queue: all is done at once, and the same code runs.

    Args:
        device: as in `rf.load`: None, "cpu", "gpu" or "gpu:N".

    Attributes:
        device: "cpu" or "gpu:N".

    Raises:
        ValueError, DeviceError: as in `rf.load`.

    >>> with rf.Stream("cpu") as stream:
    ...     y = rf.silu(stream.upload([0.0, 1.0]))
    >>> stream.download(y).get()
    array([0.       , 0.7310586], dtype=float32)
    """

    def __init__(self, device: str | None = None):
        self.device = resolve_device(device)
        if self.device != "cpu":
            with on_device(self.device) as current:
                self._context, self._stream = current, cupy_module().cuda.Stream(non_blocking=True)

    def __repr__(self) -> str:
        return f"Stream({self.device!r})"

    def __enter__(self) -> Stream:
        if self.device != "cpu":
            self._context.__enter__()
            self._stream.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.device != "cpu":
            self._stream.__exit__(*exception)
            self._context.__exit__(*exception)

    def synchronize(self) -> None:
        """Wait on the host until all that is queued has been done.

        >>> rf.Stream("cpu").synchronize()
        """
        if self.device != "cpu":
            self._stream.synchronize()
            _IN_FLIGHT.drop()

    def wait_for(self, other: Stream) -> None:
        """Work queued here from now on runs after what is queued on another stream so far. The host does not wait.

        >>> copies, work = rf.Stream("cpu"), rf.Stream("cpu")
        >>> x = copies.upload(np.ones(3))
        >>> work.wait_for(copies)
        """
        if self.device != "cpu" and other.device != "cpu":
            with other:
                event = _recorded()
            with self:
                self._stream.wait_event(event)

    def upload(self, array: Any, out: Any = None) -> Any:
        """Queue a copy from the host to the device.

        Args:
            array: anything `np.asarray` takes; it may be changed as soon as this returns.
            out: a C-contiguous array of as many bytes on the device, for work on this stream; None: a new one.

        Returns:
            `out`, or an array of the given one's shape and dtype on the device, for work on this stream.

        >>> rf.Stream("cpu").upload([1, 2, 3])
        array([1, 2, 3])
        """
        array = np.asarray(array)
        if self.device == "cpu":
            if out is None:
                return array.copy()
            out[...] = array
            return out
        with self:
            staged = _pinned(array.shape, array.dtype)
            staged[...] = array
            there = cupy_module().empty(array.shape, array.dtype) if out is None else out
            there.data.copy_from_host_async(staged.ctypes.data, staged.nbytes)
            _IN_FLIGHT.keep(staged)
        return there

    def download(self, array: Any) -> Download:
        """Queue a copy from the device to the host.

        Args:
            array: what this stream computes, or what was complete before; it is read when the queue comes to it.

        >>> pending = rf.Stream("cpu").download(np.ones(2))
        >>> pending.get()
        array([1., 1.])
        """
        if get_array_module(array) is np:
            return Download(np.array(array), None)
        with self:
            array = array if array.flags.c_contiguous else array.copy()
            host = _pinned(array.shape, array.dtype)
            array.data.copy_to_host_async(host.ctypes.data, host.nbytes)
            return Download(host, _IN_FLIGHT.keep(host, array))

    def written(self, host: np.ndarray) -> Download:
        """What the kernels queued so far write to (a part of) an array from `shared_array`.

        >>> host, shared = shared_array((4,), np.int32)  # doctest: +SKIP
        >>> stream.written(host).get()  # doctest: +SKIP
        """
        with self:
            return Download(host, _IN_FLIGHT.keep(host))


def stream_after_current(device: str) -> Stream:
    """A new stream, once what this thread's current stream has queued on the device is done."""
    if device != "cpu":
        with on_device(device):
            cupy_module().cuda.get_current_stream().synchronize()
    return Stream(device)


class Download:
    """A pending copy to the host, or pending writes of kernels there."""

    def __init__(self, host: np.ndarray, landed: Any):
        self._host, self._landed = host, landed

    @property
    def done(self) -> bool:
        """Whether `get` would return at once."""
        return self._landed is None or self._landed.done

    def get(self) -> np.ndarray:
        """The values; waits for this copy, not for what was queued after it."""
        if self._landed is not None:
            self._landed.synchronize()
            self._landed = None
        return self._host


def shared_array(shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, Any]:
    """Zeros in memory of the host that kernels on the current device can write to: a NumPy and a CuPy array of it.

    A few bytes then reach the host without a copy, which would stall the stream. The NumPy array owns the memory.
    """
    host = _pinned(shape, np.dtype(dtype))
    host[...] = 0
    return host, on_this_device(host)


def on_this_device(pinned: np.ndarray) -> Any:
    """Pinned memory of the host as a CuPy array of the current device, whose kernels reach it there. It owns none."""
    cupy = cupy_module()
    memory = cupy.cuda.UnownedMemory(pinned.ctypes.data, pinned.nbytes, pinned, cupy.cuda.runtime.getDevice())
    return cupy.ndarray(pinned.shape, pinned.dtype, cupy.cuda.MemoryPointer(memory, 0))


class _InFlight:
    """Keeps the memory that queued copies and kernels, on any stream, read or write until they are done with it.

    The caller may drop the arrays and the stream meanwhile, and CuPy would reuse their pinned memory.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Any, tuple[Any, ...]]] = []
        self._lock = threading.Lock()

    def keep(self, *objects: Any) -> Any:
        """Keep these until what the current stream has queued is done; returns the event of that."""
        event = _recorded()
        self.drop()
        with self._lock:
            self._kept.append((event, objects))
        return event

    def drop(self) -> None:
        """Drop what is done."""
        with self._lock:
            done, self._kept = self._kept, [item for item in self._kept if not item[0].done]
        del done  # frees memory outside the lock


_IN_FLIGHT = _InFlight()


def _recorded() -> Any:
    """An event on the current stream."""
    event = cupy_module().cuda.Event(disable_timing=True)
    event.record()
    return event


def _pinned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Pinned host memory."""
    size = math.prod(shape)
    memory = cupy_module().cuda.alloc_pinned_memory(max(size * dtype.itemsize, 1))
    return np.frombuffer(memory, dtype, size).reshape(shape)
