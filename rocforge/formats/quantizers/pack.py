"""Bits and scales as the fields of a block."""

from __future__ import annotations

import numpy as np


def interleave(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 (blocks, n, m) as (blocks, m): byte i has codes[:, 0, i] in its lowest bits, then codes[:, 1, i], ..."""
    packed = codes[:, 0].copy()
    for i in range(1, codes.shape[1]):
        packed |= codes[:, i] << (bits * i)
    return packed


def as_bytes(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers (blocks,) or (blocks, n) as the bytes of a little-endian dtype, uint8 (blocks, bytes)."""
    return np.ascontiguousarray(values.reshape(len(values), -1).astype(dtype)).view(np.uint8)


def rounded_fp16(scales: np.ndarray) -> np.ndarray:
    """Scales as the nearest float16s, still in float32."""
    return scales.astype(np.float16).astype(np.float32)
