"""GGUF's block formats: names, sizes, and blocks as float32."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from rocforge.errors import UnsupportedModelError
from rocforge.formats import q1_0

_OWN = {"Q1_0": q1_0}
"""The formats of which the gguf package knows the size alone, as modules that dequantize rows."""


def _is_read(qtype: GGMLQuantizationType) -> bool:
    if qtype.name in _OWN:
        return True
    try:
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[qtype][1]), np.uint8), qtype)
    except NotImplementedError:
        return False
    return True


QTYPES: dict[str, GGMLQuantizationType] = {qtype.name: qtype for qtype in GGMLQuantizationType if _is_read(qtype)}
"""The block formats that can be read: name -> GGMLQuantizationType."""


def as_qtype(qtype: str | int | GGMLQuantizationType) -> GGMLQuantizationType:
    """The GGMLQuantizationType of a name such as "Q4_K" (case does not matter) or of GGUF's number for it.

    Raises:
        UnsupportedModelError: rocforge cannot read that format.
    """
    name = qtype.upper() if isinstance(qtype, str) else GGMLQuantizationType(qtype).name
    if name not in QTYPES:
        mix = re.fullmatch(r"(I?Q\d_K|IQ\d)_(S|M|L|XL|XS)", name)
        told = "is a mix of types for a whole model" if mix else "is not supported"
        raise UnsupportedModelError(f"tensor type {name} {told}; supported are {', '.join(QTYPES)}")
    return QTYPES[name]


def block_elements(qtype: GGMLQuantizationType) -> int:
    """Elements of a block."""
    return GGML_QUANT_SIZES[qtype][0]


def block_nbytes(qtype: GGMLQuantizationType) -> int:
    """Bytes of a block."""
    return GGML_QUANT_SIZES[qtype][1]


def row_nbytes(columns: int, qtype: GGMLQuantizationType) -> int:
    """Bytes of a row of `columns` elements. Raises ValueError where the row is not a whole number of blocks."""
    block, size = GGML_QUANT_SIZES[qtype]
    if columns % block:
        raise ValueError(f"a row of {columns} elements is not a whole number of {qtype.name} blocks of {block}")
    return columns // block * size


def dequantize(data: np.ndarray, qtype: GGMLQuantizationType, columns: int) -> np.ndarray:
    """The values of packed rows.

    Args:
        data: uint8 (..., bytes of a row).
        columns: elements of a row.

    Returns:
        float32 (..., columns), with the bits that ggml's own code gives.
    """
    shape = (*data.shape[:-1], columns)
    if not data.size:
        return np.zeros(shape, np.float32)
    rows = np.ascontiguousarray(data).reshape(-1, data.shape[-1])
    own = _OWN.get(qtype.name)
    values = own.dequantize(rows) if own else quants.dequantize(rows, qtype)
    return values.astype(np.float32, copy=False).reshape(shape)


def lattice(qtype: GGMLQuantizationType) -> np.ndarray | None:
    """The points that codes of an IQ format stand for, float32 (1, 1, points, dimensions); None for other formats."""
    packing: Any = getattr(quants, qtype.name, None)
    if getattr(packing, "grid_hex", None) is None:
        return None
    packing.init_grid()
    return np.asarray(packing.grid, np.float32)
