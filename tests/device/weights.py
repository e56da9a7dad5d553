"""Row lengths that tests of packed weights take."""

from gguf.constants import GGML_QUANT_SIZES

from rocforge.device.tuning import ANY
from rocforge.formats.blocks import QTYPES


def sizes(qtype):
    """Row lengths: whole cells, a last cell in part, and less than one cell, as far as the format's blocks allow."""
    return (512, 544, 96) if GGML_QUANT_SIZES[QTYPES[qtype]][0] <= 32 else (512, 768, 256)


WITHOUT_MATRIX_UNIT = {
    **{"int8_tokens": 8, "tile_tokens": 0, "tile_tokens_alone": 0},
    **{"float_gemv_tokens": 8, "float_tile_tokens": 0},
    "wide_from": ANY,
}
"""What the tuning of a card of RDNA 2 says of products."""
