"""What benches of a GPU share: CuPy, without which they are skipped, and how fast the card reads."""

from __future__ import annotations

import numpy as np
import pytest

from rocforge.device.arrays import available_memory
from rocforge.device.libraries import import_cupy
from rocforge.device.timing import noise, seconds

cp, _reason = import_cupy()
if cp is None:
    pytest.skip(f"needs a GPU: {_reason}", allow_module_level=True)

CACHES = 256 << 20
"""Bytes that are more than any level of cache holds."""


def read_bandwidth() -> float:
    """Bytes a second of a kernel that reads 4 GiB, or half of the memory, 16 bytes a load, and does nothing else."""
    code = """extern "C" __global__ void read(const float4* x, float* y, size_t n) {
        float sum = 0;
        for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
            sum += x[i].x + x[i].y + x[i].z + x[i].w;
        if (sum == 12345.678f) *y = sum;
    }"""
    numbers = min(1 << 30, available_memory("gpu:0") // 8)
    kernel, x, y = cp.RawKernel(code, "read"), noise((numbers,)), cp.zeros(1, np.float32)
    launch = [lambda: kernel((132 * 16,), (512,), (x, y, np.uint64(x.size // 4)))]
    return x.nbytes / seconds(launch)
