"""Checks that a model fits on a device, before anything is allocated there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rocforge.device.arrays import available_memory
from rocforge.device.memory import amount
from rocforge.engine.capacity import CacheSizes, margin
from rocforge.errors import OutOfMemoryError
from rocforge.loading.upload import device_nbytes

LEAST_CACHE_TOKENS = 2048
"""The smallest KV cache to load a model with, where no context was asked for."""


def check_fit(sizes: CacheSizes, weights: Iterable[Any], context: int | None, most: int) -> None:
    """Raise an OutOfMemoryError, before anything is allocated, where a GPU has no room for a model.

    Args:
        sizes: of its KV cache on the GPU.
        weights: all weights, on the CPU.
        context: tokens that the cache must hold; None: as many as are useful.
        most: the longest sequence that the model serves.
    """
    tokens = context or min(most, LEAST_CACHE_TOKENS)
    weight, cache, free = sum(map(device_nbytes, weights)), sizes.nbytes(tokens), available_memory(sizes.device)
    fitting = sizes.tokens_in(free - weight - margin(free - weight), tokens)
    if fitting == tokens:
        return
    needed = f"{amount(weight + cache + margin(free - weight))} on {sizes.device}: {amount(weight)} for weights"
    helps = f" or a shorter context (context={fitting} fits)" if context and fitting else ""
    raise OutOfMemoryError(
        f"the model needs {needed}, {amount(cache)} for a KV cache of {tokens} tokens, the rest as workspace; "
        f"{amount(free)} are free; use a smaller quantization{helps}"
    )
