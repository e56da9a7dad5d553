"""Results of `rocforge tune`, stored beside compiled kernels: a file per architecture and number of compute units.

    {"arch": "gfx942", "compute_units": 304, "values": {"gemv_small_rows": 8192}}

A file that is damaged, for another card, or has a value outside the candidates is ignored with a warning.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from rocforge.device import kernel_cache
from rocforge.device.cards import Card

CANDIDATES: dict[str, tuple[int, ...]] = {
    "gemv_small_rows": (0, 2048, 4096, 8192, 16384),
    "gemv_threads": (64, 128, 256),
    "gemv_wanted_threads": (75_000, 150_000, 300_000, 600_000),
    "int8_tokens": (1, 2, 3, 4, 8),
    "unsplit_tokens": (32, 64, 128, 256, 512),
    "decode_blocks": (1, 2, 4),
    "tile_blocks": (1, 2, 3, 4),
}
"""Fields of rocforge.device.tuning.Tuning that are measured, and the values to try: all give correct results."""


def path_of(card: Card) -> Path:
    """The file for cards with this architecture and number of compute units."""
    return kernel_cache.folder() / f"tuning-{card.family}-{card.compute_units}.json"


def measured(card: Card) -> dict[str, int]:
    """The measured values for such a card, by field; empty without a valid file."""
    path = path_of(card)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        return _ignored(path, str(error))
    try:
        content = json.loads(text)
        about, values = (content["arch"], content["compute_units"]), dict(content["values"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return _ignored(path, "not a file of `rocforge tune`")
    if about != (card.family, card.compute_units):
        return _ignored(path, f"it is for {about[0]} with {about[1]} compute units")
    for name, value in values.items():
        if type(value) is not int or value not in CANDIDATES.get(name, ()):
            return _ignored(path, f"{name} is {value!r}")
    return values


def _ignored(path: Path, reason: str) -> dict[str, Any]:
    warnings.warn(f"ignoring {path}: {reason}; `rocforge tune` rewrites it", stacklevel=2)
    return {}


def store(card: Card, values: dict[str, int]) -> Path:
    """Save what was measured on a card for later runs; returns the file."""
    path = path_of(card)
    content = {"arch": card.family, "compute_units": card.compute_units, "values": values}
    kernel_cache.write(path, json.dumps(content, indent=2).encode() + b"\n")
    return path
