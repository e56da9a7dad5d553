"""Float arrays as packed blocks: the quantizer of each format, and rows cut into tiles that threads share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from gguf import quants
from gguf.constants import GGMLQuantizationType

from rocforge.formats import q1_0
from rocforge.formats.blocks import block_elements, block_nbytes, row_nbytes
from rocforge.formats.quantizers import fp4, iq1, iq4, iq23, k_quants, legacy

Quantizer = Callable[[np.ndarray, np.ndarray | None], np.ndarray]

QUANTIZERS: dict[str, Quantizer] = {
    "Q1_0": lambda x, _: q1_0.quantize(x),
    "Q4_0": legacy.q4_0,
    "Q4_1": legacy.q4_1,
    "Q5_0": legacy.q5_0,
    "Q5_1": legacy.q5_1,
    "Q8_0": legacy.q8_0,
    "Q2_K": k_quants.q2_k,
    "Q3_K": k_quants.q3_k,
    "Q4_K": k_quants.q4_k,
    "Q5_K": k_quants.q5_k,
    "Q6_K": k_quants.q6_k,
    "IQ1_S": iq1.iq1_s,
    "IQ1_M": iq1.iq1_m,
    "IQ2_XXS": iq23.iq2_xxs,
    "IQ2_XS": iq23.iq2_xs,
    "IQ2_S": iq23.iq2_s,
    "IQ3_XXS": iq23.iq3_xxs,
    "IQ3_S": iq23.iq3_s,
    "IQ4_NL": iq4.iq4_nl,
    "IQ4_XS": iq4.iq4_xs,
    "MXFP4": fp4.mxfp4,
    "NVFP4": fp4.nvfp4,
    "TQ1_0": lambda x, _: quants.TQ1_0.quantize_blocks(x),
    "TQ2_0": lambda x, _: quants.TQ2_0.quantize_blocks(x),
}
"""The block formats that can be written."""
NEED_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ1_S")
FLOAT16_MAX = 65504.0
_LARGEST = {"MXFP4": 3e38, "NVFP4": 2688.0}
TILE = 1 << 17
"""Elements that are quantized at once, so that their arrays stay in a core's cache."""


def quantize(array: np.ndarray, qtype: GGMLQuantizationType, importance: np.ndarray | None = None) -> np.ndarray:
    """Rows of floats (..., columns) packed: uint8 (..., bytes of a row).

    Args:
        array: floats, of magnitudes up to `largest` where the format is one of blocks.
        importance: what the error of each column counts, as `normal_importance` gives it, or None.

    Raises:
        ValueError: a row is not a whole number of blocks, a value is NaN or too large, or the importance is
            missing.
    """
    array = np.ascontiguousarray(array)
    elements, columns = block_elements(qtype), array.shape[-1]
    packed = np.empty((*array.shape[:-1], row_nbytes(columns, qtype)), np.uint8)
    if elements == 1:
        packed[...] = quants.quantize(array.astype(np.float32, copy=False), qtype).view(np.uint8)
        return packed
    if qtype.name in NEED_IMPORTANCE and importance is None:
        raise ValueError(f"{qtype.name} needs importance weights: importance=, as `rocforge imatrix` gathers them")
    quantizer = QUANTIZERS[qtype.name]
    blocks, written = array.reshape(-1, elements), packed.reshape(-1, block_nbytes(qtype))
    weights = None if importance is None else _importance_of_blocks(importance, array.shape, elements)

    def quantize_tile(start: int) -> None:
        end = min(start + TILE // elements, len(blocks))
        tile = blocks[start:end].astype(np.float32, copy=False)
        if not np.abs(tile).max() <= largest(qtype):
            raise ValueError(_not_held(array, qtype))
        importance = None if weights is None else weights(np.arange(start, end))
        written[start:end] = quantizer(tile, importance)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(quantize_tile, range(0, len(blocks), TILE // elements)))
    return packed


def largest(qtype: GGMLQuantizationType) -> float:
    """The largest magnitude that is quantized to a format of blocks: most have scales in float16."""
    return _LARGEST.get(qtype.name, FLOAT16_MAX)


def _not_held(array: np.ndarray, qtype: GGMLQuantizationType) -> str:
    index = np.unravel_index(np.argmin(np.abs(array.astype(np.float32)) <= largest(qtype)), array.shape)
    return (
        f"{qtype.name} blocks cannot hold {array[index]:.6g}, the value at {tuple(map(int, index))}; "
        f"magnitudes up to {largest(qtype):g} can be quantized to it"
    )


def normal_importance(importance: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Importance as float32 (matrices, columns), of mean 1 in each matrix, for an array of a shape; one matrix for all.

    Raises:
        ValueError: it is of another shape, negative, or not finite.
    """
    importance = np.asarray(importance, np.float32)
    allowed = [shape[-1:], (shape[0], shape[-1])] if len(shape) == 3 else [shape[-1:]]
    if importance.shape not in allowed:
        told = " or ".join(map(str, allowed))
        raise ValueError(f"importance of shape {importance.shape} is not {told}, for an array of shape {shape}")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError("importance must be finite and at least 0")
    importance = importance.reshape(-1, shape[-1])
    mean = importance.mean(axis=1, keepdims=True)
    # An expert that saw no token, or a column that was always 0, still has values worth their bits.
    return np.where(mean > 0, np.maximum(importance / np.where(mean > 0, mean, 1), 1e-6), 1).astype(np.float32)


def _importance_of_blocks(
    importance: np.ndarray, shape: tuple[int, ...], elements: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives the importance of blocks, float32 (blocks, elements), by their indices."""
    table = importance.reshape(len(importance), -1, elements)
    per_row = shape[-1] // elements
    per_matrix = per_row * math.prod(shape[1:-1]) if len(table) > 1 else 1

    def blocks(indices: np.ndarray) -> np.ndarray:
        return table[indices // per_matrix if len(table) > 1 else 0, indices % per_row]

    return blocks
