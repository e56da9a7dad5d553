"""Planar layouts: rows as a device's kernels read them fast.

A row is cut into planes, one for each field of a block, so that consecutive lanes load consecutive 16-byte words;
rawkernels/formats/quants.h has the layout. It holds the same bits as GGUF's blocks, in another order. Floats
stay as they are.
"""

from __future__ import annotations

from typing import NamedTuple

from gguf.constants import GGMLQuantizationType

CELL = 128
"""Elements of a row that lie at one index of all planes."""


class Planes(NamedTuple):
    """Sizes of a format's planes, as quants.h has them.

    Attributes:
        codes: planes of 16 bytes a cell.
        tail: bytes of scales a cell.
        super: bytes that two cells, a block of 256, share.
        wide: whether wide.hip multiplies it.
    """

    codes: int
    tail: int
    super: int = 0
    wide: bool = True


PLANAR: dict[str, Planes] = {
    "Q4_0": Planes(4, 8),
    "Q4_1": Planes(4, 16),
    "Q5_0": Planes(5, 8),
    "Q5_1": Planes(5, 16),
    "Q8_0": Planes(8, 8),
    "Q1_0": Planes(1, 2),
    "Q2_K": Planes(2, 8, 4),
    "Q3_K": Planes(3, 8),
    "Q4_K": Planes(4, 8),
    "Q5_K": Planes(5, 8),
    "Q6_K": Planes(6, 8, 2),
    "IQ4_NL": Planes(4, 8),
    "IQ4_XS": Planes(4, 4),
    "MXFP4": Planes(4, 4),
    "NVFP4": Planes(4, 8),
    "TQ1_0": Planes(1, 8, 6, wide=False),
    "TQ2_0": Planes(2, 0, 2, wide=False),
    "IQ1_S": Planes(1, 8, 2, wide=False),
    "IQ1_M": Planes(1, 8, 8, wide=False),
    "IQ2_XXS": Planes(2, 0, 2, wide=False),
    "IQ2_XS": Planes(2, 4, 2, wide=False),
    "IQ2_S": Planes(2, 8, 2, wide=False),
    "IQ3_XXS": Planes(3, 0, 2, wide=False),
    "IQ3_S": Planes(3, 8, wide=False),
}
"""The formats that are kept in planes on a device."""
KINDS = (
    *("Q4_0", "Q5_1", "Q8_0", "Q1_0", "Q2_K", "Q3_K", "Q4_K", "Q6_K"),
    *("MXFP4", "IQ4_XS", "NVFP4", "TQ1_0", "IQ1_M", "IQ2_XS", "IQ3_S"),
)
"""One of them for each way to unpack codes and scales; the others differ from one of these in sizes or constants."""


def cells_of(columns: int) -> int:
    """Cells of a row of that many elements, the last one perhaps in part."""
    return -(-columns // CELL)


def planar_row_nbytes(columns: int, qtype: GGMLQuantizationType) -> int:
    """Bytes of a planar row; a format's own bytes where the row is whole cells and its planes are whole 16 bytes."""
    planes, cells = PLANAR[qtype.name], cells_of(columns)
    return 16 * planes.codes * cells + _round16(planes.tail * cells) + _round16(planes.super * cells // 2)


def _round16(n: int) -> int:
    return -(-n // 16) * 16
