"""The scheduler's rules, one by one, and for any arrivals, cancellations, cache sizes and kinds of state."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.engine.request import Request, Status
from rocforge.engine.scheduler import Scheduler
from rocforge.engine.state import NONE, StateManager
from rocforge.nn.state import PagedKV
from rocforge.ops.sampling import SamplingParams

SIZE = 4


def request(*prompt, max_tokens=100):
    return Request(list(prompt), SamplingParams(seed=0, max_tokens=max_tokens))


def step(scheduler, pacer=None):
    """Runs a step, each request's next token being 0; (request, count) of its chunks."""
    chunks = scheduler.schedule(pacer)
    sampled = [chunk.request for chunk in chunks if chunk.needs_logits]
    for chunk in chunks:
        scheduler.advance(chunk)
    for each in sampled:
        scheduler.accepted(each, 0)
    return [(chunk.request, chunk.tokens) for chunk in chunks]


def table(request):
    return request.state.tables[0]


def free(scheduler):
    return scheduler.state.groups[0].pool.free


def scheduler_with(*requests, blocks=16, budget=64, most=8):
    scheduler = Scheduler(StateManager([PagedKV(1, 1, 1)], [blocks], block_size=SIZE), budget, most)
    for each in requests:
        scheduler.add(each)
    return scheduler


def test_decodes_come_first_and_prompts_fill_the_budget():
    """A prompt takes what decodes leave of the budget, in chunks; the next one what that leaves."""
    first, long, last = request(1), request(*range(10)), request(2, 3)
    scheduler = scheduler_with(first, budget=6)
    assert step(scheduler) == [(first, 1)]
    scheduler.add(long), scheduler.add(last)
    assert step(scheduler) == [(first, 1), (long, 5)] and not long.output, "no token follows the first chunk"
    assert step(scheduler) == [(first, 1), (long, 5)] and long.output
    assert step(scheduler) == [(first, 1), (long, 1), (last, 2)]


def test_no_more_requests_than_allowed():
    first, second = request(1), request(2)
    scheduler = scheduler_with(first, second, most=1)
    assert step(scheduler) == step(scheduler) == [(first, 1)]
    scheduler.finish(first)
    assert first.status is Status.FINISHED and step(scheduler) == [(second, 1)]


def test_a_prompt_is_admitted_when_all_of_it_fits():
    """Not before, nor is a later one that would; and the prefix it would have shared is free again."""
    first, long, short = request(1, 2, 3, 4, 5), request(1, 2, 3, 4, *range(9)), request(7)
    scheduler = scheduler_with(first, blocks=4, budget=8)
    assert step(scheduler) == [(first, 5)]
    scheduler.add(long), scheduler.add(short)
    assert step(scheduler) == [(first, 1)] and free(scheduler) == 2 and not long.state.tables
    scheduler.finish(first)
    assert free(scheduler) == 4
    assert step(scheduler) == [(long, 8)] and long.num_cached_tokens == 4 and len(table(long)) == 4, "an exact fit"


def test_a_preempted_request_gives_its_budget_back():
    """Drafted tokens may need a block in the middle of a step: the last request, though scheduled already, yields its
    blocks and its token to those before it, and is first in line again."""
    first, second, last, waiting = request(1, 2, 3, 4), request(5, 6), request(7, 8, 9), request(10)
    scheduler = scheduler_with(first, second, last, blocks=3, budget=9)
    step(scheduler)
    first.output += [0] * 4
    second.output += [0]
    scheduler.add(waiting)
    scheduler.max_batch_tokens = 4
    assert [each.remaining for each in (first, second, last)] == [5, 2, 1]
    assert step(scheduler) == [(first, 3), (second, 1)]
    assert list(scheduler.waiting) == [last, waiting]
    assert (last.status, last.state.tables, last.num_computed_tokens) == (Status.WAITING, [], 0)


def test_a_block_under_way_is_waited_for_and_taken_over():
    """A request with the same beginning waits while another computes it; one behind it need not."""
    first, same, other = request(1, 2, 3, 4, 5), request(1, 2, 3, 4, 6), request(9)
    scheduler = scheduler_with(first, same, other)
    assert step(scheduler) == [(first, 5), (other, 1)]
    assert step(scheduler) == [(first, 1), (other, 1), (same, 1)]
    assert same.num_cached_tokens == 4 and table(same)[0] == table(first)[0]


def test_the_last_token_is_computed_though_it_is_cached():
    first, again = request(*range(8)), request(*range(8))
    scheduler = scheduler_with(first)
    step(scheduler)
    scheduler.finish(first)
    scheduler.add(again)
    assert step(scheduler) == [(again, 4)] and again.num_cached_tokens == 4


def test_equal_blocks_after_different_beginnings_are_not_shared():
    """Neither those of a prompt nor those that were written."""
    first, second, third = request(1, 1, 1, 1, 2, 2, 2, 2), request(2, 2, 2, 2, 3), request(0, 0, 0, 0, 3)
    scheduler = scheduler_with(first)
    for _ in range(5):
        step(scheduler)
    assert first.num_computed_tokens == 12
    scheduler.add(second), scheduler.add(third)
    assert step(scheduler) == [(first, 1), (second, 5), (third, 5)]


def test_a_block_that_is_gone_is_computed():
    """A running request has computed an equal block, but the one that was known for it has been reused."""
    first, again, filler, same = request(*range(8)), request(*range(8)), request(*range(10, 21)), request(*range(9))
    scheduler = scheduler_with(first, blocks=6)
    step(scheduler)
    scheduler.finish(first)
    scheduler.add(again)
    step(scheduler), step(scheduler)
    scheduler.add(filler)
    step(scheduler)
    scheduler.finish(filler)
    scheduler.add(same)
    assert step(scheduler) == [(again, 1), (same, 5)]


def test_blocks_follow_each_other():
    """Where the next block of the cache is free, a request grows into it."""
    before, only = request(1), request(2, 3, 4, 5)
    scheduler = scheduler_with(before, only)
    step(scheduler)
    scheduler.finish(before)
    step(scheduler)
    assert table(only) == [1, 2]


@pytest.mark.parametrize("share, counts", [(1, [1, 1]), (2, [1, 2]), (100, [1, 5])])
def test_the_pacer_bounds_prompts_beside_decodes(share, counts):
    """And nothing where no request decodes."""
    pacer = SimpleNamespace(share=lambda: share)
    first, prompt = request(*range(4)), request(*range(9))
    scheduler = scheduler_with(first, budget=6)
    assert step(scheduler, pacer) == [(first, 4)]
    scheduler.add(prompt)
    assert [count for _, count in step(scheduler, pacer)] == counts


def test_a_finished_request_is_nowhere():
    """Whether it runs or waits."""
    running, waiting = request(1), request(2)
    scheduler = scheduler_with(running, waiting, most=1)
    step(scheduler)
    for each in (running, waiting):
        scheduler.finish(each)
        assert each.status is Status.FINISHED and not each.state.tables
    assert not len(scheduler) and scheduler.state.idle


class TestAhead:
    """Steps that are scheduled while the one before runs, whose tokens are not known."""

    def launch(self, scheduler):
        chunks = scheduler.schedule()
        for chunk in chunks:
            scheduler.advance(chunk)
        return [(chunk.request, chunk.start, chunk.needs_logits) for chunk in chunks]

    def test_a_request_goes_on(self):
        """With the position after the one whose token is pending; accepting it changes nothing of that."""
        only = request(1, 2, 3)
        scheduler = scheduler_with(only)
        assert self.launch(scheduler) == [(only, 0, True)]
        assert self.launch(scheduler) == [(only, 3, True)] and (only.length, only.known) == (5, 3)
        scheduler.accepted(only, 7)
        assert self.launch(scheduler) == [(only, 4, True)] and only.tokens(3, 6) == [7]

    def test_until_its_last_token_is_pending(self):
        only = request(1, 2)
        only.max_length = 4
        scheduler = scheduler_with(only)
        assert self.launch(scheduler) and self.launch(scheduler)
        assert self.launch(scheduler) == [] and len(scheduler) == 1

    def test_a_block_is_known_once_its_tokens_are(self):
        """It is computed by a step that is queued, but only the host can say what it holds."""
        first, same = request(1, 2, 3), request(1, 2, 3, 9, 5)
        scheduler = scheduler_with(first)
        self.launch(scheduler), self.launch(scheduler)
        assert not first.state.digests
        scheduler.accepted(first, 9)
        scheduler.add(same)
        self.launch(scheduler)
        assert same.num_cached_tokens == 4

    def test_a_preempted_request_keeps_its_pending_token(self):
        first, last = request(1, 2, 3), request(4, 5, 6)
        scheduler = scheduler_with(first, last, blocks=2)
        self.launch(scheduler), self.launch(scheduler)
        for each in (first, last):
            scheduler.accepted(each, 0)
        assert self.launch(scheduler) == [(first, 4, True)] and last.status is Status.WAITING
        scheduler.accepted(last, 8)
        assert (last.output, last.remaining) == ([0, 8], 5)


def test_a_long_prompt_leaves_room_for_those_behind():
    """It takes half of what is left, and what the others have not taken; alone it takes all."""
    long, short = request(*range(2000)), request(*range(5000, 5100))
    scheduler = scheduler_with(long, blocks=1000, budget=1000)
    assert step(scheduler) == [(long, 1000)]
    scheduler.add(short)
    assert step(scheduler) == [(long, 900), (short, 100)]


def test_many_short_prompts_are_not_cut_up():
    prompts = [request(i, *range(300)) for i in range(4)]
    scheduler = scheduler_with(*prompts, blocks=1000, budget=1000)
    assert [count for _, count in step(scheduler)] == [301, 301, 256, 142]


@pytest.mark.parametrize("share, tokens", [(1, 4), (7, 8), (9, 8), (14, 16), (40, 20)])
def test_steps_have_sizes(share, tokens):
    """The nearest to what the pacer allows."""
    pacer = SimpleNamespace(share=lambda: share)
    first, prompt = request(1), request(*range(100))
    scheduler = scheduler_with(first, blocks=100, budget=20)
    step(scheduler)
    scheduler.sizes = [1, 4, 8, 16, 20]
    scheduler.add(prompt)
    assert sum(count for _, count in step(scheduler, pacer)) == tokens


class Tokens:
    """A cache that keeps, in place of keys and states, the tokens that they are computed from."""

    def __init__(self, windows, blocks, slots):
        self.paged = [PagedKV(1, 1, 1, window=window) for window in windows]
        self.blocks, self.slots = [{} for _ in windows], {}
        self.manager = StateManager(self.paged, blocks, slots, self.copy, SIZE, sequences=5)

    def copy(self, source, target):
        self.slots[target] = self.slots[source]

    def run(self, chunk, tokens):
        """A chunk reads what its tokens see, which must be what the same tokens were, and writes its own.

        `tokens` are all of its request, also those that the host does not know.
        """
        request, start, stop = chunk.request, chunk.start, chunk.stop
        for state, group, table in zip(self.paged, self.blocks, request.state.tables, strict=True):
            for position in range(start, stop):
                group[table[position // SIZE], position % SIZE] = tokens[: position + 1]
            for position in range(state.first_visible(start), stop):
                assert table[position // SIZE] != NONE
                assert group[table[position // SIZE], position % SIZE] == tokens[: position + 1]
        if self.manager.slots:
            before = self.slots[request.state.slot] if start else []
            assert before == tokens[:start], "a recurrence goes on from just what came before"
            self.slots[request.state.slot] = tokens[:stop]


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
    st.sampled_from([0, 1]),
)
def test_scheduler_rules(arrivals, windows, recurrent, more, budget, most, cancelled, ahead):
    """For any arrivals and cancellations, with the host a step behind or not: budgets hold, no block is written by two,
    each token is computed in order from what the tokens before it left, everything ends, and all blocks and slots are
    free then."""
    recurrent |= not windows
    blocks = [blocks_that_suffice(w, budget, 42) + extra for w, extra in zip(windows, more, strict=False)]
    cache = Tokens(windows, blocks, (2 + more[-1]) * recurrent)
    scheduler = Scheduler(cache.manager, budget, most)
    pending = sorted(arrivals, key=lambda a: a[2])
    truth, queued = {}, []
    for step in range(3000):
        while pending and pending[0][2] <= step:
            prompt, count, _ = pending.pop(0)
            request = Request(list(prompt), SamplingParams(seed=0), max_length=len(prompt) + count)
            truth[request] = [*prompt, *(i % 2 for i in range(count))]
            scheduler.add(request)
        if step in cancelled and scheduler.running:
            scheduler.finish(scheduler.running[0])
        chunks = scheduler.schedule()
        assert sum(chunk.tokens for chunk in chunks) <= budget and len(scheduler.running) <= most
        if scheduler.running and not queued:
            assert chunks
        owners = {}
        for chunk in chunks:
            for group, table in enumerate(chunk.request.state.tables):
                for block in table[chunk.start // SIZE : (chunk.stop - 1) // SIZE + 1]:
                    assert owners.setdefault((group, block), chunk.request) is chunk.request
            cache.run(chunk, truth[chunk.request])
        for chunk in chunks:
            scheduler.advance(chunk)
        queued.append([chunk.request for chunk in chunks if chunk.needs_logits])
        if len(queued) > ahead or not chunks:
            for request in queued.pop(0):
                if request.status is not Status.FINISHED:
                    scheduler.accepted(request, truth[request][request.known])
                    if request.known == request.max_length:
                        scheduler.finish(request)
        if not pending and not len(scheduler):
            break
    assert not len(scheduler) and cache.manager.idle
