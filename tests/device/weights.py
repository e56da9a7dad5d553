"""Row lengths that tests of packed weights take."""

import dataclasses

from gguf.constants import GGML_QUANT_SIZES

from rocforge.device.cards import card_of
from rocforge.formats.blocks import QTYPES


def sizes(qtype):
    """Row lengths: whole cells, a last cell in part, and less than one cell, as far as the format's blocks allow."""
    return (512, 544, 96) if GGML_QUANT_SIZES[QTYPES[qtype]][0] <= 32 else (512, 768, 256)


def card_without_matrix_unit(device):
    """A device's card, but of RDNA 2."""
    return dataclasses.replace(card_of(device), arch="gfx1030")
