"""MXFP4 and NVFP4: codes that are floats of 4 bits (E2M1), under a power of two or a float of 8 bits (E4M3).

The scale follows from the largest magnitude, so importance is of no use.
"""

from __future__ import annotations

import numpy as np
from gguf import quants

from rocforge.formats.quantizers.pack import interleave
from rocforge.formats.quantizers.search import reciprocal

MIDPOINTS = (0.5, 1.5, 2.5, 3.5, 5, 7, 10)
"""Between the magnitudes of codes, doubled: 0, 1, 2, 3, 4, 6, 8, 12."""


def mxfp4(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    peak = np.abs(x).max(axis=1)
    # frexp's exponent is one more than the floor of the logarithm
    exponent = np.where(peak > 0, np.maximum(np.frexp(peak)[1] - 1 - 2 + 127, 0), 0).astype(np.uint8)
    codes = _codes(x, quants.MXFP4.e8m0_to_fp32_half(exponent))
    return np.concatenate([exponent[:, None], interleave(codes.reshape(-1, 2, 16), 4)], axis=1)


def nvfp4(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    groups = x.reshape(-1, 16)
    scale = quants.NVFP4.fp32_to_ue4m3(np.abs(groups).max(axis=1) / np.float32(6))
    codes = _codes(groups, quants.NVFP4.ue4m3_to_fp32(scale).astype(np.float32))
    return np.concatenate([scale.reshape(-1, 4), interleave(codes.reshape(-1, 2, 8), 4).reshape(-1, 32)], axis=1)


def _codes(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    magnitude = np.abs(x) * reciprocal(scale)[:, None]
    codes = np.zeros(x.shape, np.uint8)
    for midpoint in MIDPOINTS:
        codes += magnitude > midpoint
    return codes | (((x < 0) & (codes > 0)) << 3).astype(np.uint8)
