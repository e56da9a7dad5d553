"""Blocks of random codes with scales of some hundredths, for checks and measurements."""

from __future__ import annotations

import numpy as np
from gguf.constants import GGMLQuantizationType

from rocforge.formats.blocks import block_elements, block_nbytes
from rocforge.formats.quantize import quantize

FLOATS = ("F32", "F16", "BF16")
"""The formats whose blocks are one number each."""

_SCALES = {
    **{name: (0,) for name in ("Q1_0", "Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ2_XS")},
    **{name: (0,) for name in ("IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S")},
    **{name: (0, 2) for name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")},
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,)},
}
"""Where a block's float16 scales lie; the scales of the rest are bytes of their own kind."""


def random_blocks(rng: np.random.Generator, qtype: GGMLQuantizationType, count: int) -> np.ndarray:
    """uint8 (count, bytes of a block)."""
    name = qtype.name
    if name in FLOATS:
        return quantize(rng.standard_normal((count, block_elements(qtype))), qtype)
    blocks = rng.integers(0, 256, (count, block_nbytes(qtype)), dtype=np.uint8)
    for at in _SCALES.get(name, ()):
        scales = rng.uniform(0.01, 0.03, (count, 1)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = rng.integers(120, 125, count)
    if name == "NVFP4":
        blocks[:, :4] = rng.integers(16, 48, (count, 4))
    if name == "IQ1_M":  # the float16 is spread over the high nibbles of four words
        bits = rng.uniform(0.01, 0.03, count).astype(np.float16).view(np.uint16)
        for i in range(4):
            blocks[:, 49 + 2 * i] = (blocks[:, 49 + 2 * i] & 15) | ((bits >> 4 * i & 15) << 4).astype(np.uint8)
    return blocks
