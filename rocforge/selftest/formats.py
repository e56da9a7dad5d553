"""Packed weights on the card: GGUF's blocks in planes and back, their values, and rows by token."""

from __future__ import annotations

import functools

import numpy as np

from rocforge.device.arrays import asnumpy
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.dequantize import dequantize_device
from rocforge.ops.embedding import embedding
from rocforge.selftest.check import Check, Outcome, Sizes, exact
from rocforge.selftest.weights import random_bytes, random_weight


def checks(sizes: Sizes) -> list[Check]:
    return [Check(name, functools.partial(_format, name, sizes.matrix)) for name in sizes.formats]


def _format(qtype: str, shape: tuple[int, int], rng: np.random.Generator) -> Outcome:
    """Any bits come back; values are bit-equal to the gguf package's, and in float16 to those rounded."""
    blocks, weight = random_bytes(rng, qtype, shape), random_weight(rng, qtype, shape)
    there, values = weight.to_device("gpu"), weight.dequantize()
    ids = rng.integers(0, shape[0], (3, 5)).astype(np.int32)
    return Outcome(
        {
            "blocks": exact(blocks.to_device("gpu").to_device("cpu").data, blocks.data),
            "values": exact(asnumpy(there), values),
            "float16": exact(dequantize_device(there, "float16").get(), values.astype(np.float16)),
            "rows by id": exact(embedding(cupy_module().asarray(ids), there).get(), values[ids]),
        }
    )
