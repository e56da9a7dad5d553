"""The supported cards, and the properties of a device that decide its code."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from rocforge.device.libraries import cupy_module
from rocforge.errors import UnsupportedCardError

AMD = {
    **dict.fromkeys(["gfx908", "gfx90a", "gfx942", "gfx950"], 64),
    **dict.fromkeys([f"gfx{number}" for number in range(1030, 1037)], 32),
    **dict.fromkeys([f"gfx{number}" for number in range(1100, 1104)], 32),
    **dict.fromkeys(["gfx1150", "gfx1151", "gfx1152", "gfx1200", "gfx1201"], 32),
}
"""Architecture -> lanes of a wave: CDNA 1 to 4, RDNA 2, RDNA 3, RDNA 3.5 and RDNA 4."""
OLDEST_NVIDIA = 75
"""The compute capability 7.5."""
SUPPORTED = (
    "supported are AMD gfx908, gfx90a, gfx942, gfx950, gfx1030 to gfx1036, gfx1100 to gfx1103, gfx1150 to gfx1152, "
    "gfx1200 and gfx1201, and NVIDIA sm_75 and later"
)


FP8_CARDS = "which gfx942, gfx950, gfx1200, gfx1201 and sm_89 and later have"


@dataclass(frozen=True)
class Card:
    """The properties of a GPU that decide the code compiled for it.

    Attributes:
        name: as the driver calls it, such as "AMD Radeon RX 7900 XTX".
        arch: with its features, as ROCm names them: "gfx1100", "gfx90a:sramecc+:xnack-"; "sm_90" on NVIDIA.
        wave: lanes of a wave (a warp).
        compute_units: of an AMD GPU; multiprocessors of an NVIDIA one.
        shares_host_memory: whether its memory is the host's, as an APU's is.
    """

    name: str
    arch: str
    wave: int
    compute_units: int
    shares_host_memory: bool

    @property
    def family(self) -> str:
        """The architecture without its features: "gfx90a" of "gfx90a:sramecc+:xnack-"."""
        return self.arch.partition(":")[0]

    @property
    def is_amd(self) -> bool:
        return self.arch.startswith("gfx")


@functools.cache
def card_of(device: int) -> Card:
    """The card of a device number, supported or not."""
    runtime = cupy_module().cuda.runtime
    properties = runtime.getDeviceProperties(device)
    capability = f"sm_{properties['major']}{properties['minor']}"
    arch = properties["gcnArchName"].decode() if runtime.is_hip else capability
    wave, units = int(properties["warpSize"]), int(properties["multiProcessorCount"])
    return Card(properties["name"].decode(), arch, wave, units, bool(properties["integrated"]))


def is_supported(card: Card) -> bool:
    """Whether rocforge has kernels for a card."""
    if card.is_amd:
        return AMD.get(card.family) == card.wave
    return int(card.arch.removeprefix("sm_")) >= OLDEST_NVIDIA


def has_fp8(card: Card) -> bool:
    """Whether a card converts floats of 8 bits."""
    if card.is_amd:
        return card.family in ("gfx942", "gfx950", "gfx1200", "gfx1201")
    return int(card.arch.removeprefix("sm_")) >= 89


def supported_card(device: int) -> Card:
    """The card of a device number.

    Raises:
        UnsupportedCardError: rocforge has no kernels for it; the message lists the supported ones.
    """
    card = card_of(device)
    if not is_supported(card):
        raise UnsupportedCardError(
            f'gpu:{device}, {card.name} ({card.family}), is not supported; {SUPPORTED}; device="cpu" runs without a GPU'
        )
    return card
