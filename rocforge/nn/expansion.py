"""Expansion: whether prompts on a device make keys and values of latents, and how many blocks of them at a time.

Latents serve as keys and values as they are, at the cost of longer products; to make keys and values of them costs one
product for each token that is seen. So it pays for chunks of many queries. A captured step has room for a fixed number
of blocks; of which sequences they are is read on the device.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rocforge.device import tuning
from rocforge.nn.cache import KVCache
from rocforge.nn.state import blocks_for

FP16_NBYTES = np.dtype(np.float16).itemsize


def expansion_room(cache: KVCache, tokens: int) -> int:
    """Blocks for which a step of so many tokens has room: at least as many as those of one sequence take. 0 where no
    layer makes keys and values, or so few tokens never do."""
    widest = max((group.state.expanded for group in cache.paged), default=0)
    if not widest or cache.device == "cpu" or tokens < 2 * tuning.current().expanded_queries:
        return 0
    affordable = tuning.current().expanded_nbytes // (FP16_NBYTES * cache.block_size * widest)
    blocks = max(group.blocks for group in cache.paged if group.state.expanded)
    return min(max(affordable, blocks_for(tokens, cache.block_size)), blocks)


def expanded_blocks(cache: KVCache, spans: Iterable[tuple[int, int]]) -> int:
    """Blocks of the sequences with several tokens, where that pays: where their queries, each times what it sees, are
    more than `Tuning.expanded_queries` times what all see. Else 0.

    Args:
        spans: of each sequence the position of its first token, and of the one behind its last.
    """
    several = [(start, stop) for start, stop in spans if stop > start + 1]
    seen = sum((stop - start) * (start + stop) / 2 for start, stop in several)
    if seen < tuning.current().expanded_queries * sum(stop for _, stop in several):
        return 0
    return sum(blocks_for(stop, cache.block_size) for _, stop in several)
