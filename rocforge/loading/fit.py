"""Whether a model fits on a device, before anything is placed there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rocforge.device.arrays import available_memory
from rocforge.device.memory import amount
from rocforge.engine.capacity import CacheSizes, margin
from rocforge.errors import DeviceError
from rocforge.loading.upload import device_nbytes

LEAST_CACHE_TOKENS = 2048
"""The cache that a model is not loaded without, where no context was asked for."""


def check_fit(sizes: CacheSizes, weights: Iterable[Any], context: int | None, most: int) -> None:
    """Raise a DeviceError, before anything is placed, where a GPU has no room for a model.

    Args:
        sizes: of its cache, there.
        weights: on the CPU, all that are to be placed.
        context: the tokens of one sequence that the cache must hold; None for any useful number.
        most: the longest sequence that the model serves.
    """
    tokens = context or min(most, LEAST_CACHE_TOKENS)
    weight, cache, free = sum(map(device_nbytes, weights)), sizes.nbytes(tokens), available_memory(sizes.device)
    fitting = sizes.tokens_in(free - weight - margin(free - weight), tokens)
    if fitting == tokens:
        return
    needed = f"{amount(weight + cache + margin(free - weight))} on {sizes.device}: {amount(weight)} for weights"
    helps = f" or a shorter context (context={fitting} fits)" if context and fitting else ""
    raise DeviceError(
        f"the model needs {needed}, {amount(cache)} for a cache of {tokens} tokens, the rest to work with; "
        f"{amount(free)} are free; what helps is a smaller quantization{helps}"
    )
