"""Streams, events, callbacks and graphs: the order of work."""

import threading
import time

import cupy as cp
import numpy as np
import pytest

pytestmark = pytest.mark.any_wave


@pytest.fixture
def streams():
    return [cp.cuda.Stream(non_blocking=True) for _ in range(2)]


def test_an_event_orders_two_streams(streams):
    first, second = streams
    with first:
        x = cp.zeros(100000, dtype=cp.float32)
        for _ in range(20):
            x += 1
    second.wait_event(first.record())
    with second:
        y = x * 2
    second.synchronize()
    assert (y.get(stream=second) == 40).all()


def test_null_stream_and_blocking_streams_wait_for_each_other():
    blocking = cp.cuda.Stream()
    with blocking:
        x = cp.arange(1000)
    y = x + 1
    with blocking:
        z = y * 2
    np.testing.assert_array_equal(z.get(stream=blocking), (np.arange(1000) + 1) * 2)


def test_pinned_memory_and_asynchronous_copies(streams):
    stream = streams[0]
    host = cp.cuda.alloc_pinned_memory(4000)
    view = np.frombuffer(host, np.float32, 1000)
    view[:] = np.arange(1000)
    with stream:
        device = cp.empty(1000, dtype=cp.float32)
        device.data.copy_from_host_async(host.ptr, 4000, stream)
        device += 1
        device.data.copy_to_host_async(host.ptr, 4000, stream)
    stream.synchronize()
    np.testing.assert_array_equal(view, np.arange(1000) + 1)


def test_events(streams):
    start, stop = cp.cuda.Event(), cp.cuda.Event()
    with streams[0]:
        start.record()
        x = cp.ones(1000)
        stop.record()
    while not stop.done:
        time.sleep(0.001)
    assert cp.cuda.get_elapsed_time(start, stop) >= 0
    assert x.get(stream=streams[0]).sum() == 1000
    assert cp.cuda.Event(disable_timing=True).done


def test_query_becomes_true(streams):
    with streams[0]:
        cp.ones(1000).sum()
    while not streams[0].done:
        time.sleep(0.001)


def test_host_functions_run_in_order(streams):
    seen = []
    with streams[0] as stream:
        x = cp.zeros(10)
        stream.launch_host_func(seen.append, 1)
        x += 1
        stream.launch_host_func(seen.append, 2)
    stream.synchronize()
    assert seen == [1, 2]


def test_threads_with_their_own_streams():
    results = {}

    def work(number):
        cp.cuda.Device(0).use()
        with cp.cuda.Stream(non_blocking=True) as stream:
            x = cp.arange(1000) * number
            results[number] = int(x.sum().get(stream=stream))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: 499500 * n for n in range(8)}


def test_a_captured_graph_replays(streams):
    stream = streams[0]
    with stream:
        x, y = cp.zeros(100, dtype=cp.float32), cp.zeros(100, dtype=cp.float32)
        cp.multiply(x + 1, 2, out=y)  # compiled before the capture
        x.fill(0)
        stream.begin_capture()
        x += 1
        cp.multiply(x, 3, out=y)
        graph = stream.end_capture()
        assert (x.get(stream=stream) == 0).all(), "capturing ran the work"
        for _ in range(5):
            graph.launch()
        assert (y.get(stream=stream) == 15).all()


def test_capture_follows_events_into_other_streams(streams):
    first, second = streams
    with first:
        x = cp.zeros(100, dtype=cp.float32)
        a, b = x + 1, x + 2
    first.synchronize()
    first.begin_capture()
    fork = cp.cuda.Event(disable_timing=True)
    fork.record(first)
    second.wait_event(fork)
    with second:
        a += 10
        join = cp.cuda.Event(disable_timing=True)
        join.record(second)
    with first:
        b += 20
        first.wait_event(join)
        cp.add(a, b, out=x)
    graph = first.end_capture()
    graph.launch(first)
    graph.launch(first)
    first.synchronize()
    assert (x.get(stream=first) == 21 + 42).all()


def test_synchronizing_a_captured_stream_is_refused(streams):
    stream = streams[0]
    stream.begin_capture()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        stream.synchronize()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        stream.end_capture()
