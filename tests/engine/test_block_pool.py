"""BlockPool: blocks are handed out once, shared by content, reused oldest first, and never lost."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rocforge.engine.block_pool import BlockPool, block_digests

SIZE = 4


def test_allocates_in_order_and_runs_out():
    """Neighbouring blocks where possible; MemoryError when all are in use."""
    pool = BlockPool(3, SIZE)
    table = [pool.allocate()]
    table += [pool.allocate(table[-1]) for _ in range(1)]
    assert table == [0, 1] and pool.free == 1 and pool.blocks_for(9) == 3
    pool.allocate()
    with pytest.raises(MemoryError, match="all 3 KV cache blocks"):
        pool.allocate()


def test_digests_depend_on_all_that_comes_before():
    """A block's digest changes with its tokens and with those before it, and only full blocks have one."""
    a, b = block_digests([1, 2, 3, 4, 5, 6, 7, 8, 9], SIZE), block_digests([0, 2, 3, 4, 5, 6, 7, 8], SIZE)
    assert len(a) == len(b) == 2 and a[0] != b[0] and a[1] != b[1]
    assert block_digests([5, 6, 7, 8], SIZE, previous=a[0]) == a[1:]


def test_freed_blocks_are_shared_until_reused():
    """A later sequence takes over the blocks of an equal prefix; blocks handed out again are forgotten."""
    pool = BlockPool(3, SIZE)
    digests = block_digests(range(8), SIZE)
    table = [pool.allocate(), pool.allocate()]
    for block, digest in zip(table, digests, strict=True):
        pool.remember(block, digest)
    pool.release(table)
    assert pool.free == 3 and pool.share(digests) == table and pool.free == 1
    pool.release(table)
    assert pool.allocate() == 2, "the block that holds nothing known goes first"
    assert pool.allocate() == 1, "then the end of the prefix"
    assert pool.share(digests) == [0]


def test_the_least_recently_used_prefix_goes_first():
    """Blocks that hold nothing known are reused before prefixes, and of these the one that was used last goes last."""
    pool = BlockPool(4, SIZE)
    prefixes = {name: block_digests([name] * SIZE, SIZE) for name in range(3)}
    for digests in prefixes.values():
        block = pool.allocate()
        pool.remember(block, digests[0])
        pool.release([block])
    pool.release(pool.share(prefixes[0]))
    pool.release([pool.allocate()])
    taken = [pool.allocate()]
    assert all(pool.share(digests) for digests in prefixes.values()), "the block without a prefix was taken"
    for block in range(3):
        pool.release([block])
    pool.release(pool.share(prefixes[0]))
    taken.append(pool.allocate())
    assert pool.share(prefixes[0]) and sum(bool(pool.share(prefixes[name])) for name in (1, 2)) == 1
    assert len(set(taken)) == 2


class PoolMachine(RuleBasedStateMachine):
    """Sequences of random tokens come, grow, and go; a model of the pool checks every step."""

    def __init__(self):
        super().__init__()
        self.pool, self.live = BlockPool(6, SIZE), []

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def arrive(self, tokens):
        digests = block_digests(tokens, SIZE)
        table = self.pool.share(digests)
        need = self.pool.blocks_for(len(tokens)) - len(table)
        if need > self.pool.free:
            self.pool.release(table)
            return
        table = table + [self.pool.allocate(table[-1] if table else -1) for _ in range(need)]
        for block, digest in zip(table, digests, strict=False):
            self.pool.remember(block, digest)
        self.live.append((tokens, table))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def leave(self, data):
        _, table = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.pool.release(table)

    @invariant()
    def blocks_are_free_or_held(self):
        held = {block for _, table in self.live for block in table}
        assert self.pool.free == self.pool.blocks - len(held)

    @invariant()
    def shared_blocks_hold_equal_tokens(self):
        content = {}
        for tokens, table in self.live:
            for i, block in enumerate(table):
                assert content.setdefault(block, tokens[: (i + 1) * SIZE]) == tokens[: (i + 1) * SIZE]


PoolMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase
