"""IQ4_NL and IQ4_XS: codes of 4 bits that stand for 16 unevenly spaced values; a scale for 32 elements."""

from __future__ import annotations

import numpy as np
from gguf import quants

from rocforge.formats.quantizers.pack import as_bytes, interleave, rounded_fp16
from rocforge.formats.quantizers.search import (
    SCALE_STEPS,
    best_scale,
    block_scales,
    error_weights,
    groups_of,
    reciprocal,
    signed,
    table,
    table_codes,
)

GROUP = 32
VALUES = quants.IQ4_NL.kvalues
CANDIDATES = (*range(-145, -108, 6), 112, 124)
"""What the element of the largest magnitude is rounded to."""


def iq4_nl(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    scale, _ = _scales(x, importance)
    d = rounded_fp16(scale)
    return np.concatenate([as_bytes(d, "<f2"), _packed(x, d)], axis=1)


def iq4_xs(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    scale, weight = (values.reshape(-1, 8) for values in _scales(x, importance))
    scales, d = block_scales(scale, weight, -32 * SCALE_STEPS, signed(32))
    stored = (scales + 32).astype(np.uint8)
    high = interleave((stored >> 4).reshape(-1, 2, 4).swapaxes(1, 2), 2)
    low = interleave((stored & 15).reshape(-1, 4, 2).swapaxes(1, 2), 4)
    packed = _packed(x.reshape(-1, GROUP), (d[:, None] * scales).ravel())
    return np.concatenate([as_bytes(d, "<f2"), high, low, packed.reshape(len(x), -1)], axis=1)


def _scales(x: np.ndarray, importance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The scales of groups (groups,), and what their errors count."""
    weight = error_weights(x, importance, GROUP)
    return best_scale(groups_of(x, GROUP), weight, CANDIDATES, table(VALUES)), weight.sum(axis=0)


def _packed(groups: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """uint8 (groups, 16) of the codes of x (groups, 32)."""
    codes = table_codes(VALUES)(groups * reciprocal(scale)[:, None])
    return interleave(codes.reshape(-1, 2, 16), 4)
