"""Random packed weights of every format, what activations stand for once rounded, and how far results are off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rocforge.formats.blocks import QTYPES, block_elements, row_nbytes
from rocforge.formats.planar import cells_of
from rocforge.formats.random_blocks import random_blocks
from rocforge.ops.device.operands import PackedOperand
from rocforge.quant import QuantizedArray


def random_bytes(rng: np.random.Generator, qtype: str, shape: tuple[int, ...]) -> QuantizedArray:
    """Blocks of random bytes: every bit pattern, scales that are infinite or not numbers too."""
    nbytes = row_nbytes(shape[-1], QTYPES[qtype])
    return QuantizedArray(rng.integers(0, 256, (*shape[:-1], nbytes), dtype=np.uint8), shape, qtype)


def random_weight(rng: np.random.Generator, qtype: str, shape: tuple[int, ...]) -> QuantizedArray:
    """Blocks of random codes with scales of some hundredths."""
    count = math.prod(shape) // block_elements(QTYPES[qtype])
    return QuantizedArray(random_blocks(rng, QTYPES[qtype], count).reshape(*shape[:-1], -1), shape, qtype)


def values_of(operand: PackedOperand) -> np.ndarray:
    """What an operand in int8 stands for, float64, with the zeros up to whole cells; their sums are checked as well."""
    rows, size = operand.shape
    cells = cells_of(size)
    planes = operand.data.get().reshape(rows, 10, cells, 16)
    q = planes[:, :8].view(np.int8).transpose(0, 2, 1, 3).reshape(rows, cells, 4, 32)
    scales = np.ascontiguousarray(planes[:, 8]).view(np.float32)
    sums = np.ascontiguousarray(planes[:, 9]).view(np.int16).reshape(rows, cells, 4, 2)
    if not np.array_equal(q.reshape(rows, cells, 4, 2, 16).sum(-1), sums):
        raise ValueError("the sums beside int8 activations are not those of their values")
    return (q.astype(np.float64) * scales[..., None]).reshape(rows, -1)


def half_steps(x: np.ndarray) -> np.ndarray:
    """The most that rounding to int8 moves each value of x (rows, columns): half of 1/127 of the largest of its 32."""
    largest = np.abs(np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)).max(-1)
    return largest.repeat(32, axis=1)[:, : x.shape[1]] / 127 * 0.501


def relative_error(y: Any, reference: np.ndarray) -> float:
    """The norm of the difference over that of the reference; y may be a CuPy array."""
    y = np.asarray(y.get() if hasattr(y, "get") else y, np.float64)
    return float(np.linalg.norm(y - reference) / np.linalg.norm(reference))


def product_error(y: Any, x: np.ndarray, w: np.ndarray, *added: np.ndarray) -> float:
    """The norm of the difference of y from x @ w.T + added, over that of all the products and terms that y sums up.

    Without cancellation that is the relative error. Of a sum that nearly cancels, as with rows that are nearly
    proportional, little is left to be relative to, while rounding stays in proportion to the terms.
    """
    x, w = x.astype(np.float64), w.astype(np.float64)
    difference = np.asarray(y.get(), np.float64) - sum(added, x @ w.T)
    return float(np.linalg.norm(difference) / np.sqrt(np.sum(sum((a * a for a in added), (x * x) @ (w * w).T))))
