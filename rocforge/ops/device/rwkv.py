"""RWKV's layers on a device: launches of rwkv.hip. All is as rocforge.ops.rwkv has it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.strided import blocks, float32, rows_of
from rocforge.ops.state import RecurrentLayer
from rocforge.ops.types import Array, HeadNorm

SHIFT_CHANNELS, SHIFT_THREADS, LANES = 32, 256, 4
"""As rwkv.hip has them."""
HEADS = (16, 32, 64, 128)
"""Elements of a head."""
OPTIONAL = ("gate", "bonus", "rate", "rate_bias", "removed", "kept", "first", "share", "share_bias")
"""Arrays that not every version has, or not every layer."""


@functools.cache
def _kernel(name: str, head: int = 64, version: int = 7) -> Kernel:
    return Kernel("rwkv.hip", name, RF_HEAD=head, RF_VERSION=version)


def token_shift(x: Array, mix: Array, state: RecurrentLayer, offsets: Array, keep: bool) -> Array:
    y, (kept, stride) = cupy_module().empty((len(mix), *x.shape), np.float32), rows_of(state.arrays[0])
    channels = x.shape[1]
    args = {"y": y, "x": float32(x), "mix": float32(mix), "offsets": float32(offsets), "state": kept}
    args |= {"sequences": (state.slots, state.positions, state.query_starts, stride), "size": x.size}
    grid = blocks(channels, SHIFT_CHANNELS), len(state.slots)
    _kernel("token_shift")(grid, (SHIFT_THREADS,), {**args, "channels": channels, "mixes": len(mix), "keep": int(keep)})
    return y


def wkv(version: int, state: RecurrentLayer, scale: float, norm: HeadNorm | None, **given: Array) -> Array:
    """Version 6 or 7; arrays by the names of the kernel's parameters."""
    heads, dim, _ = state.arrays[-1].shape[-3:]
    if dim not in HEADS:
        allowed = ", ".join(map(str, HEADS))
        raise ValueError(f"wkv: heads of {dim} elements; allowed on a device are {allowed}")
    weight, bias, eps = (None, None, 0.0) if norm is None else norm
    arrays = {**dict.fromkeys(OPTIONAL), **given, "norm": weight, "norm_bias": bias}
    y, (kept, stride) = cupy_module().empty(given["r"].shape, np.float32), rows_of(state.arrays[-1])
    args: dict[str, Any] = {name: float32(array) for name, array in arrays.items()}
    args |= {"y": y, "state": kept, "sequences": (state.slots, state.positions, state.query_starts, stride)}
    args |= {"heads": heads, "kv_heads": given["k"].shape[1] // dim, "scale": scale, "eps": eps}
    _kernel("wkv", dim, version)((heads, len(state.slots)), (LANES * dim,), args)
    return y
