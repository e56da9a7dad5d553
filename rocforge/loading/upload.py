"""Upload: weights from host memory, mostly a mapped file, to a device; reading, copying and repacking
overlap.

Threads fill pinned buffers from the mapped file, which reads it from disk. Each filled buffer is copied to the device
on one stream, where a kernel then repacks rows of a block format into planes. Nothing waits for a whole weight, and
staging is bounded whatever the model's size. On an APU, whose device memory is the host's, nothing is staged: kernels
read the pinned buffers, and floats are copied from the file's pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import Any

import numpy as np

from rocforge.device.arrays import on_device
from rocforge.device.cards import card_of
from rocforge.device.libraries import cupy_module
from rocforge.device.streams import on_this_device
from rocforge.formats.planar import PLANAR, planar_row_nbytes
from rocforge.ops.device.dequantize import pack
from rocforge.ops.device.strided import blocks
from rocforge.quant import QuantizedArray

READERS = 6
"""Reader threads: one copies from the page cache at a fraction of PCIe's rate, and disks need a queue."""
BUFFERS = READERS + 2
"""Pinned buffers: two are being copied to the device while every reader fills one."""
BUFFER_NBYTES = 8 << 20
"""Bytes of a buffer: enough for a copy at full rate; larger ones take the host longer to pin."""
PARTS = 4
"""Buffers that a thread fills in one task: Python's lock serializes the overhead of each task."""
ALIGNMENT = 256
BEHIND = {"_exps.weight": "_shexp.weight", ".ffn_gate_inp.weight": ".ffn_gate_inp_shexp.weight"}
"""Endings of the names of experts' matrices and routers, and those of what is placed right behind each."""


def device_nbytes(weight: Any) -> int:
    """Bytes that a weight takes on a device, in the layout that it has there and with the gap to the next."""
    return blocks(_layout_nbytes(weight), ALIGNMENT) * ALIGNMENT


def _layout_nbytes(weight: Any) -> int:
    if not _becomes_planar(weight):
        return weight.nbytes
    return math.prod(weight.shape[:-1]) * planar_row_nbytes(weight.shape[-1], weight.qtype)


def _becomes_planar(weight: Any) -> bool:
    return isinstance(weight, QuantizedArray) and weight.qtype.name in PLANAR


def in_upload_order(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights by name, in the order in which they lie in a file; but what all tokens' expert has of a layer comes right
    behind what the others have, so that kernels can take both as one array."""
    ordered: dict[str, Any] = {}
    for name, weight in weights.items():
        ordered.setdefault(name, weight)
        for ending, shared in BEHIND.items():
            if name.endswith(ending) and (behind := name.removesuffix(ending) + shared) in weights:
                ordered.pop(behind, None)
                ordered[behind] = weights[behind]
    return ordered


class Uploader:
    """Copies weights to a device, into one allocation, in the background.

    Leaving the context waits for all copies; after an error, copies that have not begun are dropped. Either way the
    threads have ended and the staging memory is free.

    Args:
        weights: all that will be placed.
        device: "gpu:N".
        progress: called, in the thread that leaves the context, with the bytes of each part that has been read.

    Raises:
        cupy.cuda.memory.OutOfMemoryError: the device has too little memory; nothing was allocated.
    """

    def __init__(self, weights: Iterable[Any], device: str, progress: Callable[[int], Any] = lambda nbytes: None):
        cupy, weights = cupy_module(), list(weights)
        rows = [weight.data.shape[-1] for weight in weights if _becomes_planar(weight)]
        largest = max((weight.nbytes for weight in weights), default=0)
        self._part_nbytes = max(min(BUFFER_NBYTES, largest), *rows, 1)
        with on_device(device):
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._shares = card_of(cupy.cuda.runtime.getDevice()).shares_host_memory
            with self._stream:
                self._staging = cupy.empty((BUFFERS, self._part_nbytes if rows and not self._shares else 0), np.uint8)
                # zeros, since a planar row may end in padding
                self._memory = cupy.zeros(sum(map(device_nbytes, weights)), np.uint8)
        self._used = 0
        self._device, self._progress = device, progress
        self._buffers: SimpleQueue[_Buffer] = SimpleQueue()
        for staging in self._staging:
            self._buffers.put(_Buffer(self._part_nbytes, None if self._shares else staging))
        self._executor = ThreadPoolExecutor(READERS, "rocforge-upload")
        self._parts: list[Future[int]] = []

    def place(self, weight: Any) -> Any:
        """Allocate a weight on the device, and copy it in the background.

        Args:
            weight: a NumPy array, or a QuantizedArray on the CPU; not to be changed before the context is left.

        Returns:
            As `rf.to_device`; complete when the context has been left.
        """
        room = self._memory[self._used : self._used + _layout_nbytes(weight)]
        self._used += device_nbytes(weight)
        packed = isinstance(weight, QuantizedArray)
        data = weight.data if packed else weight
        if not _becomes_planar(weight):
            data = np.ascontiguousarray(data)
            self._send(data.reshape(-1).view(np.uint8), room)
            return weight.with_data(room.reshape(data.shape)) if packed else room.view(data.dtype).reshape(data.shape)
        columns, rows = weight.shape[-1], data.reshape(-1, data.shape[-1])
        planar = room.reshape(len(rows), -1)
        self._send(rows, planar, lambda blocks, target: pack(blocks, weight.qtype, columns, out=target))
        return weight.with_data(planar.reshape(*data.shape[:-1], -1), planar=True)

    def _send(self, source: np.ndarray, target: Any, convert: Callable[[Any, Any], Any] | None = None) -> None:
        """Queue the parts of an array: whole rows, if it has any, which `convert` writes to those of the target."""
        step = self._part_nbytes // max(source[:1].nbytes, 1)
        for start in range(0, len(source), PARTS * step):
            some = slice(start, start + PARTS * step)
            self._parts.append(self._executor.submit(self._send_some, source[some], target[some], step, convert))

    def _send_some(self, source: np.ndarray, target: Any, step: int, convert: Callable[[Any, Any], Any] | None) -> int:
        with on_device(self._device), self._stream:
            for start in range(0, len(source), step):
                self._send_part(source[start : start + step], target[start : start + step], convert)
        return source.nbytes

    def _send_part(self, source: np.ndarray, target: Any, convert: Callable[[Any, Any], Any] | None) -> None:
        if convert is None and self._shares:
            target.data.copy_from_host_async(source.ctypes.data, source.nbytes, self._stream)
            return
        buffer = self._buffers.get()
        try:
            if convert is None:
                buffer.copy(source, target, self._stream)
            else:
                convert(buffer.staged(source, self._stream), target)
                buffer.record(self._stream)
        finally:
            self._buffers.put(buffer)

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, kind: type | None, *exception: Any) -> None:
        try:
            if kind is None:
                for part in as_completed(self._parts):
                    self._progress(part.result())
        finally:
            self._executor.shutdown(cancel_futures=True)
            with on_device(self._device):
                self._stream.synchronize()
                self._parts, self._staging, self._memory = [], None, None
                while not self._buffers.empty():
                    self._buffers.get()
                cupy_module().get_default_memory_pool().free_all_blocks(self._stream)


class _Buffer:
    """Pinned memory, with its staging memory on the device; for one thread at a time.

    Filling it again waits for the copy that used it last. On the device the stream's order suffices.

    Args:
        nbytes: of the pinned memory.
        staging: on the device; None where kernels read the pinned memory.
    """

    def __init__(self, nbytes: int, staging: Any):
        self._nbytes, self._staging = nbytes, staging
        self._pinned: np.ndarray | None = None
        self._used: Any = None

    def copy(self, source: np.ndarray, target: Any, stream: Any) -> None:
        """Read an array, and queue its copy to a device array of as many bytes."""
        filled = self._filled(source)
        target.data.copy_from_host_async(filled.ctypes.data, filled.nbytes, stream)
        self.record(stream)

    def staged(self, source: np.ndarray, stream: Any) -> Any:
        """Read an array; returns one that kernels on the stream can read, until the buffer is used again."""
        if self._staging is None:
            return on_this_device(self._filled(source)).reshape(source.shape)
        staged = self._staging[: source.nbytes].reshape(source.shape)
        self.copy(source, staged, stream)
        return staged

    def record(self, stream: Any) -> None:
        """Mark the work queued so far as the last that uses the pinned memory."""
        self._used.record(stream)

    def _filled(self, source: np.ndarray) -> np.ndarray:
        cupy = cupy_module()
        if self._pinned is None:  # here, so that buffers are pinned by several threads, and only those that are used
            memory = cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(self._nbytes), 0)
            self._pinned = np.frombuffer(memory, np.uint8, self._nbytes)
            self._used = cupy.cuda.Event(block=True, disable_timing=True)
        else:
            self._used.synchronize()
        filled = self._pinned[: source.nbytes]
        np.copyto(filled.reshape(source.shape), source)
        return filled
