"""Out-of-memory errors of a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rocforge.device.arrays import available_memory
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


def amount(nbytes: int) -> str:
    """Bytes for messages: in MiB or GiB, and exact."""
    rounded = f"{nbytes / 2**30:.2f} GiB" if nbytes >= 1 << 30 else f"{nbytes / 2**20:.2f} MiB"
    return f"{rounded} ({nbytes:,} bytes)"
