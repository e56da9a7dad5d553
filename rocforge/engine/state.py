"""StateManager: the blocks and slots of the cache that each sequence uses, for all groups of layers.

A group of paged layers has a pool of blocks, and each sequence a table of them. Where the group has a window, a
sequence releases the blocks that none of its tokens to come can see. Recurrent layers have one pool of slots: a
running sequence holds one, and the free ones keep snapshots of sequences at some points, until they are needed.

A prefix that was computed before is taken over at the longest length that all groups have: there a paged group has the
blocks that the next token sees, and recurrent layers have a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rocforge.engine.block_pool import BlockPool
from rocforge.nn.state import PagedKV
from rocforge.ops.state import BLOCK_SIZE

NONE = -1
"""In place of a block that the window has left behind, or of a slot not allocated."""
SNAPSHOT_BLOCKS = 64
"""Blocks between two snapshots of recurrent state; one more is taken at a prompt's last full block."""


@dataclass
class SequenceState:
    """What a sequence holds of the cache.

    Attributes:
        tables: of each paged group, its blocks in order; NONE for those that the window has left behind.
        slot: of its recurrent state, or NONE.
        snapshot: the slot of the snapshot that its recurrent state is to begin with, or NONE.
        row: of the device's copies of the tables, while it runs, or NONE.
        uploaded: how many blocks of each table this copy has.
        digests: of its first full blocks, for sharing prefixes.
        model: what StateManager.model was when it began; else what it holds is of two models, and nobody else's.
    """

    tables: list[list[int]] = field(default_factory=list)
    slot: int = NONE
    snapshot: int = NONE
    row: int = NONE
    uploaded: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    model: int = 0


class PagedBlocks:
    """The blocks of one paged group.

    Args:
        state: what its layers declare.
        blocks: how many there are.
        block_size: tokens of each.
    """

    def __init__(self, state: PagedKV, blocks: int, block_size: int):
        self.state, self.pool = state, BlockPool(blocks, block_size)

    def first_visible(self, position: int) -> int:
        """Index of the first block that the token at a position, or any after it, can see."""
        return self.state.first_visible(position) // self.pool.block_size

    def reusable(self, digests: Sequence[bytes]) -> list[bool]:
        """For each number of blocks from 0, whether a sequence can continue after that many blocks of these digests."""
        known, allowed = 0, [True]
        for count, digest in enumerate(digests, 1):
            known = known + 1 if digest in self.pool else 0
            allowed.append(known >= count - self.first_visible(count * self.pool.block_size))
        return allowed

    def share(self, digests: Sequence[bytes]) -> list[int]:
        """The table of a sequence that begins with these blocks, which are reusable; it holds those that it sees."""
        first = self.first_visible(len(digests) * self.pool.block_size)
        return [NONE] * first + self.pool.share(digests[first:])

    def fits(self, table: Sequence[int], stop: int) -> bool:
        """Whether there are blocks for the tokens up to `stop`."""
        return self.pool.blocks_for(stop) - len(table) <= self.pool.free

    def admits(self, table: Sequence[int], start: int, stop: int, length: int) -> bool:
        """Whether a sequence whose first step takes the tokens from `start` to `stop` will have the blocks for all."""
        first, window = self.first_visible(start), self.state.window
        most = self.pool.blocks_for(length) - first
        if window is not None:
            most = min(most, self.pool.blocks_for(window + stop - start) + 1)
        return most - (len(table) - first) <= self.pool.free

    def extend(self, table: list[int], stop: int) -> None:
        """Add the blocks for the tokens up to `stop` to a table."""
        while len(table) < self.pool.blocks_for(stop):
            table.append(self.pool.allocate(after=table[-1] if table else NONE))

    def trim(self, table: list[int], position: int) -> None:
        """Release the blocks of a table that no token from a position on can see."""
        stop = start = min(self.first_visible(position), len(table))
        while start and table[start - 1] != NONE:
            start -= 1
        self.pool.release(table[start:stop])
        table[start:stop] = [NONE] * (stop - start)

    def release(self, table: Sequence[int]) -> None:
        """Release all blocks of a table."""
        self.pool.release([block for block in table if block != NONE])


class StateManager:
    """What sequences hold of a cache.

    Args:
        paged: what the layers of each paged group declare, in the order of the cache's groups.
        blocks: of each of these groups.
        slots: of recurrent state; 0 where no layer has any.
        copy_slot: copies recurrent state from a slot to another.
        block_size: tokens of a block.
        sequences: that run at a time, at most.

    Attributes:
        groups: the blocks of each paged group.
        slots: the pool of slots, of which those that are free may hold snapshots; None without recurrent state.
        model: how many times the model has changed.
    """

    def __init__(
        self,
        paged: Iterable[PagedKV],
        blocks: Iterable[int],
        slots: int = 0,
        copy_slot: Callable[[int, int], None] = lambda source, target: None,
        block_size: int = BLOCK_SIZE,
        sequences: int = 256,
    ):
        self.groups = [PagedBlocks(*pair, block_size) for pair in zip(paged, blocks, strict=True)]
        self.slots = BlockPool(slots, block_size) if slots else None
        self.block_size, self._copy_slot, self.model = block_size, copy_slot, 0
        self._rows = list(reversed(range(sequences)))
        self._windows = any(group.state.window is not None for group in self.groups)

    @property
    def pools(self) -> list[BlockPool]:
        """The pools of all groups."""
        return [group.pool for group in self.groups] + ([self.slots] if self.slots else [])

    @property
    def idle(self) -> bool:
        """Whether no sequence holds anything."""
        return all(pool.free == pool.blocks for pool in self.pools)

    def model_changed(self) -> None:
        """Share nothing any more of what has been computed, and of running sequences nothing that will be."""
        self.model += 1
        for pool in self.pools:
            pool.forget()

    def share_prefix(self, sequence: SequenceState, blocks: int) -> int:
        """Reuse what the cache has of the first blocks of a sequence that holds nothing.

        Args:
            sequence: its digests are known.
            blocks: how many of its blocks may be reused.

        Returns:
            The number of tokens that need not be computed.
        """
        sequence.model = self.model
        digests = sequence.digests[:blocks]
        allowed = [group.reusable(digests) for group in self.groups]
        if self.slots:
            allowed.append([True, *(digest in self.slots for digest in digests)])
        digests = digests[: max(n for n in range(len(digests) + 1) if all(lengths[n] for lengths in allowed))]
        sequence.tables = [group.share(digests) for group in self.groups]
        if self.slots and digests:
            (sequence.snapshot,) = self.slots.share(digests[-1:])
        return len(digests) * self.block_size

    def admit(self, sequence: SequenceState, start: int, stop: int, length: int) -> bool:
        """Allocate what a sequence needs to start; False, with nothing allocated, if too little is free.

        It gets the blocks of its whole length, which then follow each other where they can; of a group with a window
        those of its first step, if those that it will need later are free as well.

        Args:
            sequence: after `share_prefix`.
            start, stop: the tokens of its first step.
            length: its tokens.
        """
        if self.slots and not self.slots.free:
            return False
        pairs = list(zip(self.groups, sequence.tables, strict=True))
        if not all(group.admits(table, start, stop, length) for group, table in pairs):
            return False
        if self.slots:
            sequence.slot = self.slots.allocate()
            if sequence.snapshot != NONE:
                self._copy_slot(sequence.snapshot, sequence.slot)
                self.slots.release([sequence.snapshot])
                sequence.snapshot = NONE
        sequence.row, sequence.uploaded = self._rows.pop(), [0] * len(self.groups)
        for group, table in pairs:
            group.extend(table, length if group.state.window is None else stop)
        return True

    def grow(self, sequence: SequenceState, start: int, stop: int) -> bool:
        """Allocate a running sequence's blocks for its tokens up to `stop`; False, with none allocated, if too few are
        free. Blocks that no token from `start` on can see are released in either case."""
        if not self._windows:
            for table in sequence.tables:  # at each token that is decoded: `all` takes three times as long
                if len(table) * self.block_size < stop:
                    break
            else:
                return True
        pairs = list(zip(self.groups, sequence.tables, strict=True))
        for group, table in pairs:
            if group.state.window is not None:
                group.trim(table, start)
        if not all(group.fits(table, stop) for group, table in pairs):
            return False
        for group, table in pairs:
            group.extend(table, stop)
        return True

    def chunk_end(self, start: int, stop: int, length: int) -> int:
        """Where a chunk of a sequence's tokens from `start` to `stop` ends, so that a snapshot can be taken there."""
        if not self.slots:
            return stop
        every = SNAPSHOT_BLOCKS * self.block_size
        points = ((start // every + 1) * every, self._last_full(length))
        return min([stop, *(point for point in points if point > start)])

    def computed(self, sequence: SequenceState, start: int, stop: int, length: int, snapshot: bool) -> None:
        """Note that a sequence's tokens from `start` to `stop` are computed: others can take over its full blocks.

        Args:
            sequence: its digests up to `stop` are known.
            start, stop: positions.
            length: its tokens.
            snapshot: whether its recurrent state is the one at `stop`, and not that of a step queued since.
        """
        if sequence.model != self.model:
            return
        blocks = range(start // self.block_size, stop // self.block_size)
        for group, table in zip(self.groups, sequence.tables, strict=True):
            for index in (index for index in blocks if table[index] != NONE):
                group.pool.remember(table[index], sequence.digests[index])
        at_point = stop == self._last_full(length) or stop % (SNAPSHOT_BLOCKS * self.block_size) == 0
        if self.slots and snapshot and stop and at_point:
            self._take_snapshot(self.slots, sequence.slot, sequence.digests[stop // self.block_size - 1])

    def _take_snapshot(self, slots: BlockPool, slot: int, digest: bytes) -> None:
        if digest in slots or not slots.free:
            return
        target = slots.allocate()
        self._copy_slot(slot, target)
        slots.remember(target, digest)
        slots.release([target])

    def _last_full(self, length: int) -> int:
        """The longest reusable prefix of a sequence of that many tokens: its last token is always computed."""
        return (length - 1) // self.block_size * self.block_size

    def release(self, sequence: SequenceState) -> None:
        """Release all blocks and slots of a sequence."""
        for group, table in zip(self.groups, sequence.tables, strict=False):
            group.release(table)
        held = [slot for slot in (sequence.slot, sequence.snapshot) if slot != NONE]
        if self.slots:
            self.slots.release(held)
        if sequence.row != NONE:
            self._rows.append(sequence.row)
        sequence.tables, sequence.slot, sequence.snapshot, sequence.row = [], NONE, NONE, NONE
