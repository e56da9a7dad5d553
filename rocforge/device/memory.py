"""Memory of a device: what a model takes, whether that fits, and what happens where it does not after all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from rocforge.device.arrays import available_memory, cupy_module
from rocforge.errors import DeviceError, OutOfMemoryError
from rocforge.loading.upload import device_nbytes
from rocforge.nn.config import Config
from rocforge.nn.state import blocks_for
from rocforge.ops.state import BLOCK_SIZE

LEAST_CACHE_TOKENS = 2048
"""The cache that a model is not loaded without, where no context was asked for."""
MARGIN = 1 << 30
"""Bytes that a cache leaves free for activations and libraries; an eighth of what is free, where that is less."""


def cache_nbytes(config: Config, tokens: int) -> int:
    """Bytes of a cache on a device that holds that many tokens: float16 keys and values, in whole blocks."""
    return 2 * blocks_for(tokens) * BLOCK_SIZE * config.layers * config.kv_heads * config.head_dim * 2


def cache_tokens_that_fit(config: Config, device: str, most: int) -> int:
    """How many tokens a cache can hold on a GPU in what is free there now, at most `most`.

    Raises:
        DeviceError: not even one block fits.
    """
    free = available_memory(device)
    fitting = _tokens_in(free, config)
    if fitting < min(BLOCK_SIZE, most):
        block = _size(cache_nbytes(config, BLOCK_SIZE))
        raise DeviceError(f"a cache block of {BLOCK_SIZE} tokens takes {block}, and {device} has {_size(free)} free")
    return min(fitting, most)


def _tokens_in(free: int, config: Config) -> int:
    """Tokens of the largest cache that leaves a margin in that many bytes."""
    return max(free - _margin(free), 0) // cache_nbytes(config, BLOCK_SIZE) * BLOCK_SIZE


def _margin(free: int) -> int:
    return min(MARGIN, max(free, 0) // 8)


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
    fitting = _tokens_in(free - weight, config)
    if tokens <= fitting:
        return
    needed = f"{_size(weight + cache + _margin(free - weight))} on {device}: {_size(weight)} for weights"
    helps = f" or a shorter context (context={fitting} fits)" if context and fitting else ""
    raise DeviceError(
        f"the model needs {needed}, {_size(cache)} for a cache of {tokens} tokens, the rest to work with; "
        f"{_size(free)} are free; what helps is a smaller quantization{helps}"
    )


@contextlib.contextmanager
def out_of_memory_explained(device: str, purpose: str) -> Iterator[None]:
    """CuPy's out-of-memory error as ours; what nothing uses is given back to the device first.

    While a graph is captured the error stays what it is, since nothing can be given back then.

    Args:
        device: "cpu" or "gpu:N".
        purpose: what the memory was for, as the error begins.
    """
    if device == "cpu":
        yield
        return
    try:
        yield
        return
    except cupy_module().cuda.memory.OutOfMemoryError as error:
        if cupy_module().cuda.get_current_stream().is_capturing():
            raise
        failure = error.with_traceback(None)  # its frames hold what had been allocated
    free = _size(available_memory(device))
    raise OutOfMemoryError(f"{purpose}: {failure} {device} has {free} free now") from failure


def _size(nbytes: int) -> str:
    amount = f"{nbytes / 2**30:.2f} GiB" if nbytes >= 1 << 30 else f"{nbytes / 2**20:.2f} MiB"
    return f"{amount} ({nbytes:,} bytes)"
