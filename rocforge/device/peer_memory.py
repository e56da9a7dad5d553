"""PeerMemory: all-reduce over memory that cards see of each other, for groups of GPUs; see peers.hip."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.device.streams import shared_array
from rocforge.errors import OutOfMemoryError

_sum_over_cards = Kernel("peers.hip", "sum_over_cards")

BLOCKS, WIDTH = 64, 16384
"""As in peers.hip: rows, and numbers of one, at most."""
SEGMENT = 1024
"""The fewest numbers of a block, of an array whose rows do not matter."""
MOST_NUMBERS = 1 << 20
"""That a card may write to the others: beyond that RCCL and NCCL, which divide the work, are faster."""
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
        self._own = _allocated(2 * cards * BLOCKS * 4 * (1 + WIDTH))
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

    def takes(self, x: Any, rows: bool = False) -> bool:
        """Whether an array is one that `all_reduce` is for; with `rows` (rows, n), of which it makes the norm too."""
        count, n = (len(x), x.shape[1]) if rows else (1, x.size)
        fits = 0 < count <= BLOCKS and n <= WIDTH if rows else 0 < n <= BLOCKS * WIDTH
        aligned = n % 4 == 0 and x.data.ptr % 16 == 0 and x.flags.c_contiguous
        return bool(x.dtype == np.float32 and fits and aligned and x.size * (self._cards - 1) <= MOST_NUMBERS)

    def all_reduce(self, x: Any, norm: Mapping[str, Any] | None = None) -> None:
        """Queue that `x` becomes the sum over the cards.

        Args:
            x: that it `takes`.
            norm: of x (rows, n), the arguments of the kernel that say where the norm of each row goes.
        """
        n = x.shape[1] if norm else max(SEGMENT, 4 * -(-x.size // (4 * BLOCKS)))
        args = {"x": x, "inboxes": self._inboxes, "counters": self._counters, "stop": self._stop_there}
        args |= {"rank": self._rank, "cards": self._cards, "count": x.size, "n": n}
        args |= norm or {"weight": None, "floats": None, "fp16": None, "quantized": None, "width": 0, "eps": 0.0}
        _sum_over_cards((-(-x.size // n),), (tuning.current().norm_threads,), args)

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
