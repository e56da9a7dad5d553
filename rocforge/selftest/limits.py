"""What a card can do by its makers' data sheets: bytes a second of its memory, and float16 products."""

from __future__ import annotations

from typing import NamedTuple

from rocforge.device.libraries import cupy_module


class Limits(NamedTuple):
    """GB/s of the memory and dense float16 TFLOP/s of the matrix unit; None where they are not known."""

    bandwidth: float | None
    products: float | None


AMD = {
    "MI355X": Limits(8000, 2516),
    "MI350X": Limits(8000, 2307),
    "MI325X": Limits(6000, 1307),
    "MI300X": Limits(5300, 1307),
    "MI300A": Limits(5300, 981),
    "MI250X": Limits(1638, 191.5),
    "MI250": Limits(1638, 181),
    "MI210": Limits(1638, 181),
    "MI100": Limits(1229, 184.6),
    "9070 XT": Limits(640, 195),
    "9070 GRE": Limits(432, 137),
    "9070": Limits(640, 145),
    "9060 XT": Limits(320, 103),
    "7900 XTX": Limits(960, 122.8),
    "7900 XT": Limits(800, 103.2),
    "7900 GRE": Limits(576, 92),
    "W7900": Limits(864, 122.6),
    "W7800": Limits(576, 90.5),
    "7800 XT": Limits(624, 74.7),
    "7700 XT": Limits(432, 70.3),
    "7600 XT": Limits(288, 45.1),
    "7600": Limits(288, 43.5),
    "6950 XT": Limits(576, 47.3),
    "6900 XT": Limits(512, 46.1),
    "6800 XT": Limits(512, 41.5),
    "6800": Limits(512, 32.3),
    "8060S": Limits(256, 59.4),
    "8050S": Limits(256, 44.5),
}
"""By a part of the name; the first that fits. Of MI250 and MI250X, what one of the two devices of a card has."""


def limits_of(name: str) -> Limits:
    """Of the current device, by its name; on NVIDIA the memory's alone, by its clock and width."""
    cupy = cupy_module()
    if cupy.cuda.runtime.is_hip:
        # what ROCm reports for a clock is not what the memory transfers at, by a factor that differs between kinds
        return next((limits for part, limits in AMD.items() if part in name), Limits(None, None))
    attributes = cupy.cuda.Device().attributes
    clock, width = attributes.get("MemoryClockRate"), attributes.get("GlobalMemoryBusWidth")
    return Limits(2 * clock * 1e3 * width / 8 / 1e9 if clock and width else None, None)
