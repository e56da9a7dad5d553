"""The scheduler's rules, for any arrivals, cancellations and cache sizes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.engine.block_pool import BlockPool
from rocforge.engine.scheduler import Request, Scheduler
from rocforge.ops.sampling import SamplingParams


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 9)),
        min_size=1,
        max_size=8,
    ),
    st.integers(11, 24),
    st.integers(1, 20),
    st.integers(1, 5),
    st.sets(st.integers(0, 40)),
)
def test_scheduler_rules(arrivals, blocks, budget, most, cancelled):
    """For any arrivals and cancellations: budgets hold, no block is written by two, each token is computed in order,
    decoding requests all run while the budget lasts, and everything ends."""
    pool = BlockPool(blocks, 4)
    scheduler = Scheduler(pool, budget, most)
    pending = sorted(arrivals, key=lambda a: a[2])
    limits, cached = {}, {}
    for step in range(3000):
        while pending and pending[0][2] <= step:
            prompt, count, _ = pending.pop(0)
            request = Request(list(prompt), SamplingParams(seed=0))
            limits[request] = count
            scheduler.add(request)
        if step in cancelled and scheduler.running:
            scheduler.finish(scheduler.running[0])
        work = scheduler.schedule()
        assert sum(item.count for item in work) <= budget and len(scheduler.running) <= most
        if scheduler.running:
            assert work
        written = [request.table[p // 4] for request, n in work for p in range(request.computed, request.computed + n)]
        owners = {}
        for request, n in work:
            for position in range(request.computed, request.computed + n):
                assert owners.setdefault(request.table[position // 4], request) is request
        assert len(written) == sum(item.count for item in work)
        for item in work:
            request, samples = item.request, item.samples
            for position in range(request.computed + item.count):
                if position < request.computed:
                    # what is taken over from the cache is what was computed for the same tokens
                    assert cached[request.table[position // 4], position % 4] == request.tokens(0, position + 1)
                else:
                    cached[request.table[position // 4], position % 4] = request.tokens(0, position + 1)
            scheduler.advance(item)
            if samples:
                request.output.append(len(request.output) % 2)
                if len(request.output) == limits[request]:
                    scheduler.finish(request)
        if not pending and not len(scheduler):
            break
    assert not len(scheduler) and pool.free == blocks
