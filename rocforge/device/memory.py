"""Memory of a device: what is reserved, and errors where it is out."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from typing import Any

from rocforge.device.arrays import available_memory, on_device
from rocforge.device.libraries import cupy_module
from rocforge.errors import OutOfMemoryError


@contextlib.contextmanager
def out_of_memory_explained(device: str, purpose: str) -> Iterator[None]:
    """Raise CuPy's out-of-memory error as rocforge's, after freeing unused memory.

    During graph capture CuPy's error is passed on, since nothing can be freed then.

    Args:
        device: "cpu" or "gpu:N".
        purpose: what the memory was for; the message begins with it.
    """
    if device == "cpu":
        yield
        return
    try:
        yield
        return
    except cupy_module().cuda.memory.OutOfMemoryError as error:
        if cupy_module().cuda.get_current_stream().is_capturing():
            raise
        failure = error.with_traceback(None)  # its frames keep arrays alive
    free = amount(available_memory(device))
    raise OutOfMemoryError(f"{purpose}: {failure} {device} has {free} free now") from failure


@contextlib.contextmanager
def memory_held() -> Iterator[bool]:
    """In this context and thread, what CuPy allocates is not used again: so not for what a launch writes that runs
    beside the one before it, whose arguments may be gone. The context gives True."""
    cuda, held = cupy_module().cuda, []
    allocate = cuda.get_allocator()

    def allocated(nbytes: int) -> Any:
        held.append(allocate(nbytes))
        return held[-1]

    with cuda.using_allocator(allocated):
        yield True


def reserved_memory(device: str) -> int:
    """Bytes that CuPy's default pool has allocated on a GPU; for "cpu" the peak RSS of the process."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with on_device(device):
        return int(cupy_module().get_default_memory_pool().total_bytes())


def amount(nbytes: int) -> str:
    """Bytes for messages: in MiB or GiB, and exact."""
    rounded = f"{nbytes / 2**30:.2f} GiB" if nbytes >= 1 << 30 else f"{nbytes / 2**20:.2f} MiB"
    return f"{rounded} ({nbytes:,} bytes)"
