"""BlockPool: allocates the blocks of a paged cache, and shares blocks of common prefixes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from rocforge.nn.state import blocks_for
from rocforge.ops.state import BLOCK_SIZE


def block_digests(tokens: Sequence[int], block_size: int = BLOCK_SIZE, previous: bytes = b"") -> list[bytes]:
    """One digest for each full block of tokens, over its tokens and, through `previous`, all that come before."""
    chain = []
    for start in range(0, len(tokens) - block_size + 1, block_size):
        block = np.asarray(tokens[start : start + block_size], np.int32)
        previous = hashlib.blake2b(previous + block.tobytes(), digest_size=16).digest()
        chain.append(previous)
    return chain


class BlockPool:
    """The blocks of a paged group: reference counts, the free list, and the prefixes that blocks hold.

    Freed blocks keep their content until they are allocated again, least recently used first, so a later sequence that
    starts with the same tokens reuses them instead of computing them.
    """

    def __init__(self, blocks: int, block_size: int = BLOCK_SIZE):
        self.blocks, self.block_size = blocks, block_size
        self._references = [0] * blocks
        self._digests: list[bytes | None] = [None] * blocks
        self._by_digest: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))

    @property
    def free(self) -> int:
        """The number of free blocks."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return blocks_for(tokens, self.block_size)

    def allocate(self, after: int = -1) -> int:
        """A block for one sequence: the one that follows `after` if it is free and empty, else the least recently used.

        Raises:
            MemoryError: no block is free.
        """
        if not self._free:
            raise MemoryError(f"all {self.blocks} KV cache blocks are in use")
        block = after + 1
        if block in self._free and self._digests[block] is None:
            del self._free[block]
        else:
            block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._references[block] = 1
        return block

    def release(self, table: Sequence[int]) -> None:
        """Drop one sequence's references to its blocks; the last block is the first to be reused."""
        for block in reversed(table):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if self._digests[block] is None:  # nothing is lost with it, so it goes before all prefixes
                    self._free.move_to_end(block, last=False)

    def __contains__(self, digest: bytes) -> bool:
        """Whether a block is registered under the digest."""
        return digest in self._by_digest

    def share(self, digests: Sequence[bytes]) -> list[int]:
        """Reference the blocks of the longest known prefix of the digests; the caller releases them."""
        table = []
        for digest in digests:
            block = self._by_digest.get(digest)
            if block is None:
                break
            self._free.pop(block, None)
            self._references[block] += 1
            table.append(block)
        return table

    def remember(self, block: int, digest: bytes) -> None:
        """Register a full block that is in use under its digest."""
        if digest not in self._by_digest:
            self._forget(block)
            self._digests[block], self._by_digest[digest] = digest, block

    def forget(self) -> None:
        """Share no block of those that there are: what they hold is no longer what would be computed."""
        for block in list(self._by_digest.values()):
            self._forget(block)

    def _forget(self, block: int) -> None:
        digest, self._digests[block] = self._digests[block], None
        if digest is not None:
            del self._by_digest[digest]
