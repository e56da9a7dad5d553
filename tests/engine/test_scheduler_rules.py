"""The scheduler's rules, one by one."""

from types import SimpleNamespace

import pytest

from rocforge.engine.request import Request, Status
from rocforge.engine.scheduler import Scheduler
from rocforge.engine.state import StateManager
from rocforge.nn.state import PagedKV
from rocforge.ops.sampling import SamplingParams


def request(*prompt, max_tokens=100):
    return Request(list(prompt), SamplingParams(seed=0, max_tokens=max_tokens))


def pool_of(scheduler):
    return scheduler.state.groups[0].pool


def table_of(request):
    return request.state.tables[0] if request.state.tables else []


def step(scheduler, pacer=None):
    """Runs a step, each request's next token being 0; (request, count) of its work."""
    work = scheduler.schedule(pacer)
    sampling = [item.request for item in work if item.needs_logits]
    for item in work:
        scheduler.advance(item)
    for chosen in sampling:
        chosen.output.append(0)
    return [(item.request, item.count) for item in work]


def scheduler_with(*requests, blocks=16, budget=64, most=8):
    scheduler = Scheduler(StateManager([PagedKV(1, 1, 1)], [blocks], block_size=4), budget, most)
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
    assert step(scheduler) == [(first, 1)] and pool_of(scheduler).free == 2 and not table_of(long)
    scheduler.finish(first)
    assert pool_of(scheduler).free == 4
    assert step(scheduler) == [(long, 8)] and long.num_cached_tokens == 4 and len(table_of(long)) == 4, "an exact fit"


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
    assert (last.status, table_of(last), last.num_computed_tokens) == (Status.WAITING, [], 0)


def test_a_block_under_way_is_waited_for_and_taken_over():
    """A request with the same beginning waits while another computes it; one behind it need not."""
    first, same, other = request(1, 2, 3, 4, 5), request(1, 2, 3, 4, 6), request(9)
    scheduler = scheduler_with(first, same, other)
    assert step(scheduler) == [(first, 5), (other, 1)]
    assert step(scheduler) == [(first, 1), (other, 1), (same, 1)]
    assert same.num_cached_tokens == 4 and table_of(same)[0] == table_of(first)[0]


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
    while first.num_computed_tokens < 12:
        step(scheduler)
    scheduler.add(second), scheduler.add(third)
    assert step(scheduler) == [(first, 1), (second, 5), (third, 5)]


def test_a_block_that_is_not_to_be_had_is_computed():
    """Where a running request has computed a block but an equal one was known then, which is gone since."""
    first, again, filler, same = request(*range(8)), request(*range(8)), request(*range(10, 21)), request(*range(9))
    scheduler = scheduler_with(first, blocks=6)
    step(scheduler)
    scheduler.finish(first)
    known = first.state.digests[1]
    scheduler.add(again)
    step(scheduler), step(scheduler)
    scheduler.add(filler)
    step(scheduler)
    scheduler.finish(filler)
    assert again.state.digests[1] == known and not pool_of(scheduler).share([known])
    scheduler.add(same)
    assert step(scheduler) == [(again, 1), (same, 5)]


def test_blocks_follow_each_other():
    """Where the next block of the cache is free, a request grows into it."""
    before, only = request(1), request(2, 3, 4, 5)
    scheduler = scheduler_with(before, only)
    step(scheduler)
    scheduler.finish(before)
    step(scheduler)
    assert table_of(only) == [1, 2]


@pytest.mark.parametrize("share, counts", [(0, [1]), (2, [1, 2]), (100, [1, 5])])
def test_the_pacer_bounds_prompts_beside_decodes(share, counts):
    """And nothing where no request decodes."""
    pacer = SimpleNamespace(share=lambda decodes: share if decodes else 1 / 0)
    first, prompt = request(1), request(*range(9))
    scheduler = scheduler_with(first, budget=6)
    assert step(scheduler, pacer) == [(first, 1)]
    scheduler.add(prompt)
    assert [count for _, count in step(scheduler, pacer)] == counts


def test_a_finished_request_is_nowhere():
    """Whether it runs or waits."""
    running, waiting = request(1), request(2)
    scheduler = scheduler_with(running, waiting, most=1)
    step(scheduler)
    for each in (running, waiting):
        scheduler.finish(each)
        assert each.status is Status.FINISHED and not table_of(each)
    assert not len(scheduler) and pool_of(scheduler).free == pool_of(scheduler).blocks


class TestRepeats:
    """Whether the step after the next is of the same requests."""

    @pytest.fixture
    def decoding(self):
        """A scheduler, and two requests whose next token fills their block."""
        requests = [request(*range(2), max_tokens=3), request(*range(2, 4), max_tokens=4)]
        scheduler = scheduler_with(*requests, blocks=4)
        step(scheduler)
        return scheduler, requests

    def test_with_room(self, decoding):
        """Yes, and blocks for it are allotted."""
        scheduler, requests = decoding
        assert scheduler.repeats(requests, limit=5) and pool_of(scheduler).free == 2
        step(scheduler)
        requests[0].params = requests[1].params
        assert scheduler.repeats(requests, limit=6) and pool_of(scheduler).free == 0

    def test_someone_waits(self, decoding):
        scheduler, requests = decoding
        scheduler.add(request(9))
        assert not scheduler.repeats(requests, limit=100)

    def test_others_run(self, decoding):
        scheduler, requests = decoding
        assert not scheduler.repeats(requests[:1], limit=100)

    def test_at_the_longest_sequence(self, decoding):
        scheduler, requests = decoding
        assert not scheduler.repeats(requests, limit=4)

    def test_at_the_last_token(self, decoding):
        """The first request may have three."""
        scheduler, requests = decoding
        step(scheduler)
        assert not scheduler.repeats(requests, limit=100)

    def test_without_a_block(self):
        only = request(1, 2, 3)
        scheduler = scheduler_with(only, blocks=1)
        step(scheduler)
        assert not scheduler.repeats([only], limit=100)
