"""The BLAS library's handle of this thread, with a workspace of ours on ROCm.

rocBLAS allocates a workspace when a GEMM first needs one, which is illegal during stream capture; with a user's
workspace a handle never allocates. docs/streams.md says what its documentation guarantees.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any

from rocforge.device.cards import Card, card_of
from rocforge.device.libraries import cupy_module

LIBRARY = "libhipblas.so.3"


def workspace_nbytes(card: Card) -> int:
    """Bytes of the workspace: as many as rocBLAS would take by itself."""
    return (128 if card.family in ("gfx942", "gfx950") else 32) << 20


class _ThisThread(threading.local):
    """CuPy has a handle for each thread and device, and so there is a workspace for each."""

    def __init__(self) -> None:
        self.workspaces: dict[int, Any] = {}


_this_thread = _ThisThread()


def blas_handle() -> int:
    """CuPy's handle for this thread and the current device, as hipBLAS or cuBLAS knows it.

    Raises:
        RuntimeError: hipBLAS refuses the workspace.
    """
    cuda = cupy_module().cuda
    handle = cuda.device.get_cublas_handle()
    device = cuda.runtime.getDevice()
    if cuda.runtime.is_hip and device not in _this_thread.workspaces:
        nbytes = workspace_nbytes(card_of(device))
        memory = cuda.Memory(nbytes)
        status = _library().hipblasSetWorkspace(handle, memory.ptr, nbytes)
        if status:
            raise RuntimeError(f"hipblasSetWorkspace of {nbytes} bytes: status {status}")
        _this_thread.workspaces[device] = memory
    return handle


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBRARY)
    library.hipblasSetWorkspace.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return library
