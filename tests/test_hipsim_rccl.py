"""The simulator's RCCL: a process a rank, late as streams are; what does not match is named, in bounded time."""

import pytest
from simulated_program import needs_wheel, simulate

pytestmark = needs_wheel

RANKS = """
import os
from cupy.cuda import nccl
def ranks(size, work):
    # Runs work(rank, communicator) in a process for each rank; prints what each returns or raises, in order.
    unique, pipes = nccl.get_unique_id(), []
    for rank in range(size):
        reader, writer = os.pipe()
        pipes.append(reader)
        if not os.fork():
            with cp.cuda.Device(rank):
                try:
                    said = repr(work(rank, nccl.NcclCommunicator(size, unique, rank)))
                except Exception as error:
                    said = str(error).splitlines()[-1]
            os.write(writer, said.encode())
            os._exit(0)
        os.close(writer)
    for reader in pipes:
        print(os.fdopen(reader).read())
def stream():
    return cp.cuda.Stream(non_blocking=True)
F32, SUM = nccl.NCCL_FLOAT32, nccl.NCCL_SUM
def reduce(comm, x, s):
    comm.allReduce(x.data.ptr, x.data.ptr, x.size, F32, SUM, s.ptr)
"""


def said(program, seconds=20, **settings):
    """What each rank says, of four devices."""
    done = simulate(RANKS + program, "gfx1100", HIPSIM_DEVICES="4", HIPSIM_RCCL_SECONDS=str(seconds), **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


@pytest.mark.parametrize("seed", ["0", "7"])
def test_collectives_of_four(seed):
    program = """
def work(rank, comm):
    with stream() as s:
        x, whole, first = cp.asarray([rank, 1.0], "f4"), cp.zeros(8, "f4"), cp.asarray([rank], "f4")
        comm.allGather(x.data.ptr, whole.data.ptr, 2, F32, s.ptr)
        comm.broadcast(first.data.ptr, first.data.ptr, 1, F32, 2, s.ptr)
        reduce(comm, x, s)
        return x.get().tolist(), whole.get().tolist(), first.get().tolist()
ranks(4, work)
"""
    assert said(program, HIPSIM_SEED=seed) == ["([6.0, 4.0], [0.0, 1.0, 1.0, 1.0, 2.0, 1.0, 3.0, 1.0], [2.0])"] * 4


def test_messages_in_a_ring():
    program = """
def work(rank, comm):
    with stream() as s:
        x, got = cp.asarray([10.0 * rank], "f4"), cp.zeros(1, "f4")
        comm.send(x.data.ptr, 1, F32, (rank + 1) % 3, s.ptr)
        comm.recv(got.data.ptr, 1, F32, (rank + 2) % 3, s.ptr)
        return got.get().tolist()
ranks(3, work)
"""
    assert said(program) == ["[20.0]", "[0.0]", "[10.0]"]


def test_a_graph_replays_them():
    program = """
def work(rank, comm):
    with stream() as s:
        x = cp.asarray([1.0 + rank], "f4")
        s.begin_capture()
        reduce(comm, x, s)
        graph = s.end_capture()
        graph.launch(); graph.launch()
        return x.get().tolist()
ranks(2, work)
"""
    assert said(program) == ["[6.0]"] * 2


def test_a_missing_wait_shows():
    program = """
def work(rank, comm):
    s, other, ones = stream(), stream(), cp.ones(4, "f4")
    x = cp.full(4, 7.0, "f4")
    finish()
    def fill():
        x.data.copy_from_device_async(ones.data, x.nbytes, other)
    fill()
    reduce(comm, x, s)
    s.synchronize()
    late = x.get().tolist()[0]
    x[...] = 7.0
    finish()
    fill()
    s.wait_event(other.record())
    reduce(comm, x, s)
    s.synchronize()
    return late, x.get().tolist()[0]
ranks(2, work)
"""
    for rank in said(program):
        late, right = eval(rank)
        assert late != 2.0
        assert right == 2.0


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("comm.allGather(x.data.ptr, y.data.ptr, 4, F32, s.ptr)", "rank 1 calls all-gather of 4 float32 (0)"),
        ("reduce(comm, x[:2], s)", "rank 1 calls all-reduce of 2 float32 (0)"),
        ("comm.allReduce(x.data.ptr, x.data.ptr, 4, nccl.NCCL_INT32, SUM, s.ptr)", "all-reduce of 4 int32 (0)"),
    ],
)
def test_calls_that_differ_are_named(call, named):
    program = f"""
def work(rank, comm):
    with stream() as s:
        x, y = cp.ones(4, "f4"), cp.ones(8, "f4")
        if rank == 1: {call}
        else: reduce(comm, x, s)
        s.synchronize()
ranks(2, work)
"""
    for rank in said(program):
        assert "the ranks' calls differ: rank 0 calls all-reduce of 4 float32 (0)" in rank
        assert named in rank


def test_a_message_of_another_size_is_named():
    program = """
def work(rank, comm):
    with stream() as s:
        x = cp.ones(4, "f4")
        comm.recv(x.data.ptr, 4, F32, 0, s.ptr) if rank else comm.send(x.data.ptr, 3, F32, 1, s.ptr)
        s.synchronize()
ranks(2, work)
"""
    assert "rank 1 receives message of 4 float32 (0); rank 0 sends message of 3 float32 (0)" in said(program)[1]


def test_ranks_that_wait_for_each_other_are_named():
    program = """
def work(rank, comm):
    with stream() as s:
        x = cp.ones(4, "f4")
        comm.recv(x.data.ptr, 4, F32, 1 - rank, s.ptr)
        s.synchronize()
ranks(2, work)
"""
    first, second = said(program, seconds=1)  # the one that gives up first ends, which the other one may see
    assert "in message of 4 float32 (0), which does not come" in first + second


def test_a_rank_that_ends_and_one_that_aborts():
    program = """
import threading, time
def work(rank, comm):
    with stream() as s:
        x = cp.ones(4, "f4")
        if rank == 1: return "ends"
        reduce(comm, x, s)
        s.synchronize()
def aborts(rank, comm):
    with stream() as s:
        x = cp.ones(4, "f4")
        if rank == 1: time.sleep(2); return "late"
        threading.Timer(0.3, comm.abort).start()
        reduce(comm, x, s)
        s.synchronize()
ranks(2, work)
ranks(2, aborts)
"""
    ended, _, aborted, _ = said(program)
    assert "rank 1 has ended" in ended
    assert "the communicator was aborted" in aborted


def test_out_of_bounds_and_of_another_device():
    program = """
def work(rank, comm):
    with stream() as s:
        x = cp.ones(4, "f4")
        comm.allReduce(x.data.ptr, x.data.ptr, 1 << 20, F32, SUM, s.ptr)
        s.synchronize()
def elsewhere(rank, comm):
    with cp.cuda.Device(3), stream() as s:
        reduce(comm, cp.ones(4, "f4"), s)
ranks(2, work)
ranks(2, elsewhere)
"""
    for rank in said(program, seconds=3)[:2]:
        assert "out of bounds" in rank or "has ended" in rank or "does not come" in rank
    for rank in said(program, seconds=3)[2:]:
        assert "on a stream of device 3" in rank
