"""Attention temperature: queries far into a sequence are scaled up.

Source: Nakanishi, Scalable-Softmax Is Superior for Attention, https://arxiv.org/abs/2501.19399; Llama 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.ops.device import rope as device
from rocforge.ops.types import Array


@dataclass(frozen=True)
class Temperature:
    """What queries are scaled by: `1 + scale * log(1 + floor((position + offset) / length))`.

    Attributes:
        scale: how fast it rises.
        length: tokens of a step of it, from the first of which on it is more than 1.
        offset: added to positions.

    >>> Temperature(scale=0.1, length=8).factors(np.array([0, 7, 8]))
    array([1.       , 1.       , 1.0693147], dtype=float32)
    """

    scale: float
    length: int
    offset: int = 0

    def factors(self, positions: Array) -> Array:
        """float32, the shape of the positions, which are integers from 0."""
        if get_array_module(positions) is not np:
            return device.temperatures(positions, self.scale, self.length, self.offset)
        return (1 + self.scale * np.log1p((positions + self.offset) // self.length)).astype(np.float32)
