"""Experts in MXFP4, as gpt-oss's checkpoints have them, in GGUF's blocks."""

from __future__ import annotations

import numpy as np


def mxfp4_blocks(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """GGUF's blocks: an exponent, then bytes of which each holds an element and the one 16 further on.

    Args:
        codes: uint8 (..., blocks, 16), each byte two neighbours, the first in its low bits.
        scales: uint8 (..., blocks), the exponents.

    Returns:
        uint8 (..., blocks * 17).
    """
    elements = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], 32)
    packed = elements[..., :16] | elements[..., 16:] << 4
    return np.concatenate([scales[..., None], packed], axis=-1).reshape(*scales.shape[:-1], -1)
