"""The cards that rocforge supports, by architecture."""

from __future__ import annotations

AMD = {
    **dict.fromkeys(["gfx908", "gfx90a", "gfx942", "gfx950"], 64),
    **dict.fromkeys([f"gfx{number}" for number in range(1030, 1037)], 32),
    **dict.fromkeys([f"gfx{number}" for number in range(1100, 1104)], 32),
    **dict.fromkeys(["gfx1150", "gfx1151", "gfx1152", "gfx1200", "gfx1201"], 32),
}
"""Architecture -> lanes of a wave: CDNA 1 to 4, RDNA 2, RDNA 3, RDNA 3.5 and RDNA 4."""
OLDEST_NVIDIA = (7, 5)
"""Compute capability."""
SHARED_MEMORY = ("gfx1150", "gfx1151", "gfx1152")
"""APUs: their memory is the host's."""


def base_arch(name: str) -> str:
    """The architecture of a full name: gfx90a of "gfx90a:sramecc+:xnack-"."""
    return name.partition(":")[0]


def has_matrix_unit(arch: str) -> bool:
    """Whether an AMD architecture multiplies matrices in hardware (MFMA or WMMA): all but RDNA 2."""
    return not base_arch(arch).startswith("gfx103")
