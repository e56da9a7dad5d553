"""Multi-head latent attention: the cache has one short row a token, of which all heads' keys and values are products.

A row is the latent, then a key that all heads share and that is rotated. Heads' queries are multiplied with the
matrices that make keys of latents, once, in place of the keys of all tokens; so a head's score is its query times a
row, and what it gives is a sum of latents, which is multiplied with the matrix that makes values of them.

Source: DeepSeek-V2, https://arxiv.org/abs/2405.04434.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops.activation import scale_rows
from rocforge.ops.arguments import check_shape
from rocforge.ops.attention import paged_attention
from rocforge.ops.device import latent_attention as device
from rocforge.ops.device.head_linear import head_linear as head_linear_on_device
from rocforge.ops.device.latent_attention import Expansion, plan_expansion
from rocforge.ops.device.operands import PackedOperand
from rocforge.ops.linear import linear
from rocforge.ops.norm import rms_norm
from rocforge.ops.rope import Rotation, rotate
from rocforge.ops.state import PackedRows, PagedLayer
from rocforge.ops.types import Array, HostArray, Weight

__all__ = ["Expansion", "expanded_attention", "head_linear", "latent_attention", "plan_expansion", "store_latents"]


def store_latents(
    q: Array,
    latents: Array,
    keys: Array,
    layer: PagedLayer,
    rotation: Rotation | None,
    norm: Array = None,
    eps: float = 1e-6,
    factors: Array = None,
) -> tuple[Array, Array]:
    """Normalize latents, rotate the shared keys and the queries' parts for them, and put the rows into the cache.

    On a device it is one launch.

    Args:
        q: float32, shape (tokens, heads, own + shared): of each head what is for its own keys, then for the shared one.
        latents: float32, shape (tokens, rank).
        keys: float32, shape (tokens, shared).
        layer: its slots say where to store; its keys have one head of rank + shared elements.
        rotation: of the tokens' positions, of all shared elements; None: nothing is rotated.
        norm: weight (rank,) of an RMS norm of the latents, or None.
        eps: of that.
        factors: float32, shape (tokens,): what queries are multiplied with; or None.

    Returns:
        float32 (tokens, heads, own) and (tokens, heads, shared): both parts of the queries.

    Raises:
        ValueError: the rotation is of other than the shared elements, or a cache's rows are of another length.
    """
    _check_rows(latents, keys, layer, rotation)
    if get_array_module(q) is not np:
        return device.store_latents(q, latents, keys, layer, rotation, norm, eps, factors)
    shared = keys.shape[1]
    if factors is not None:
        q = scale_rows(q, factors)
    own, rotated, keys = q[..., :-shared], q[..., -shared:], keys[:, None]
    if norm is not None:
        latents = rms_norm(latents, norm, eps)
    if rotation is not None:
        rotated, keys = (rotate(x, rotation.cos, rotation.sin, rotation.neox) for x in (rotated, keys))
    layer.keys[layer.slots] = np.concatenate([latents[:, None], keys], axis=2)
    return own, rotated


def _check_rows(latents: Array, keys: Array, layer: PagedLayer, rotation: Rotation | None) -> None:
    shared = keys.shape[1]
    check_shape("store_latents", "cache rows", layer.keys, (layer.keys.shape[0], 1, latents.shape[1] + shared))
    if rotation is not None and 2 * rotation.cos.shape[1] != shared:
        raise ValueError(
            f"rope: {2 * rotation.cos.shape[1]} elements are rotated; allowed are all {shared} shared ones"
        )


def latent_attention(absorbed: Array, rotated: Array, layer: PagedLayer, scale: float) -> Array:
    """Softmax-weighted means of latents, for each sequence of a batch.

    Args:
        absorbed: float32, shape (tokens, heads, rank): queries as they are multiplied with latents.
        rotated: float32, shape (tokens, heads, shared): as they are multiplied with the shared keys.
        layer: its keys are the rows, the batch's stored already; it has no window.
        scale: factor on the scores.

    Returns:
        float32, shape (tokens, heads, rank).

    Raises:
        ValueError: on a device, rank or shared elements that are no multiples of 16, or more than 576 of both.
    """
    if get_array_module(absorbed) is not np:
        return device.latent_attention(absorbed, rotated, layer, scale)
    q = np.concatenate([absorbed, rotated], axis=2)
    values: Any = _Latents(layer.keys, absorbed.shape[2])
    return paged_attention(q, replace(layer, values=values), scale=scale)


def expanded_attention(
    q: Array,
    latents: Array,
    keys: Array,
    layer: PagedLayer,
    rotation: Rotation | None,
    weights: tuple[Weight, Weight],
    scale: float,
    plan: Expansion | None = None,
    norm: Array = None,
    eps: float = 1e-6,
    factors: Array = None,
) -> Array:
    """`store_latents`, and attention: what `latent_attention` of q times the first weight, times the second, gives.

    On a device, where sequences have several tokens, keys and values of all heads are made of their latents, which for
    many queries takes fewer products; what is alone in its sequence attends to latents.

    Args:
        q, latents, keys, layer, rotation, norm, eps, factors: as `store_latents` takes them.
        weights: QuantizedArrays or floats, (heads, rank, own) and (heads, value_dim, rank): what makes a head's keys,
            transposed, and values of latents.
        scale: factor on the scores.
        plan: on a device, as `plan_expansion` gives it for the batch.

    Returns:
        float32, shape (tokens, heads, value_dim).

    Raises:
        ValueError: as `store_latents`; on a device, no plan.
    """
    _check_rows(latents, keys, layer, rotation)
    if get_array_module(q) is not np:
        if plan is None:
            raise ValueError("expanded_attention: plan is None; allowed on a device is what plan_expansion gives")
        return device.expanded_attention(q, latents, keys, layer, rotation, weights, scale, plan, norm, eps, factors)
    own, rotated = store_latents(q, latents, keys, layer, rotation, norm, eps, factors)
    return head_linear(latent_attention(head_linear(own, weights[0]), rotated, layer, scale), weights[1])


@dataclass(frozen=True)
class _Latents:
    """The first elements of the cache's rows, as values (slots, 1, rank) are read."""

    rows: HostArray | PackedRows
    rank: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.rows.shape[0], 1, self.rank

    def __getitem__(self, slots: slice | HostArray) -> HostArray:
        return self.rows[slots][..., : self.rank]


def head_linear(x: Array, weight: Weight, consumer: Weight | None = None) -> Array | PackedOperand:
    """Each head's row times its own matrix.

    Args:
        x: float32, shape (tokens, heads, columns).
        weight: QuantizedArray or floats, shape (heads, rows, columns).
        consumer: the weight that the result is to be multiplied with, if that is all it is for.

    Returns:
        float32, shape (tokens, heads, rows); with `consumer` (tokens, heads * rows), on a device, where the kernel can
        write it, in the form in which a product with that takes it.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("head_linear", "x", x, (len(x), len(weight), weight.shape[2]))
    if get_array_module(x) is not np:
        return head_linear_on_device(x, weight, consumer)
    out = np.empty((*x.shape[:2], weight.shape[1]), np.float32)
    for head in range(x.shape[1]):
        out[:, head] = linear(x[:, head], weight[head])
    return out if consumer is None else out.reshape(len(x), -1)
