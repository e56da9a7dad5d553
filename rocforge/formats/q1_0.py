"""Q1_0: blocks of 128 signs, the lowest bit first, behind a float16 that is the size of all.

Source: block_q1_0 in ggml (https://github.com/ggml-org/ggml, src/ggml-common.h), whose `gguf` package knows its size
alone.
"""

from __future__ import annotations

import numpy as np

ELEMENTS = 128


def dequantize(rows: np.ndarray) -> np.ndarray:
    """uint8 (rows, bytes) as float32 (rows, elements): the size where a bit is set, its negative where not."""
    blocks = rows.reshape(-1, 2 + ELEMENTS // 8)
    size = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    signs = 2 * np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32) - 1
    return (size * signs).reshape(len(rows), -1)


def quantize(rows: np.ndarray) -> np.ndarray:
    """float32 (rows, elements) as uint8 (rows, bytes): the size is the mean of the absolute values."""
    blocks = rows.reshape(-1, ELEMENTS)
    size = np.abs(blocks).mean(axis=1, keepdims=True, dtype=np.float32).astype(np.float16)
    bits = np.packbits(blocks >= 0, axis=1, bitorder="little")
    return np.concatenate([size.view(np.uint8), bits], axis=1).reshape(len(rows), -1)
