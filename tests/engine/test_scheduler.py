"""The scheduler's rules, for any arrivals, cancellations, cache sizes and kinds of state."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.engine.request import Request
from rocforge.engine.scheduler import Scheduler
from rocforge.engine.state import NONE, StateManager
from rocforge.nn.state import PagedKV
from rocforge.ops.sampling import SamplingParams

SIZE = 4


class Tokens:
    """A cache that keeps, in place of keys and states, the tokens that they are computed from."""

    def __init__(self, windows, blocks, slots):
        self.paged = [PagedKV(1, 1, 1, window=window) for window in windows]
        self.blocks, self.slots = [{} for _ in windows], {}
        self.manager = StateManager(self.paged, blocks, slots, self.copy, SIZE)

    def copy(self, source, target):
        self.slots[target] = self.slots[source]

    def run(self, chunk):
        """A chunk reads what its tokens see, which must be what the same tokens were, and writes its own."""
        request, start, stop = chunk.request, chunk.start, chunk.stop
        for state, group, table in zip(self.paged, self.blocks, request.state.tables, strict=True):
            for position in range(start, stop):
                group[table[position // SIZE], position % SIZE] = request.tokens(0, position + 1)
            for position in range(state.first_visible(start), stop):
                assert table[position // SIZE] != NONE
                assert group[table[position // SIZE], position % SIZE] == request.tokens(0, position + 1)
        if self.manager.slots:
            before = self.slots[request.state.slot] if start else []
            assert before == request.tokens(0, start), "a recurrence goes on from just what came before"
            self.slots[request.state.slot] = request.tokens(0, stop)


def blocks_that_suffice(window, budget, longest):
    """Of a group, for one request alone."""
    whole = -(-longest // SIZE)
    return whole if window is None else min(whole, -(-window // SIZE) + 2 + -(-budget // SIZE))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 9)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([(None,), (None, 5), (3, None, 12), (1,), (9, 2), ()]),
    st.booleans(),
    st.lists(st.integers(0, 12), min_size=4, max_size=4),
    st.integers(1, 20),
    st.integers(1, 5),
    st.sets(st.integers(0, 40)),
)
def test_scheduler_rules(arrivals, windows, recurrent, more, budget, most, cancelled):
    """For any arrivals and cancellations: budgets hold, no block is written by two, each token is computed in order
    from what the tokens before it left, decoding requests all run while the budget lasts, everything ends, and all
    blocks and slots are free then."""
    recurrent |= not windows
    blocks = [blocks_that_suffice(w, budget, 42) + extra for w, extra in zip(windows, more, strict=False)]
    cache = Tokens(windows, blocks, (2 + more[-1]) * recurrent)
    scheduler = Scheduler(cache.manager, budget, most)
    pending = sorted(arrivals, key=lambda a: a[2])
    limits = {}
    for step in range(3000):
        while pending and pending[0][2] <= step:
            prompt, count, _ = pending.pop(0)
            request = Request(list(prompt), SamplingParams(seed=0))
            limits[request] = count
            scheduler.add(request)
        if step in cancelled and scheduler.running:
            scheduler.finish(scheduler.running[0])
        chunks = scheduler.schedule()
        assert sum(chunk.count for chunk in chunks) <= budget and len(scheduler.running) <= most
        if scheduler.running:
            assert chunks
        owners = {}
        for chunk in chunks:
            for group, table in enumerate(chunk.request.state.tables):
                for block in table[chunk.start // SIZE : (chunk.stop - 1) // SIZE + 1]:
                    assert owners.setdefault((group, block), chunk.request) is chunk.request
            cache.run(chunk)
        for chunk in chunks:
            request, needs_logits = chunk.request, chunk.needs_logits
            scheduler.advance(chunk, snapshot=step % 3 > 0)
            if needs_logits:
                request.output.append(len(request.output) % 2)
                if len(request.output) == limits[request]:
                    scheduler.finish(request)
        if not pending and not len(scheduler):
            break
    assert not len(scheduler) and cache.manager.idle
