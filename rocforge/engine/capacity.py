"""Sizes of a KV cache: blocks a group of layers, bytes, and what fits on a device."""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from rocforge.device.arrays import available_memory
from rocforge.device.memory import amount
from rocforge.errors import OutOfMemoryError
from rocforge.nn.state import Declared, PagedKV, Recurrent, blocks_for, groups_of
from rocforge.ops.state import BLOCK_SIZE

SNAPSHOTS = 16
"""Slots for snapshots of recurrent state, beside those of running sequences."""
MAX_BATCH_TOKENS = {"cpu": 512, "gpu": 2048}
"""The default maximum of tokens a step, by device."""
MAX_REQUESTS = 256
"""The default maximum of running requests."""
CPU_CACHE_TOKENS = 16384
"""The default size of the cache on the CPU."""
MARGIN = 2 << 30
"""The most that a cache leaves of a card alone, in bytes, beside what its steps are known to take; an eighth of what is
free, where that is less. Of one of several cards twice as much: sums and logits come in parts, and collectives have
buffers."""


def batch_tokens(device: str) -> int:
    """The default maximum of tokens a step on a device."""
    return MAX_BATCH_TOKENS["cpu" if device == "cpu" else "gpu"]


class CacheSizes:
    """The sizes of a cache for `tokens` tokens in all, of any number of sequences of which `sequences` run at a time.

    Layers that see everything have room for all tokens. Layers with a window have no more than the windows of the
    running sequences need, with the tokens of a step; recurrent layers have a slot for each, and some for snapshots.

    Args:
        states: what each layer declares.
        device: "cpu" or "gpu:N".
        max_batch_tokens: tokens of a step, at most; None: the device's default.
        cards: that compute together.
    """

    def __init__(self, states: Iterable[Declared], device: str, max_batch_tokens: int | None = None, cards: int = 1):
        self._groups, self.device, self._cards = groups_of(states), device, cards
        self._max_batch_tokens = max_batch_tokens or batch_tokens(device)

    def blocks(self, tokens: int, sequences: int) -> list[int]:
        """Blocks of each paged group, in the order of the cache's groups."""
        return [self._blocks_of(state, tokens, sequences) for state in self._groups if isinstance(state, PagedKV)]

    def _blocks_of(self, state: PagedKV, tokens: int, sequences: int) -> int:
        whole = blocks_for(tokens)
        if state.window is None:
            return whole
        # a window begins and ends anywhere in a block, and so does the chunk behind it
        return min(whole, sequences * (blocks_for(state.window) + 2) + blocks_for(self._max_batch_tokens))

    def slots(self, sequences: int) -> int:
        """Slots of recurrent state."""
        return sequences + SNAPSHOTS if any(isinstance(state, Recurrent) for state in self._groups) else 0

    def nbytes(self, tokens: int, sequences: int = 1) -> int:
        """Bytes of the cache."""
        total = 0
        for state, layers in self._groups.items():
            if isinstance(state, PagedKV):
                blocks = self._blocks_of(state, tokens, sequences)
                total += layers * blocks * state.block_nbytes(BLOCK_SIZE, self.device)
            else:
                total += layers * self.slots(sequences) * state.nbytes
        return total

    def tokens_in(self, nbytes: int, most: int, sequences: int = 1) -> int:
        """The most tokens, in whole blocks, of a cache in that many bytes; `most` where that fits."""
        if self.nbytes(most, sequences) <= nbytes:
            return most
        blocks = range(1, blocks_for(most))
        return BLOCK_SIZE * bisect.bisect_right(
            blocks, nbytes, key=lambda count: self.nbytes(count * BLOCK_SIZE, sequences)
        )

    def tokens_that_fit(self, context: int, sequences: int, steps: int = 0) -> int:
        """Tokens of the cache for so many sequences that the device has room for, as far as they can use it.

        Where that is less than one context, fewer sequences have room for their windows. `steps` bytes stay free for
        them, beside the margin.

        Raises:
            OutOfMemoryError: not even one block fits.
        """
        free = available_memory(self.device)
        room, most = self._room(free - steps), sequences * context
        tokens = max(self.tokens_in(room, most, sequences), self.tokens_in(room, context))
        if tokens < min(BLOCK_SIZE, context):
            least = amount(self.nbytes(BLOCK_SIZE))
            problem = f"a KV cache of {BLOCK_SIZE} tokens takes {least}; {self.device} has {amount(free)} free"
            raise OutOfMemoryError(problem)
        return tokens

    def room(self, tokens: int | None, context: int, requests: int, steps: int = 0) -> tuple[int, int]:
        """Tokens, and running sequences, that an engine's cache has.

        Args:
            tokens: as asked for; None: the default.
            context: the longest sequence of the model.
            requests: that may run, at most.
            steps: bytes that steps take beside the cache, as far as that is known.

        Raises:
            OutOfMemoryError: not even one block fits.
        """
        if self.device == "cpu":
            return tokens or min(context, CPU_CACHE_TOKENS), requests
        tokens = tokens or self.tokens_that_fit(context, requests, steps)
        return tokens, self.sequences_that_fit(tokens, requests, steps)

    def sequences_that_fit(self, tokens: int, most: int, steps: int = 0) -> int:
        """Sequences, up to `most`, of a cache of so many tokens that the device has room for; 1 where it has none."""
        free = available_memory(self.device) - steps
        counts = range(1, most + 1)
        return max(1, bisect.bisect_right(counts, self._room(free), key=lambda n: self.nbytes(tokens, n)))

    def _room(self, free: int) -> int:
        """Bytes of what is free that a cache may have."""
        return free - margin(free, self._cards)


def margin(free: int, cards: int = 1) -> int:
    """Bytes of what is free that a cache leaves for libraries, and for activations, on one of so many cards."""
    times = 1 if cards == 1 else 2
    return times * min(MARGIN, max(free, 0) // 8)
