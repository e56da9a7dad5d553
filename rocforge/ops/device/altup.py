"""Alternating updates on a device: launches of altup.hip. Shapes and meanings are those of rocforge.ops.altup."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rocforge.device import tuning
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.strided import a_thread_each, copy_into, float32
from rocforge.ops.types import Array

_predict = Kernel("altup.hip", "altup_predict", "float32* float32* float32* uint32 uint32 uint64")
_correct = Kernel("altup.hip", "altup_correct", "float32* float32* float32* float32* uint32 uint32 uint32 uint64")
_add = Kernel("altup.hip", "altup_add", "float32* float32* float32* uint64 uint64")
_with_length_of = Kernel("altup.hip", "with_length_of", "float32* float32* float32* uint32")


def predict(streams: Array, coefs: Array) -> Array:
    out, (count, tokens, dim) = cupy_module().empty(streams.shape, np.float32), streams.shape
    size = tokens * dim
    _predict(*a_thread_each(size), (out, float32(streams), float32(coefs), count, dim, size))
    return out


def correct(predictions: Array, activated: Array, coefs: Array, active: int) -> Array:
    out, (count, tokens, dim) = cupy_module().empty(predictions.shape, np.float32), predictions.shape
    arrays = (float32(a) for a in (predictions, activated, coefs))
    _correct(*a_thread_each(tokens * dim), (out, *arrays, count, active, dim, tokens * dim))
    return out


def add_to_others(streams: Array, y: Array) -> Array:
    out = cupy_module().empty(streams.shape, np.float32)
    _add(*a_thread_each(streams.size), (out, float32(streams), float32(y), y.size, streams.size))
    return out


def expand(x: Array, others: Sequence[Array]) -> Array:
    out = cupy_module().empty((1 + len(others), *x.shape), np.float32)
    copy_into(out[0], float32(x))
    for target, y in zip(out[1:], others, strict=True):
        with_length_of(y, x, target)
    return out


def with_length_of(x: Array, like: Array, out: Array = None) -> Array:
    """As `rocforge.ops.altup.with_length_of`, into `out` where given."""
    out = cupy_module().empty(x.shape, np.float32) if out is None else out
    tokens, dim = x.shape
    _with_length_of((tokens,), (tuning.current().elementwise_threads,), (out, float32(x), float32(like), dim))
    return out
