"""Whether a model fits on a device, before anything is placed there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rocforge.device.arrays import available_memory
from rocforge.device.memory import amount
from rocforge.engine.capacity import cache_nbytes, margin, tokens_in
from rocforge.errors import DeviceError
from rocforge.loading.upload import device_nbytes
from rocforge.nn.config import Config

LEAST_CACHE_TOKENS = 2048
"""The cache that a model is not loaded without, where no context was asked for."""


def check_fit(config: Config, weights: Iterable[Any], device: str, context: int | None) -> None:
    """Raise a DeviceError, before anything is placed, where a GPU has no room for a model.

    Args:
        config: the model's.
        weights: on the CPU, all that are to be placed.
        device: "gpu:N".
        context: the tokens that the cache must hold; None for any useful number.
    """
    tokens = context or min(config.context, LEAST_CACHE_TOKENS)
    weight, cache, free = sum(map(device_nbytes, weights)), cache_nbytes(config, tokens), available_memory(device)
    fitting = tokens_in(free - weight, config)
    if tokens <= fitting:
        return
    needed = f"{amount(weight + cache + margin(free - weight))} on {device}: {amount(weight)} for weights"
    helps = f" or a shorter context (context={fitting} fits)" if context and fitting else ""
    raise DeviceError(
        f"the model needs {needed}, {amount(cache)} for a cache of {tokens} tokens, the rest to work with; "
        f"{amount(free)} are free; what helps is a smaller quantization{helps}"
    )
