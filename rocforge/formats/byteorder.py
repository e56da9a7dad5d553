"""Blocks of big-endian files: which of their fields are swapped."""

from __future__ import annotations

import numpy as np
from gguf.constants import GGMLQuantizationType

from rocforge.formats.blocks import block_nbytes

FIELDS: dict[str, tuple[tuple[int, int], ...]] = {
    "BF16": ((0, 2),),
    "Q1_0": ((0, 2),),
    "Q4_0": ((0, 2),),
    "Q4_1": ((0, 2), (2, 2)),
    "Q5_0": ((0, 2), (2, 4)),
    "Q5_1": ((0, 2), (2, 2), (4, 4)),
    "Q8_0": ((0, 2),),
    "Q2_K": ((80, 2), (82, 2)),
    "Q3_K": ((108, 2),),
    "Q4_K": ((0, 2), (2, 2)),
    "Q5_K": ((0, 2), (2, 2)),
    "Q6_K": ((208, 2),),
    "IQ4_NL": ((0, 2),),
    "IQ4_XS": ((0, 2), (2, 2)),
    "TQ1_0": ((52, 2),),
    "TQ2_0": ((64, 2),),
    "MXFP4": (),
    "NVFP4": (),
}
"""(offset, width) of the fields of a block that follow the file's byte order: ggml's structs, where d, dmin and m are
float16, Q5's qh is one uint32 and IQ4_XS's scales_h one uint16. The rest of each block is single bytes."""


def swapped(data: np.ndarray, qtype: GGMLQuantizationType) -> np.ndarray:
    """A copy of packed blocks, uint8, with each field of FIELDS reversed."""
    blocks = data.reshape(-1, block_nbytes(qtype)).copy()
    for offset, width in FIELDS[qtype.name]:
        blocks[:, offset : offset + width] = blocks[:, offset : offset + width][:, ::-1].copy()
    return blocks.reshape(data.shape)
