"""Formats and row lengths that tests of packed weights take."""

from gguf.constants import GGML_QUANT_SIZES

from rocforge.formats.blocks import QTYPES

KINDS = (
    *("Q4_0", "Q5_1", "Q8_0", "Q1_0", "Q2_K", "Q3_K", "Q4_K", "Q6_K"),
    *("IQ4_XS", "NVFP4", "TQ1_0", "IQ1_M", "IQ2_XS", "IQ3_S"),
)
"""Formats with planes of which the others differ in sizes alone: those of each way to unpack codes and scales."""


def sizes(qtype):
    """Row lengths: whole cells, a last cell in part, and less than one cell, as far as the format's blocks allow."""
    return (512, 544, 96) if GGML_QUANT_SIZES[QTYPES[qtype]][0] <= 32 else (512, 768, 256)


WITHOUT_MATRIX_UNIT = {"int8_tokens": 8, "tile_tokens": 0, "tile_tokens_alone": 0}
"""What the tuning of a card of RDNA 2 says of products."""
