"""PeerMemory: all-reduce of few numbers over memory that cards see of each other, for groups of GPUs; see peers.hip."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.device.streams import shared_array
from rocforge.errors import OutOfMemoryError

_tell_peers = Kernel("peers.hip", "tell_peers", "float32* uint64* uint32* uint32 uint32 uint32")
_sum_of_peers = Kernel("peers.hip", "sum_of_peers", "float32* uint64* uint32* uint32* uint32 uint32 uint32")

THREADS, BLOCKS = 256, 64
SEGMENT = 4 * THREADS
"""As in peers.hip: floats of a block."""
UNCACHED = 3
"""hipDeviceMallocUncached: what other cards write is seen at once."""


class PeerMemory:
    """A card's inbox, and those of the others.

    Args:
        rank, cards: of the group.

    Attributes:
        handle: bytes with which the others' processes open the inbox.
    """

    def __init__(self, rank: int, cards: int):
        cupy, self._rank, self._cards = cupy_module(), rank, cards
        self._own = _allocated(2 * cards * BLOCKS * 4 * (1 + SEGMENT))
        self.handle: bytes = cupy.cuda.runtime.ipcGetMemHandle(self._own)
        self._counters = cupy.zeros(BLOCKS, np.uint32)
        self._inboxes: Any = None
        self._stop, self._stop_there = shared_array((1,), np.uint32)

    def open(self, handles: Sequence[bytes]) -> None:
        """Open the others' inboxes, whose handles these are, in the order of ranks."""
        runtime = cupy_module().cuda.runtime
        theirs = {rank: runtime.ipcOpenMemHandle(handle) for rank, handle in enumerate(handles) if rank != self._rank}
        self._inboxes = cupy_module().asarray(
            np.array([theirs.get(i, self._own) for i in range(self._cards)], np.uint64)
        )
        weakref.finalize(self, _close, list(theirs.values()), self._own).atexit = False

    def takes(self, x: Any) -> bool:
        """Whether an array is one that `all_reduce` is for."""
        return bool(
            x.dtype == np.float32 and 0 < x.size <= BLOCKS * SEGMENT and x.size % 4 == 0 and x.data.ptr % 16 == 0
        )

    def all_reduce(self, x: Any) -> None:
        """Queue that `x` becomes the sum over the cards."""
        grid, sizes = ((-(-x.size // SEGMENT),), (THREADS,)), (self._rank, self._cards, x.size)
        _tell_peers(*grid, (x, self._inboxes, self._counters, *sizes))
        _sum_of_peers(*grid, (x, self._inboxes, self._counters, self._stop_there, *sizes))

    def abort(self) -> None:
        """End what waits for a card that has ended."""
        self._stop[0] = 1


def _allocated(nbytes: int) -> int:
    """The address of zeros, in an allocation of its own, as handles are for."""
    runtime = cupy_module().cuda.runtime
    if runtime.is_hip:
        pointer = ctypes.c_void_p()
        allocate = ctypes.CDLL("libamdhip64.so.7").hipExtMallocWithFlags
        if allocate(ctypes.byref(pointer), ctypes.c_size_t(nbytes), ctypes.c_uint(UNCACHED)):
            raise OutOfMemoryError(f"{nbytes} bytes that other cards see cannot be had")
        address = int(pointer.value or 0)
    else:
        address = int(runtime.malloc(nbytes))
    runtime.memsetAsync(address, 0, nbytes, cupy_module().cuda.get_current_stream().ptr)
    cupy_module().cuda.get_current_stream().synchronize()
    return address


def _close(opened: Sequence[int], own: int) -> None:
    runtime = cupy_module().cuda.runtime
    for pointer in opened:
        runtime.ipcCloseMemHandle(pointer)
    runtime.free(own)
