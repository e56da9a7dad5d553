"""Sums of squares on a device: the launch of importance.hip. Meanings are those of rocforge.ops.importance."""

from __future__ import annotations

import numpy as np

from rocforge.device import tuning
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.strided import blocks, float32
from rocforge.ops.types import Array

_add_squares = Kernel("importance.hip", "add_squares", "float32* float32* float32* int32*? uint32 uint32 uint32")


def add_squares(sums: Array, counts: Array, x: Array, ids: Array = None) -> None:
    """What `rocforge.ops.importance.add_squares` does."""
    x, threads = float32(x), tuning.current().elementwise_threads
    if ids is not None:
        ids = cupy_module().ascontiguousarray(ids, dtype=np.int32)
    (matrices, columns), size = sums.shape, len(x) if ids is None else ids.size
    if x.size:
        args = (sums, counts, x, ids, size, size // len(x), columns)
        _add_squares((blocks(columns, threads), matrices), (threads,), args)
