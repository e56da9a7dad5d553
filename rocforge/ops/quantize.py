"""quantize: floats packed in GGUF's block formats."""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from rocforge.device.arrays import asnumpy, get_array_module
from rocforge.formats.blocks import as_qtype
from rocforge.formats.quantize import normal_importance
from rocforge.formats.quantize import quantize as quantize_rows
from rocforge.ops.device.quantize import DEVICE_QTYPES, quantize_device
from rocforge.ops.types import Array
from rocforge.quant import QuantizedArray


def quantize(
    array: Array | QuantizedArray, qtype: str | int | GGMLQuantizationType, importance: Any = None
) -> QuantizedArray:
    """Pack a float array into blocks along its last axis.

    The scales of a block are searched for the smallest squared error, in which the error of a larger element counts
    somewhat more. With importance weights the error of a column also counts as much as they say: llama.cpp's importance
    matrix, the mean square of what the column is multiplied with.

    On a device the formats that products take as they are (the K-quants, IQ4, Q4_0 to Q8_0, MXFP4, Q1_0) are packed by
    a kernel; the others on the host.

    Args:
        array: floats or a QuantizedArray, shape (..., columns), columns a whole number of blocks. Magnitudes are at
            most 65504, float16's largest, but for F32, F16, BF16, MXFP4 and NVFP4.
        qtype: the format, such as "Q4_K", "IQ4_XS", "Q8_0" or "BF16"; all that rocforge reads can be written.
        importance: at least 0, shape (columns,), or (experts, columns) for an array of shape (experts, rows, columns).
            IQ2_XXS, IQ2_XS and IQ1_S need it; formats whose scale follows from the largest element alone (Q8_0, Q1_0,
            TQ1_0, TQ2_0, MXFP4, NVFP4) do not look at it.

    Returns:
        QuantizedArray of the same shape, on the array's device.

    Raises:
        ValueError: the last axis is not a whole number of blocks, a value is NaN or too large for the format,
            or the importance is missing, of another shape or negative.
        TypeError: the array is not of real numbers.
        UnsupportedModelError: the format is not known.

    Source: the formats are ggml's, and the weights of errors as in ggml's quantizers
    (https://github.com/ggml-org/ggml, src/ggml-quants.c).

    >>> import numpy as np, rocforge as rf
    >>> rf.quantize(np.linspace(-1, 1, 512).reshape(2, 256), "Q4_K")
    QuantizedArray(shape=(2, 256), qtype=Q4_K, 4.5 bits per element)
    """
    qtype = as_qtype(qtype)
    array = array.dequantize() if isinstance(array, QuantizedArray) else array
    array = np.asarray(array) if get_array_module(array) is np else array
    if not array.ndim:
        raise ValueError(f"quantize packs the last axis of an array, and {array!r} has none")
    if array.dtype.kind in "cOSUMm":
        raise TypeError(f"quantize packs real numbers, and the array is of {array.dtype}")
    importance = None if importance is None else normal_importance(asnumpy(importance), array.shape)
    if isinstance(array, np.ndarray):
        return QuantizedArray(quantize_rows(array, qtype, importance), array.shape, qtype)
    with array.device:
        packed = quantize_device(array, qtype, importance) if qtype.name in DEVICE_QTYPES else None
    if packed is not None:
        return packed
    # On the host: other formats, and the error of what no block can hold.
    return quantize(asnumpy(array), qtype, importance).to_device(f"gpu:{array.device.id}")
