"""Weights on their way to a device: the same bytes as `to_device` gives, bounded staging, and nothing left behind."""

import dataclasses
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import cupy as cp
import numpy as np
import pytest

from rocforge.device.cards import card_of
from rocforge.loading import upload
from rocforge.loading.upload import Uploader, device_nbytes
from rocforge.quant import QuantizedArray
from rocforge.selftest.weights import random_bytes

pytestmark = pytest.mark.any_wave


def data_of(weight):
    return weight.data if isinstance(weight, QuantizedArray) else weight


@pytest.fixture
def weights(rng):
    """Every kind: floats with and without axes of length one or none, GGUF's blocks, and planes that end in padding."""
    arrays = [rng.standard_normal(n).astype(np.float32) for n in (1, 777, 0)]
    arrays += [rng.standard_normal((33, 70)).astype(np.float16), np.arange(5, dtype=np.int32)]
    shapes = {"BF16": (19, 50), "Q8_0": (301, 96), "Q6_K": (5, 768), "Q4_K": (3, 7, 256), "TQ2_0": (3, 256)}
    return arrays + [random_bytes(rng, qtype, shape) for qtype, shape in shapes.items()]


@pytest.fixture
def small_buffers(monkeypatch):
    """Buffers of less than some rows, so that each is used several times."""
    monkeypatch.setattr(upload, "BUFFER_NBYTES", 512)


@pytest.mark.parametrize("shares_host_memory", [False, True])
def test_same_bytes_as_to_device(weights, small_buffers, monkeypatch, shares_host_memory):
    """Each arrives as `to_device` would have it, in parts smaller than it, all in one allocation; on an APU too, where
    nothing is staged on the device."""
    card = dataclasses.replace(card_of(0), shares_host_memory=shares_host_memory)
    monkeypatch.setattr(upload, "card_of", lambda device: card)
    read = []
    with Uploader(weights, "gpu:0", read.append) as uploader:
        placed = [uploader.place(weight) for weight in weights]
        assert upload.PARTS * len(uploader._parts) > 5 * upload.BUFFERS
        assert (uploader._staging.size == 0) == shares_host_memory
    assert sum(read) == sum(weight.nbytes for weight in weights)
    for weight, there in zip(weights, placed, strict=True):
        expected = weight.to_device("gpu") if isinstance(weight, QuantizedArray) else cp.asarray(weight)
        assert there.shape == expected.shape and data_of(there).dtype == data_of(expected).dtype
        assert getattr(there, "planar", None) == getattr(expected, "planar", None)
        assert data_of(there).tobytes() == data_of(expected).tobytes()
        assert data_of(there).data.ptr % upload.ALIGNMENT == 0
    first, last = data_of(placed[0]).data.ptr, data_of(placed[-1])
    assert last.data.ptr + device_nbytes(weights[-1]) - first == sum(map(device_nbytes, weights))


class Interrupted(BaseException):
    """As KeyboardInterrupt, which is no Exception."""


@pytest.fixture
def pinned(monkeypatch):
    """The pinned buffers that are allocated at the time."""
    alive = set()

    class Counted(cp.cuda.PinnedMemory):
        def __init__(self, nbytes):
            super().__init__(nbytes)
            alive.add(id(self))

        def __del__(self):
            alive.remove(id(self))

    monkeypatch.setattr(cp.cuda, "PinnedMemory", Counted)
    return alive


def test_memory_is_that_of_the_weights(weights, small_buffers, pinned):
    """After the upload the device holds the weights in their layout, and nothing more; no pinned memory stays."""
    pool = cp.get_default_memory_pool()
    gc.collect()
    pool.free_all_blocks()
    used, total = pool.used_bytes(), pool.total_bytes()
    with Uploader(weights, "gpu:0") as uploader:
        placed = [uploader.place(weight) for weight in weights]
        for part in uploader._parts:
            part.result()
        assert 0 < len(pinned) <= upload.BUFFERS
    nbytes = -(-sum(map(device_nbytes, weights)) // 512) * 512  # the pool's unit
    assert pool.used_bytes() - used == pool.total_bytes() - total == nbytes and not pinned
    del placed, uploader
    assert pool.used_bytes() == used


def upload_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("rocforge-upload")]


@pytest.mark.parametrize("error", [Interrupted, ValueError])
def test_left_through_an_error(weights, small_buffers, pinned, monkeypatch, error):
    """The error comes through, what had not begun is not read, threads have ended, memory is free."""
    pool, read, gate = cp.get_default_memory_pool(), [], threading.Event()
    used, copy = pool.used_bytes(), upload._Buffer.copy

    def late_copy(buffer, source, *args):
        gate.wait(10)
        read.append(source.nbytes)
        copy(buffer, source, *args)

    class Executor(ThreadPoolExecutor):
        def shutdown(self, **options):
            super().shutdown(wait=False, **options)
            gate.set()
            super().shutdown()

    monkeypatch.setattr(upload._Buffer, "copy", late_copy)
    monkeypatch.setattr(upload, "ThreadPoolExecutor", Executor)
    with pytest.raises(error, match="stop"), Uploader(weights, "gpu:0") as uploader:
        placed = [uploader.place(weight) for weight in weights]
        raise error("stop")
    assert len(read) <= upload.READERS * upload.PARTS and not upload_threads() and not pinned
    del placed, uploader
    assert pool.used_bytes() == used


def test_error_of_a_part(weights, small_buffers, monkeypatch):
    """What fails in a thread is raised where the context is left."""

    def fail(*args, **options):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(upload, "pack", fail)
    with pytest.raises(RuntimeError, match="no such kernel"), Uploader(weights, "gpu:0") as uploader:
        for weight in weights:
            uploader.place(weight)
    assert not upload_threads()


def test_out_of_memory_places_nothing(weights):
    """With too little memory the allocation fails before a thread or a buffer exists."""
    pool = cp.get_default_memory_pool()
    gc.collect()  # as CuPy does before it gives up
    pool.free_all_blocks()
    pool.set_limit(pool.used_bytes() + 1024)
    try:
        with pytest.raises(cp.cuda.memory.OutOfMemoryError):
            Uploader(weights, "gpu:0")
    finally:
        pool.set_limit(0)
    assert not upload_threads()
