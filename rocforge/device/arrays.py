"""Array modules and devices: which library owns an array, which device there is, and copies between them."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from rocforge.device.cards import card_of, is_supported, supported_card
from rocforge.device.libraries import cupy_module, import_cupy
from rocforge.errors import DeviceError, UnsupportedCardError
from rocforge.quant import QuantizedArray


def get_array_module(*arrays: Any) -> ModuleType:
    """The module, numpy or cupy, that computes on the given arrays, as `cupy.get_array_module` does.

    A QuantizedArray counts as its packed blocks. Without CuPy arrays it is numpy, and CuPy is not imported.

    >>> xp = rf.get_array_module(np.ones(3))
    >>> xp.__name__
    'numpy'
    """
    cupy = sys.modules.get("cupy")
    if cupy is not None and hasattr(cupy, "ndarray"):
        for array in arrays:
            if isinstance(array.data if isinstance(array, QuantizedArray) else array, cupy.ndarray):
                return cupy
    return np


def resolve_device(device: str | None) -> str:
    """Normalize a device name to "cpu" or "gpu:N".

    Args:
        device: None (a GPU if there is one, else the CPU), "cpu", "gpu" (the first that is supported) or "gpu:N".

    Raises:
        ValueError: the name is none of these. TypeError: it is not a string.
        DeviceError: no such GPU.
        UnsupportedCardError: the card is not supported; for None and "gpu", no card is.
    """
    if device is None:
        return "cpu" if import_cupy()[0] is None else resolve_device("gpu")
    if not isinstance(device, str):
        raise TypeError(f'device is {device!r}; allowed are None, "cpu", "gpu" and "gpu:N"')
    kind, _, number = device.partition(":")
    if device == "cpu":
        return device
    if kind != "gpu" or not (number.isdecimal() or device == "gpu"):
        raise ValueError(f'device is {device!r}; allowed are None, "cpu", "gpu" and "gpu:N"')
    count = cupy_module().cuda.runtime.getDeviceCount()
    index = int(number) if number else next((i for i in range(count) if is_supported(card_of(i))), 0)
    if index >= count:
        raise DeviceError(f"device is {device!r}; this machine has gpu:0 to gpu:{count - 1}")
    supported_card(index)
    return f"gpu:{index}"


def on_device(device: str) -> AbstractContextManager[Any]:
    """A context in which "gpu:N" is this thread's current device; nothing changes for "cpu"."""
    return nullcontext() if device == "cpu" else cupy_module().cuda.Device(int(device[4:]))


def to_device(array: Any, device: str | None = None) -> Any:
    """Copy an array, or the blocks of a QuantizedArray, to a device; returned as it is if already there.

    Args:
        array: a NumPy or CuPy array, or a QuantizedArray.
        device: as in `resolve_device`. A copy to a GPU is ordered on its current stream.

    >>> x = rf.to_device(np.ones(3, np.float32), "cpu")
    >>> x.shape
    (3,)
    """
    device = resolve_device(device)
    if isinstance(array, QuantizedArray):
        return array.to_device(device)
    if device == "cpu":
        return asnumpy(array)
    with on_device(device):
        return cupy_module().asarray(array)


def asnumpy(array: Any) -> np.ndarray:
    """A NumPy array of the same values; waits for the copy of a device array. A QuantizedArray is dequantized.

    >>> rf.asnumpy(rf.quantize(np.ones((1, 32), np.float32), "Q4_0")).shape
    (1, 32)
    """
    if isinstance(array, QuantizedArray):
        array = array.dequantize()
    values = np.asarray(array) if get_array_module(array) is np else array.get()
    if values.dtype == object:
        raise TypeError(f"array is of type {type(array).__name__}; allowed are arrays, and lists of numbers")
    return values


def copied(array: Any) -> Any:
    """A copy of a NumPy or CuPy array. CuPy's own method is a kernel, which on ROCm takes a compiler: here a contiguous
    array is a copy on the current stream."""
    if get_array_module(array) is np or not array.flags.c_contiguous or not array.size:
        return array.copy()
    copy = cupy_module().empty(array.shape, array.dtype)
    copy.data.copy_from_device_async(array.data, array.nbytes)
    return copy


class Constant:
    """An array of the host, with a copy on each device that asks for it: as long as this lives, since captured launches
    read them."""

    def __init__(self, values: np.ndarray):
        self.values, self._copies = values, dict[int, Any]()

    def on_current_device(self) -> Any:
        """The copy there. It is waited for when it is made, since later launches may be on other streams."""
        cupy = cupy_module()
        current = cupy.cuda.runtime.getDevice()
        if current not in self._copies:
            self._copies[current] = cupy.asarray(self.values)
            cupy.cuda.get_current_stream().synchronize()
        return self._copies[current]

    def beside(self, array: Any) -> Any:
        """The values where that array is, on the host or the current device."""
        return self.values if get_array_module(array) is np else self.on_current_device()


@dataclass(frozen=True)
class DeviceInfo:
    """Facts about a device, from `device_info`.

    Attributes:
        device: "cpu" or "gpu:N", the device that `rf.load` would pick.
        name: the processor's name.
        arch: gfx942, gfx1100, ... on AMD; sm_90, ... on NVIDIA; the machine type for a CPU.
        memory_total, memory_free: bytes.
        runtime: "ROCm 7.0.2", "CUDA 13.0" or "NumPy 2.4".
        cupy: CuPy's version, or None if it does not import.
        reason: why there is no GPU, or None where there is one.

    >>> info = rf.device_info("cpu")
    >>> info.device, info.memory_free < info.memory_total
    ('cpu', True)
    """

    device: str
    name: str
    arch: str
    memory_total: int
    memory_free: int
    runtime: str
    cupy: str | None
    reason: str | None

    def __str__(self) -> str:
        memory = f"{self.memory_free / 2**30:.1f} of {self.memory_total / 2**30:.1f} GiB free"
        line = f"{self.device}: {self.name} ({self.arch}), {memory}, {self.runtime}"
        return line if self.reason is None else f"{line}\nno GPU: {self.reason}"


def device_info(device: str | None = None) -> DeviceInfo:
    """Describe a device (None: the one that `rf.load` would pick), and why there is no usable GPU.

    Raises:
        ValueError, DeviceError, UnsupportedCardError: as `resolve_device`, of a device that is named.

    >>> rf.device_info("cpu").device
    'cpu'
    """
    cupy, reason = import_cupy()
    try:
        resolved = resolve_device(device)
    except UnsupportedCardError as error:
        if device is not None:
            raise
        resolved, reason = "cpu", str(error)
    if resolved == "cpu":
        return _cpu_info(cupy, reason)
    device = resolved
    cupy = cupy_module()
    runtime = cupy.cuda.runtime
    with on_device(device) as current:
        free, total = current.mem_info
    card, version = card_of(current.id), runtime.runtimeGetVersion()
    if runtime.is_hip:
        name = f"ROCm {version // 10_000_000}.{version // 100_000 % 100}"
    else:
        name = f"CUDA {version // 1000}.{version % 1000 // 10}"
    return DeviceInfo(device, card.name, card.family, total, free, name, cupy.__version__, None)


def _cpu_info(cupy: ModuleType | None, reason: str | None) -> DeviceInfo:
    import platform

    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), available_memory()
    version = cupy.__version__ if cupy is not None else None
    name = f"{os.cpu_count()} CPU cores"
    return DeviceInfo("cpu", name, platform.machine(), total, free, f"NumPy {np.__version__}", version, reason)


def available_memory(device: str = "cpu") -> int:
    """Bytes that can be allocated: host memory without swapping, or a GPU's in one allocation.

    On a GPU, frees the unused blocks of CuPy's pool first, since no single allocation could use all of them. An APU's
    memory is the host's: at most what the host has free, whatever the driver reports.
    """
    if device != "cpu":
        pool = cupy_module().get_default_memory_pool()
        with on_device(device) as current:
            pool.free_all_blocks()
            free, limit = current.mem_info[0], pool.get_limit()
            if card_of(current.id).shares_host_memory:
                free = min(free, available_memory())
            return min(free, limit - pool.total_bytes()) if limit else free
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
