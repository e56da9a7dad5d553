"""How many tokens a cache can hold in what a device has free."""

from __future__ import annotations

from rocforge.device.arrays import available_memory
from rocforge.device.memory import amount
from rocforge.errors import DeviceError
from rocforge.nn.config import Config
from rocforge.nn.state import blocks_for
from rocforge.ops.state import BLOCK_SIZE

MARGIN = 1 << 30
"""The most of it, in bytes; an eighth of what is free, where that is less."""


def cache_nbytes(config: Config, tokens: int) -> int:
    """Bytes of a cache on a device that holds that many tokens: float16 keys and values, in whole blocks."""
    return 2 * blocks_for(tokens) * BLOCK_SIZE * config.layers * config.kv_heads * config.head_dim * 2


def cache_tokens_that_fit(config: Config, device: str, most: int) -> int:
    """How many tokens a cache can hold on a GPU in what is free there now, at most `most`.

    Raises:
        DeviceError: not even one block fits.
    """
    free = available_memory(device)
    fitting = tokens_in(free, config)
    if fitting < min(BLOCK_SIZE, most):
        block = amount(cache_nbytes(config, BLOCK_SIZE))
        raise DeviceError(f"a cache block of {BLOCK_SIZE} tokens takes {block}, and {device} has {amount(free)} free")
    return min(fitting, most)


def tokens_in(free: int, config: Config) -> int:
    """Tokens of the largest cache that leaves a margin in that many bytes."""
    return max(free - margin(free), 0) // cache_nbytes(config, BLOCK_SIZE) * BLOCK_SIZE


def margin(free: int) -> int:
    """Bytes of what is free that a cache leaves for activations and libraries."""
    return min(MARGIN, max(free, 0) // 8)
