"""Launches that overlap: on NVIDIA, a kernel of a captured graph begins while the one queued before it still runs.

Each kernel in rawkernels/ says how far it can go before it must wait (`wait_for_previous` in platform.h): GEMVs load
their first weights. CuPy has no call for such launches, so the driver's is used.

Source: CUDA C++ Programming Guide, Programmatic Dependent Launch and Synchronization.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.device.libraries import cupy_module
from rocforge.errors import DeviceError

PROGRAMMATIC_STREAM_SERIALIZATION = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute, with the one value that is used of its union of 64 bytes."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("pad", ctypes.c_char * 4),
        ("allowed", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


@functools.cache
def overlaps(device: int) -> bool:
    """Whether a device supports it: NVIDIA from compute capability 9.0 on."""
    return not cupy_module().cuda.runtime.is_hip and int(cupy_module().cuda.Device(device).compute_capability) >= 90


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


class OverlappingLaunch:
    """A launch that begins while the kernel queued before it still runs. Calling it launches on the current stream, as
    often as wanted, and raises DeviceError where the driver refuses.

    Args:
        function: cupy.cuda.function.Function.
        grid, block: up to three axes.
        args: CuPy arrays, of which the caller keeps the memory, and NumPy scalars.
        shared: bytes of dynamic LDS.
    """

    def __init__(
        self, function: Any, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared: int
    ) -> None:
        self._values = [
            ctypes.create_string_buffer(arg.tobytes()) if isinstance(arg, np.generic) else ctypes.c_uint64(arg.data.ptr)
            for arg in args
        ]
        self._params = (ctypes.c_void_p * len(args))(*map(ctypes.addressof, self._values))
        attribute = _Attribute(PROGRAMMATIC_STREAM_SERIALIZATION, b"", 1, b"")
        sizes = [(ctypes.c_uint * 3)(*axes, *[1] * (3 - len(axes))) for axes in (grid, block)]
        self._config = _Config(*sizes, shared, None, ctypes.pointer(attribute), 1)
        self._launch, self._function = _driver().cuLaunchKernelEx, ctypes.c_void_p(function.ptr)

    def __call__(self) -> None:
        self._config.stream = cupy_module().cuda.get_current_stream().ptr
        error = self._launch(ctypes.byref(self._config), self._function, self._params, None)
        if error:
            raise DeviceError(f"cuLaunchKernelEx failed with CUDA driver error {error}")
