"""quantize on a device: launches of quantize_weights.hip, for DEVICE_QTYPES."""

from __future__ import annotations

import functools
import math

import numpy as np
from gguf.constants import GGMLQuantizationType

from rocforge.device.kernels import Kernel
from rocforge.device.libraries import cupy_module
from rocforge.formats.blocks import block_elements, row_nbytes
from rocforge.formats.quantize import largest
from rocforge.ops.device.dequantize import pack
from rocforge.ops.device.strided import blocks, float32
from rocforge.ops.types import Array
from rocforge.quant import QuantizedArray

THREADS = 64
"""Of a block, as the source has them."""
DEVICE_QTYPES = (
    *("Q1_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"),
)
"""The formats that the source packs."""
_LANES = {"Q1_0": 4, "Q2_K": 16, "Q3_K": 16, "Q4_K": 8, "Q5_K": 8, "Q6_K": 16, "IQ4_XS": 8}
"""Threads that share a block of a format, where it is more than one: as the source's quantizers have them."""


def quantize_device(x: Array, qtype: GGMLQuantizationType, importance: np.ndarray | None) -> QuantizedArray | None:
    """A CuPy array (..., columns) packed in a format of DEVICE_QTYPES; waits for the device.

    Args:
        importance: as `rocforge.formats.quantize.normal_importance` gives it, or None.

    Returns:
        Planar rows; None where a value is NaN or too large.
    """
    cupy = cupy_module()
    columns = x.shape[-1]
    data = cupy.empty((*x.shape[:-1], row_nbytes(columns, qtype)), np.uint8)
    count = x.size // block_elements(qtype)
    if count:
        refused = cupy.zeros(1, np.int32)
        a_matrix_each = importance is not None and len(importance) > 1
        matrix_rows = math.prod(x.shape[1:-1]) if a_matrix_each else count
        weights = None if importance is None else cupy.asarray(importance)
        args = (
            float32(x),
            weights,
            data,
            refused,
            count,
            columns // block_elements(qtype),
            matrix_rows,
            largest(qtype),
        )
        _kernel(qtype.name)((blocks(count * _LANES.get(qtype.name, 1), THREADS),), (THREADS,), args)
        if refused.get()[0]:
            return None
    return QuantizedArray(data, x.shape, qtype).with_data(pack(data, qtype, columns), planar=True)


@functools.cache
def _kernel(qtype: str) -> Kernel:
    signature = "float32* float32*? uint8* int32* int32 int32 int32 float32"
    return Kernel("quantize_weights.hip", "quantize_weights", signature, RF_QTYPE=qtype)
