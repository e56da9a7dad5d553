"""KVCache: the arrays in which all layers of a model keep their state, those with equal declarations together.

A block of a paged group holds `block_size` consecutive tokens of one sequence, for every layer of the group. A
sequence's block table lists its blocks in order; token p lies in block `table[p // block_size]`, at offset
`p % block_size`. Recurrent state lies in slots, one a sequence, for every layer.

Source: Kwon et al., Efficient Memory Management for Large Language Model Serving with PagedAttention,
https://arxiv.org/abs/2309.06180.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.arrays import on_device, resolve_device
from rocforge.device.cards import FP8_CARDS, card_of, has_fp8
from rocforge.device.libraries import cupy_module
from rocforge.errors import UnsupportedModelError
from rocforge.formats.kv_cache import FLOATS, PACKED, RUN
from rocforge.nn.state import Absent, Declared, PagedKV, Recurrent, SharedKV, State, groups_of
from rocforge.ops.state import BLOCK_SIZE, PackedRows


class PagedGroup:
    """Keys and values of the layers with one declaration.

    Attributes:
        state: the declaration.
        keys: floats, shape (layers, blocks, block_size, heads, key_dim); of a packed type uint8, shape (layers, blocks,
            heads, bytes of a block). Layers that are not causal share one.
        values: the same, of value_dim.
    """

    def __init__(self, state: PagedKV, layers: int, blocks: int, block_size: int, device: str):
        self.state, self.blocks, self.block_size = state, blocks, block_size
        held = layers if state.causal else 1
        of_keys, of_values = (self._rows(held, kind, dim, device) for kind, dim in state.rows_on(device))
        (self.keys, keys), (self.values, values) = of_keys, of_values
        self.layers = list(zip(keys, values, strict=True)) * (1 if state.causal else layers)

    def _rows(self, layers: int, kind: str, dim: int, device: str) -> tuple[Any, list[Any]]:
        """An array for all layers, and what each layer has of it."""
        xp = np if device == "cpu" else cupy_module()
        heads, packed = self.state.heads, PACKED.get(kind)
        if packed is None:
            array = xp.zeros((layers, self.blocks, self.block_size, heads, dim), FLOATS[kind])
            return array, list(array.reshape(layers, self.blocks * self.block_size, heads, dim))
        array = xp.zeros((layers, self.blocks, heads, packed.block_nbytes(dim, self.block_size)), np.uint8)
        return array, [PackedRows(layer, packed, dim, self.block_size) for layer in array]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return int(self.keys.nbytes + self.values.nbytes)


def check_types(states: Iterable[Declared], device: str) -> None:
    """Raise an UnsupportedModelError where a layer's heads, or the device, are none that a packed type is for."""
    paged = [state for state in states if isinstance(state, PagedKV)]
    rows = {row for state in paged for row in state.rows_on(device)}
    if any(not s.value_dim and s.key_type in PACKED and PACKED[s.key_type].spread for s in paged):
        raise UnsupportedModelError("q4_0 spreads keys, of which latent attention's are values, too; q8_0 does not")
    for packed, dim in ((PACKED[kind], dim) for kind, dim in rows if kind in PACKED):
        if not packed.holds(dim):
            raise UnsupportedModelError(
                f"{packed.name} packs heads of whole runs of {RUN} elements, and the model's have {dim}"
            )
        if packed is PACKED["fp8_e4m3"] and device != "cpu" and not has_fp8(card := card_of(int(device[4:]))):
            raise UnsupportedModelError(f"{card.name} ({card.family}) has no fp8_e4m3, {FP8_CARDS}; q8_0 takes as much")


class RecurrentGroup:
    """State of the layers with one declaration, a sequence in each slot.

    Attributes:
        state: the declaration.
        arrays: one for each declared shape, (slots, layers, *shape).
    """

    def __init__(self, state: Recurrent, layers: int, slots: int, device: str):
        xp = np if device == "cpu" else cupy_module()
        self.state = state
        self.arrays = tuple(xp.zeros((slots, layers, *shape), state.dtype) for shape in state.shapes)
        self.layers = [tuple(array[:, layer] for array in self.arrays) for layer in range(layers)]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)


class KVCache:
    """The state of every layer of a model.

    Args:
        states: what each layer declares, by what it is asked for with: a model's layers by themselves. A sequence
            stands for layers 0, 1, ...
        blocks: of each paged group, in the order in which declarations first come; one number for all alike.
        block_size: tokens of a block; on a device always BLOCK_SIZE, 32.
        slots: sequences with recurrent state.
        device: as in `rf.to_device`.

    Attributes:
        paged: one PagedGroup for each declaration of paged state.
        recurrent: one RecurrentGroup for each declaration of recurrent state.
        counters: as in PagedLayer; None on the CPU.

    Raises:
        ValueError: a block size that the device's kernels do not have, or blocks of another number of groups.
        UnsupportedModelError: heads, or a device, that a packed type is not for.

    >>> cache = model.new_cache(blocks=8)
    >>> cache.paged[0].keys.shape
    (4, 8, 32, 2, 64)
    """

    def __init__(
        self,
        states: Mapping[Any, Declared] | Sequence[Declared],
        blocks: int | Sequence[int],
        block_size: int = BLOCK_SIZE,
        slots: int = 1,
        device: str | None = "cpu",
    ):
        device = resolve_device(device)
        if block_size != BLOCK_SIZE and device != "cpu":
            raise ValueError(f"block_size is {block_size}; allowed on a device is {BLOCK_SIZE}, as its kernels have it")
        layers = states if isinstance(states, Mapping) else dict(enumerate(states))
        groups = groups_of(layers.values())
        check_types(groups, device)
        paged = [state for state in groups if isinstance(state, PagedKV)]
        sizes = [blocks] * len(paged) if isinstance(blocks, int) else list(blocks)
        if len(sizes) != len(paged):
            raise ValueError(f"blocks are {sizes}; allowed is one number for each of {len(paged)} paged groups")
        self.device, self.block_size, self.slots, self.counters = device, block_size, slots, None
        with on_device(device):
            self.paged = [
                PagedGroup(state, groups[state], size, block_size, device)
                for state, size in zip(paged, sizes, strict=True)
            ]
            self.recurrent = [
                RecurrentGroup(state, count, slots, device)
                for state, count in groups.items()
                if isinstance(state, Recurrent)
            ]
            if device != "cpu":
                self.counters = cupy_module().zeros(tuning.current().split_heads, np.int32)
        by_state: dict[State, PagedGroup | RecurrentGroup] = {group.state: group for group in self.paged}
        by_state |= {group.state: group for group in self.recurrent}
        indices = {state: itertools.count() for state in groups}
        self._layers: dict[Hashable, tuple[PagedGroup | RecurrentGroup, int]] = {}
        for layer, state in layers.items():
            if isinstance(state, SharedKV):
                self._layers[layer] = self.group_of(state.layer)
            elif not isinstance(state, Absent):
                self._layers[layer] = by_state[state], next(indices[state])

    def __repr__(self) -> str:
        return f"KVCache({len(self._layers)} layers, {self.nbytes:,} bytes, {self.device})"

    def group_of(self, layer: Hashable) -> tuple[PagedGroup | RecurrentGroup, int]:
        """The group of a layer, and the layer's index there.

        Raises:
            KeyError: the cache was made without it.

        >>> group, index = model.new_cache(8).group_of(model.blk[2].attn)
        >>> index
        2
        """
        if layer not in self._layers:
            name = layer if isinstance(layer, int) else f"this {type(layer).__name__}"
            raise KeyError(f"layer {name} is none of the {len(self._layers)} that the cache was made for")
        return self._layers[layer]

    @property
    def nbytes(self) -> int:
        """Bytes of all groups."""
        return sum(group.nbytes for group in self.paged) + sum(group.nbytes for group in self.recurrent)

    def copy_slot(self, source: int, target: int) -> None:
        """Copy the recurrent state of one slot, of all layers, to another; on a device on the current stream.

        >>> model.new_cache(8, slots=2).copy_slot(0, 1)
        """
        for group in self.recurrent:
            for array in group.arrays:
                if self.device == "cpu":
                    array[target] = array[source]
                else:
                    array[target].data.copy_from_device_async(array[source].data, array[source].nbytes)
