"""Groups of CPUs: collectives, and what becomes of members that call others or end."""

import numpy as np
import pytest
from groups import run_together

from rocforge.device.distributed import ALONE
from rocforge.errors import DeviceError


@pytest.mark.parametrize("size", [2, 3])
def test_collectives(size):
    def work(group):
        own = np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * group.rank
        first = own.copy()
        group.broadcast(first)
        return group.all_reduce(own), group.all_gather(own), first

    whole = np.stack([np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * rank for rank in range(size)])
    for summed, gathered, first in run_together(size, work):
        assert (summed == whole.sum(axis=0)).all()
        assert (gathered == whole).all()
        assert (first == whole[0]).all()


def test_messages_go_from_member_to_member():
    def work(group):
        x = np.full(5, group.rank, np.float32)
        if group.rank:
            group.receive(x, group.rank - 1)
        if group.rank < 2:
            group.send(x + 1, group.rank + 1)
        return x[0]

    assert run_together(3, work) == [0, 1, 2]


def test_alone():
    x = np.ones(3, np.float32)
    ALONE.broadcast(x)
    assert ALONE.all_reduce(x) is x and ALONE.all_gather(x).shape == (1, 3)
    with pytest.raises(ValueError, match="a group of one"):
        ALONE.send(x, 1)


def test_calls_that_differ_are_named():
    def work(group):
        x = np.ones((2, 2), np.float32)
        return group.all_gather(x) if group.rank == 1 else group.all_reduce(x)

    calls = r"card 0 \(cpu\) calls all-reduce of float32 \(2, 2\); card 1 \(cpu\) calls all-gather"
    with pytest.raises(DeviceError, match=calls):
        run_together(3, work)


def test_shapes_that_differ_are_named():
    with pytest.raises(
        DeviceError, match=r"all-reduce of float32 \(1,\); card 1 \(cpu\) calls all-reduce of float32 \(2,\)"
    ):
        run_together(2, lambda group: group.all_reduce(np.ones(group.rank + 1, np.float32)))


def test_a_message_of_another_shape_is_named():
    def work(group):
        x = np.ones(group.rank + 1, np.float32)
        return group.receive(x, 0) if group.rank else group.send(x, 1)

    with pytest.raises(DeviceError, match=r"card 1 \(cpu\) receives"):
        run_together(2, work)


def test_a_member_that_ends_is_named():
    def work(group):
        if group.rank == 1:
            raise RuntimeError("gone")
        return group.all_reduce(np.ones(2, np.float32))

    with pytest.raises(DeviceError, match=r"card 1 \(cpu\) has ended"):
        run_together(2, work)
