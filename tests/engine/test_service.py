"""The service: its life, in any order and timing; errors, cancellation, deadlines; nothing is left of a request."""

import asyncio
import random
import threading
import time
from types import SimpleNamespace

import pytest
from counting_model import GREEDY, CountingModel

from rocforge.engine.engine import Engine
from rocforge.engine.reply import CancelledError, DeadlineError, Progress, QueueFullError, ServiceError, StepError
from rocforge.engine.service import Service, State
from rocforge.errors import CardFailedError
from rocforge.ops.sampling import SamplingParams


class Letters:
    """A tokenizer of one letter a token."""

    eog_token_ids = frozenset()

    def detokenizer(self, previous_id=None):
        return SimpleNamespace(add=lambda id: chr(97 + id), finish=lambda: "")


def make(model=None, load_seconds=0.0, loads=None, **options):
    """A service of a CountingModel, which loads once `loads` is set, and the list that its engine goes to."""
    engines = []

    def load():
        time.sleep(load_seconds)
        assert loads is None or loads.wait(10)
        engines.append(Engine(model or CountingModel(), cache_tokens=1024))
        return engines[0], Letters()

    return Service(load, **options), engines


def text(reply):
    return "".join(piece.text for piece in reply)


def assert_clean(service, engines, threads_before=None):
    """No thread, no cache block, no entry in any queue is left."""
    assert service.wait(10)
    for engine in engines:
        assert engine.scheduler.state.idle and not engine.busy and engine.cache is None
    assert not (service._arrived or service._cancelled) and service.in_flight == 0
    assert threads_before is None or set(threading.enumerate()) <= threads_before


def test_text_from_any_thread_and_loop():
    """Replies come to plain threads and to event loops; the model runs in one thread, which is none of these."""
    model = CountingModel()
    service, engines = make(model)
    with service:
        service.wait_until_ready(10)
        texts = {}

        def consume(start):
            texts[start] = text(service.submit([start], GREEDY))

        threads = [threading.Thread(target=consume, args=(start,)) for start in range(4)]
        [thread.start() for thread in threads]
        [thread.join(10) for thread in threads]

        async def collect():
            pieces = []
            for reply in [service.submit([start], GREEDY) for start in range(4)]:
                pieces.append([piece.text async for piece in reply])
            return pieces

        assert ["".join(pieces) for pieces in asyncio.run(collect())] == [texts[start] for start in range(4)]
        assert texts[0] == "bcdefghi"
    assert len(model.threads) == 1 and threading.get_ident() not in model.threads
    assert_clean(service, engines)


def test_start_twice_and_stop_twice():
    """A second start does nothing, as does a second stop; after a stop neither starting nor submitting is possible."""
    service, engines = make()
    before = set(threading.enumerate())
    for _ in range(3):
        service.start()
    service.wait_until_ready(10)
    assert len(set(threading.enumerate()) - before) == 1 and len(engines) == 1
    service.stop()
    service.stop()
    assert service.state is State.STOPPED
    with pytest.raises(ServiceError, match="stopped"):
        service.start()
    with pytest.raises(ServiceError, match="stopped"):
        service.submit([1])
    assert_clean(service, engines, before)


def test_submit_before_start_and_while_it_starts():
    """Before: refused. While the model loads: queued, and answered once it is there; what cannot fit fails then."""
    loads = threading.Event()
    service, _ = make(loads=loads)
    with pytest.raises(ServiceError, match="new"):
        service.submit([1])
    with service:
        reply, wrong = service.submit([3], GREEDY), service.submit([99], GREEDY)
        assert reply.progress is Progress.QUEUED and service.state is State.STARTING
        loads.set()
        assert text(reply) == "efghijkl" and reply.finish_reason == "length"
        with pytest.raises(ValueError, match="outside 0 to 15"):
            text(wrong)


def test_stop_while_it_starts():
    """What waits fails; the thread ends when the loading does; the engine is closed."""
    loads = threading.Event()
    service, engines = make(loads=loads)
    service.start()
    reply = service.submit([1])
    assert not service.stop(timeout=0)
    loads.set()
    with pytest.raises(ServiceError):
        text(reply)
    assert_clean(service, engines)


def test_stop_never_started():
    """It is stopped, and stays so."""
    service, _ = make()
    assert service.stop()
    with pytest.raises(ServiceError):
        service.wait_until_ready()


def test_stop_with_work_in_flight():
    """What finishes within the drain finishes, the rest fails, and what comes meanwhile is refused."""
    model = CountingModel()
    service, engines = make(model)
    service.start()
    service.wait_until_ready(10)
    model.seconds = 0.01
    short = service.submit([1], GREEDY)
    long = service.submit([2], SamplingParams(max_tokens=400, temperature=0))
    stopper = threading.Thread(target=service.stop, args=(1.5,))
    stopper.start()
    while service.state is State.READY:
        time.sleep(0.001)
    with pytest.raises(ServiceError, match="stopping"):
        service.submit([1])
    assert text(short) == "cdefghij"
    with pytest.raises(ServiceError):
        text(long)
    assert 0 < long.completion_tokens < 400 and long.progress is Progress.FAILED
    stopper.join(10)
    assert_clean(service, engines)


def test_a_model_that_does_not_load():
    """The service is FAILED with the reason, for those who wait and those who come."""

    def load():
        raise FileNotFoundError("no such model")

    service = Service(load)
    service.start()
    with pytest.raises(ServiceError, match="failed: no such model") as raised:
        service.wait_until_ready(10)
    assert isinstance(raised.value.__cause__, FileNotFoundError)
    with pytest.raises(ServiceError, match="no such model"):
        service.submit([1])
    assert service.stop() and service.state is State.FAILED


def test_a_failing_step_fails_its_requests_only():
    """They get the error; their blocks are free; later requests are served."""
    model = CountingModel()
    service, engines = make(model)
    with service:
        service.wait_until_ready(10)
        model.failures = 1
        reply = service.submit([1], GREEDY)
        with pytest.raises(StepError, match="MemoryError: no room") as raised:
            text(reply)
        assert isinstance(raised.value.__cause__, MemoryError)
        assert text(service.submit([1], GREEDY)) == "cdefghij"
    assert_clean(service, engines)


def test_three_failing_steps_end_the_service():
    """A device that is gone is not tried for ever."""
    model = CountingModel()
    service, engines = make(model)
    service.start()
    service.wait_until_ready(10)
    model.failures = 3
    for _ in range(3):
        with pytest.raises((StepError, ServiceError)):
            text(service.submit([1], GREEDY))
    assert service.wait(10) and service.state is State.FAILED and isinstance(service.error, MemoryError)
    assert_clean(service, engines)


def test_an_idle_engine_whose_cards_have_ended_fails_when_it_looks():
    service, engines = make()
    service.start()
    service.wait_until_ready(10)
    service.look()
    assert text(service.submit([1], GREEDY)) == "cdefghij" and service.state is State.READY

    def step():
        raise CardFailedError("card 1 (cpu) has ended")

    engines[0].step = step
    assert not service.wait(0.1) and service.state is State.READY
    service.look()
    assert_clean(service, engines)
    assert service.state is State.FAILED and str(service.error) == "card 1 (cpu) has ended"


def test_a_failing_constraint_fails_its_request_only():
    """Another request of the same step goes on, and the constraint is closed."""
    closed = []

    class Broken:
        def bits(self):
            raise RuntimeError("broken")

        def accept(self, token):
            raise AssertionError

        def close(self):
            closed.append(self)

    service, engines = make()
    with service:
        service.wait_until_ready(10)
        good, bad = service.submit([1], GREEDY), service.submit([2], GREEDY, Broken())
        with pytest.raises(RuntimeError, match="broken"):
            text(bad)
        assert text(good) == "cdefghij" and len(closed) == 1
    assert_clean(service, engines)


def test_cancel_frees_blocks_within_a_step():
    """After the step that runs when a request is cancelled, its blocks are free; what had come stays readable."""
    model = CountingModel()
    service, engines = make(model)
    with service:
        service.wait_until_ready(10)
        model.seconds = 0.001
        reply = service.submit(list(range(10)) * 10, SamplingParams(max_tokens=400, temperature=0))
        pieces = iter(reply)
        next(pieces)
        with model.held:
            assert model.waiting.wait(10)
            steps_before = reply.completion_tokens
            reply.cancel()
        with pytest.raises(CancelledError):
            list(pieces)
        assert reply.completion_tokens <= steps_before + 1 and reply.progress is Progress.CANCELLED
        assert engines[0].scheduler.state.idle and service.in_flight == 0
        reply.cancel()
    assert_clean(service, engines)


def test_deadline():
    """A request that is not done in time fails; its blocks are free."""
    model = CountingModel()
    service, engines = make(model)
    with service:
        service.wait_until_ready(10)
        model.seconds = 0.02
        reply = service.submit([1], SamplingParams(max_tokens=400, temperature=0), timeout=0.1)
        with pytest.raises(DeadlineError, match=r"timed out after 0\.1 seconds"):
            text(reply)
        assert reply.completion_tokens < 100 and engines[0].scheduler.state.idle


def test_admission():
    """A request that can never fit is refused at once, as is one too many; both say why."""
    model = CountingModel()
    service, engines = make(model, max_queue=2)
    with service:
        service.wait_until_ready(10)
        with pytest.raises(ValueError, match="512 tokens; the limit is 512"):
            service.submit([1] * 512)
        with pytest.raises(ValueError, match="logit_bias"):
            service.submit([1], SamplingParams(logit_bias={99: 1}))
        model.seconds = 0.05
        replies = [service.submit([1], GREEDY) for _ in range(2)]
        with pytest.raises(QueueFullError, match="limit is 2"):
            for _ in range(3):
                replies.append(service.submit([1], GREEDY))
        assert {text(reply) for reply in replies} == {"cdefghij"}
    assert_clean(service, engines)


def test_a_closed_event_loop_cancels_its_requests():
    """A consumer whose loop is gone counts as a client that is gone."""
    model = CountingModel()
    service, engines = make(model)
    with service:
        service.wait_until_ready(10)
        model.seconds = 0.05
        reply = service.submit([1], SamplingParams(max_tokens=400, temperature=0))

        async def consume():
            async for _ in reply:
                pass

        loop = asyncio.new_event_loop()
        task = loop.create_task(consume())
        loop.run_until_complete(asyncio.sleep(0.08))
        loop.close()
        deadline = time.monotonic() + 5
        while not reply.ended and time.monotonic() < deadline:
            time.sleep(0.01)
        assert reply.progress is Progress.CANCELLED and not task.done()
        task.get_coro().close()
    assert_clean(service, engines)


class Observed:
    """Counts what an observer is told."""

    def __init__(self):
        self.tokens_seen, self.ends = 0, []

    def tokens(self, replies):
        self.tokens_seen += len(replies)

    def ended(self, reply):
        self.ends.append(reply)


@pytest.mark.parametrize("part", range(4))
def test_any_order_and_timing(part):
    """A thousand lives (in four parts): started, used, cancelled and stopped from several threads at random moments;
    each request ends exactly once, as one of the things it may end with, and nothing is left."""
    before = set(threading.enumerate())
    for life in range(250):
        seed = part * 250 + life
        chance = random.Random(seed)
        observer, replies = Observed(), []
        service, engines = make(load_seconds=chance.choice([0, 0, 0.0005, 0.002]), observer=observer)

        def pause(chance):
            time.sleep(chance.choice([0, 0, 0.0001, 0.0005, 0.002]))

        def use(chance, service=service, replies=replies):
            for _ in range(chance.randint(1, 3)):
                pause(chance)
                try:
                    reply = service.submit([1] * chance.randint(1, 70), GREEDY, timeout=chance.choice([None, 0.001]))
                except (ServiceError, QueueFullError):
                    continue
                replies.append(reply)
                if chance.random() < 0.4:
                    pause(chance)
                    reply.cancel()

        def start(chance, service=service):
            pause(chance)
            try:
                service.start()
            except ServiceError:
                assert service.state is not State.NEW

        def stop(chance, service=service):
            pause(chance)
            pause(chance)
            service.stop(drain=chance.choice([0, 0, 0.001]))

        jobs = [start, start, use, use] + [stop] * chance.randint(0, 2)
        threads = [threading.Thread(target=job, args=(random.Random(seed * 31 + i),)) for i, job in enumerate(jobs)]
        chance.shuffle(threads)
        [thread.start() for thread in threads]
        [thread.join(20) for thread in threads]
        assert not any(thread.is_alive() for thread in threads), f"seed {seed}"
        service.stop()
        for reply in replies:
            assert reply.ended, f"seed {seed}"
            try:
                assert text(reply) == "cdefghij", f"seed {seed}"
                assert reply.progress is Progress.FINISHED
            except (CancelledError, DeadlineError, ServiceError):
                assert reply.progress in (Progress.CANCELLED, Progress.FAILED)
        assert sorted(map(id, observer.ends)) == sorted(map(id, replies)), f"seed {seed}"
        assert_clean(service, engines)
    assert set(threading.enumerate()) <= before
