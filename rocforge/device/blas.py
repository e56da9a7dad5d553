"""GEMMs of the BLAS library on the current stream, with a workspace of ours, so that they can be captured.

rocBLAS allocates a workspace when a GEMM first needs one, which is illegal during stream capture; with a user's
workspace a handle never allocates. docs/streams.md says what its documentation guarantees. CuPy refuses to capture
cuBLAS, whatever the workspace, so that there the library is called directly.
"""

from __future__ import annotations

import ctypes
import functools
import re
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from rocforge.device.cards import Card, card_of
from rocforge.device.libraries import cupy_module
from rocforge.errors import DeviceError

HIPBLAS = "libhipblas.so.3"
_ONE, _ZERO = np.array(1, np.float32), np.array(0, np.float32)
_ONE_AT, _ZERO_AT = _ONE.ctypes.data, _ZERO.ctypes.data


def gemm(x: Any, weight: Any, y: Any, start: int = 0, add: bool = False) -> None:
    """y[:, start : start + len(weight)] = x @ weight.T, with sums in float32; with `add` += in place of =.

    Args:
        x: CuPy array (tokens, columns), contiguous.
        weight: of the same type, (rows, columns), contiguous.
        y: float32, or of that type, (tokens, at least start + rows), contiguous.

    Raises:
        DeviceError: cuBLAS refuses.
    """
    cupy = cupy_module()
    blas, runtime = cupy.cuda.cublas, cupy.cuda.runtime
    types = {np.dtype(np.float16): runtime.CUDA_R_16F, np.dtype(np.float32): runtime.CUDA_R_32F}
    (n, columns), rows, kind = x.shape, len(weight), types[x.dtype]
    # BLAS counts columns first: y's transpose is weight @ x's transpose
    arguments = (
        *(blas.CUBLAS_OP_T, blas.CUBLAS_OP_N, rows, n, columns, _ONE_AT),
        *(weight.data.ptr, kind, columns, x.data.ptr, kind, columns, _ONE_AT if add else _ZERO_AT),
        *(y.data.ptr + start * y.itemsize, types[y.dtype], y.shape[1]),
    )
    if runtime.is_hip:  # CuPy takes a data type there
        blas.gemmEx(_hipblas_handle(), *arguments, runtime.CUDA_R_32F, blas.CUBLAS_GEMM_DEFAULT)
    else:
        _checked("GemmEx", _cublas_handle(), *arguments, blas.CUBLAS_COMPUTE_32F, blas.CUBLAS_GEMM_DEFAULT)


def workspace_nbytes(card: Card) -> int:
    """Bytes of a workspace: as many as rocBLAS would take by itself, or as NVIDIA recommends for Hopper."""
    return (128 if card.family in ("gfx942", "gfx950") else 32) << 20


_workspaces: dict[tuple[int, int], Any] = {}
_lock = threading.Lock()


def _workspace() -> Any:
    """The memory of the current stream's workspace: work on two streams may not share one. It goes with the stream."""
    cuda = cupy_module().cuda
    device, stream = cuda.runtime.getDevice(), cuda.get_current_stream()
    key = device, stream.ptr
    with _lock:
        if key not in _workspaces:
            _workspaces[key] = cuda.Memory(workspace_nbytes(card_of(device)))
            if stream.ptr:
                weakref.finalize(stream, _workspaces.pop, key, None).atexit = False
        return _workspaces[key]


def workspaces_to_come() -> int:
    """Bytes of the workspaces that the current stream, if it has none yet, and one that captures its work will take."""
    cuda = cupy_module().cuda
    device = cuda.runtime.getDevice()
    has_one = (device, cuda.get_current_stream().ptr) in _workspaces
    return (1 if has_one else 2) * workspace_nbytes(card_of(device))


class _Handle:
    """A handle of hipBLAS, and its workspace, which is kept for as long as the handle has it.

    It is not CuPy's: that one serves the user's own products, on whatever stream, and would share our workspace.
    """

    def __init__(self) -> None:
        blas = cupy_module().cuda.cublas
        self.handle, self._workspace = int(blas.create()), None
        weakref.finalize(self, blas.destroy, self.handle).atexit = False

    def with_workspace(self, workspace: Any) -> int:
        """The handle, once it works there."""
        if self._workspace is not workspace:
            status = _hipblas().hipblasSetWorkspace(self.handle, workspace.ptr, workspace.size)
            if status:
                raise DeviceError(f"hipblasSetWorkspace of {workspace.size} bytes: status {status}")
            self._workspace = workspace
        return self.handle


class _ThisThread(threading.local):
    """The thread's handle for each device."""

    def __init__(self) -> None:
        self.handles: dict[int, _Handle] = {}


_this_thread = _ThisThread()


def _hipblas_handle() -> int:
    device, handles = cupy_module().cuda.runtime.getDevice(), _this_thread.handles
    if device not in handles:
        handles[device] = _Handle()
    return handles[device].with_workspace(_workspace())


def _cublas_handle() -> int:
    cuda = cupy_module().cuda
    handle, workspace = cuda.device.get_cublas_handle(), _workspace()
    _checked("SetStream_v2", handle, cuda.get_current_stream().ptr)
    _checked("SetWorkspace_v2", handle, workspace.ptr, workspace.size)  # which SetStream has reset
    return int(handle)


def _checked(function: str, *arguments: int) -> None:
    status = getattr(_cublas(), f"cublas{function}")(*arguments)
    if status:
        raise DeviceError(f"cublas{function}: status {status}")


@functools.cache
def _hipblas() -> ctypes.CDLL:
    library = ctypes.CDLL(HIPBLAS)
    library.hipblasSetWorkspace.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return library


@functools.cache
def _cublas() -> ctypes.CDLL:
    """The library that CuPy has loaded."""
    cupy_module().cuda.device.get_cublas_handle()
    found = re.search(r"\S*/libcublas\.so\S*", Path("/proc/self/maps").read_text())
    if found is None:
        raise DeviceError("CuPy has not loaded libcublas.so")
    library = ctypes.CDLL(found[0])
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
    library.cublasSetStream_v2.argtypes = [pointer, pointer]
    library.cublasSetWorkspace_v2.argtypes = [pointer, pointer, size]
    matrix = (pointer, number, number)  # address, type, elements between rows
    sizes = (number,) * 5
    library.cublasGemmEx.argtypes = (pointer, *sizes, pointer, *matrix, *matrix, pointer, *matrix, number, number)
    return library
