"""Device memory: the pool, its limits, and what the runtime says of pointers."""

import cupy as cp
import pytest

pytestmark = pytest.mark.any_wave


def test_pool_reuses_what_was_freed():
    pool = cp.cuda.MemoryPool()
    with cp.cuda.using_allocator(pool.malloc):
        first = cp.empty(1 << 20, dtype=cp.uint8)
        pointer = first.data.ptr
        assert pool.used_bytes() == 1 << 20
        del first
        assert pool.used_bytes() == 0 and pool.free_bytes() == 1 << 20
        assert cp.empty(1 << 20, dtype=cp.uint8).data.ptr == pointer
    pool.free_all_blocks()
    assert pool.total_bytes() == 0


def test_pool_limit_is_an_out_of_memory_error():
    pool = cp.cuda.MemoryPool()
    pool.set_limit(size=1 << 20)
    with cp.cuda.using_allocator(pool.malloc), pytest.raises(cp.cuda.memory.OutOfMemoryError):
        cp.empty((1 << 20) + 1, dtype=cp.uint8)


def test_device_runs_out_of_memory():
    free, total = cp.cuda.runtime.memGetInfo()
    assert 0 < free <= total
    with pytest.raises(cp.cuda.memory.OutOfMemoryError):
        cp.empty(total + 1, dtype=cp.uint8)


def test_free_memory_goes_down_and_up():
    pool = cp.cuda.MemoryPool()
    before = cp.cuda.runtime.memGetInfo()[0]
    memory = pool.malloc(64 << 20)
    assert cp.cuda.runtime.memGetInfo()[0] <= before - (64 << 20)
    del memory
    pool.free_all_blocks()
    assert cp.cuda.runtime.memGetInfo()[0] >= before - (1 << 20)


def test_pointer_attributes():
    x = cp.zeros(10)
    assert cp.cuda.runtime.pointerGetAttributes(x.data.ptr).device == 0


def test_memset():
    x = cp.empty(1000, dtype=cp.uint8)
    x.data.memset_async(7, 1000, cp.cuda.get_current_stream())
    assert (x.get() == 7).all()
