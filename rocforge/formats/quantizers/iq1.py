"""IQ1_S and IQ1_M: vectors of -1, 0 and 1, all moved up or down by an eighth."""

from __future__ import annotations

import functools

import numpy as np
from gguf import quants

from rocforge.formats import blocks
from rocforge.formats.quantizers.lattices import Lattice, fit, weights_of
from rocforge.formats.quantizers.pack import as_bytes, interleave

PEAKS = np.array([1.5, 2.2])
"""What the largest magnitude of a group may become."""


def iq1_s(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes = fit(x, weights_of(x, importance, 32), _lattice(2, 32))
    down, points = np.divmod(codes.points.reshape(-1, 8, 4), _size())
    high = np.bitwise_or.reduce((points >> 8) << np.arange(0, 12, 3), axis=2)
    words = high | codes.scales.astype(np.intp) << 12 | down[:, :, 0] << 15
    low = as_bytes(points.reshape(len(x), -1) & 255, "u1")
    return np.concatenate([as_bytes(codes.d, "<f2"), low, as_bytes(words, "<u2")], axis=1)


def iq1_m(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes = fit(x, weights_of(x, importance, 16), _lattice(1, 16))
    down, points = np.divmod(codes.points, _size())
    high = interleave((points >> 8 | down << 3).astype(np.uint8).reshape(-1, 16, 2).swapaxes(1, 2), 4)
    # Of each word of four scales the top four bits are a part of the block's scale.
    scales = np.bitwise_or.reduce(codes.scales.reshape(-1, 4, 4).astype(np.uint16) << np.arange(0, 12, 3), axis=2)
    d = codes.d.astype(np.float16).view(np.uint16)[:, None] >> np.arange(0, 16, 4) & 15
    return np.concatenate([as_bytes(points & 255, "u1"), high, as_bytes(scales | d << 12, "<u2")], axis=1)


@functools.cache
def _lattice(sets: int, group: int) -> Lattice:
    """Points moved up, then those moved down: in two sets of which a group takes one, or in one."""
    points = blocks.lattice(blocks.QTYPES["IQ1_S"])
    assert points is not None
    both = np.stack([points[0, 0] + quants.IQ1_S.delta, points[0, 0] - quants.IQ1_S.delta])
    return Lattice(both.reshape(sets, -1, both.shape[-1]), group, 7, PEAKS)


def _size() -> int:
    return quants.IQ1_S.grid_shape[0]
