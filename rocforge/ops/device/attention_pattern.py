"""Attention in two parts on a device: launches of attention_pattern.hip.

Shapes and meanings are those of rocforge.ops.attention_pattern. The cache is float16 or packed.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.attention import Macros, cache_arrays, types_of, window_arguments
from rocforge.ops.device.strided import float32
from rocforge.ops.state import BLOCK_SIZE, PagedLayer
from rocforge.ops.types import Array


def attention_pattern(
    q: Array, layer: PagedLayer, scale: float, softcap: float | None, sinks: Array, slopes: Array
) -> Array:
    """The softmax of each query's scores."""
    tokens, heads, head_dim = q.shape
    pattern = cupy_module().empty((heads, tokens, layer.longest), np.float32)
    keys, sinks = cache_arrays(layer)["keys"], None if sinks is None else float32(sinks)
    slopes = None if slopes is None else float32(slopes)
    args = {"pattern": pattern, "q": float32(q), "keys": keys, "sinks": sinks, "slopes": slopes}
    args |= {"scale": scale, "softcap": softcap or 0.0, **_places(layer, pattern)}
    _launch("attention_pattern", head_dim, layer, pattern, args)
    return pattern


def attention_heads(pattern: Array, layer: PagedLayer) -> Array:
    """Sums of the values by a pattern."""
    heads, tokens, _ = pattern.shape
    out = cupy_module().empty((tokens, heads, layer.values.shape[2]), np.float32)
    values = cache_arrays(layer)["values"]
    args = {"out": out, "pattern": float32(pattern), "values": values, **_places(layer, pattern)}
    _launch("attention_heads", layer.values.shape[2], layer, pattern, args)
    return out


def _places(layer: PagedLayer, pattern: Array) -> dict[str, Any]:
    heads, tokens, columns = pattern.shape
    sequences, stride = layer.tables.shape
    places = {"tables": layer.tables, "lengths": layer.lengths, "query_starts": layer.query_starts}
    places |= {"table_stride": stride, "sequences": sequences, "tokens": tokens, "heads": heads}
    places |= {"kv_heads": layer.keys.shape[1], "columns": columns, "causal": int(layer.causal)}
    return {**places, **window_arguments(layer)}


def _launch(name: str, head_dim: int, layer: PagedLayer, pattern: Array, args: dict[str, Any]) -> None:
    heads, tokens, _ = pattern.shape
    if tokens:
        _kernel(name, head_dim, types_of(layer))((tokens, heads), (tuning.current().elementwise_threads,), args)


@functools.cache
def _kernel(name: str, head_dim: int, types: Macros) -> Kernel:
    defines: dict[str, Any] = {"RF_HEAD_DIM": head_dim, "RF_BLOCK_SIZE": BLOCK_SIZE, **dict(types)}
    return Kernel("attention_pattern.hip", name, **defines)
