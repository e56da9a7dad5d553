"""Order: copies and kernels of one stream, events between two, graphs against the launches that they were made of.

Each is done many times over, with values that differ from one time to the next, so that what is read early or late is
wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from rocforge.device.libraries import cupy_module
from rocforge.device.streams import Stream
from rocforge.ops.activation import scale
from rocforge.ops.device.plan import MAX_TILE_TOKENS
from rocforge.ops.linear import gated_linear, linear
from rocforge.ops.norm import rms_norm
from rocforge.selftest.check import Check, Error, Outcome, Sizes, exact
from rocforge.selftest.products import floats
from rocforge.selftest.weights import random_weight

BUSY = 40
"""Launches that keep a stream busy, so that what should wait for it and does not comes too early."""
UPLOADED = 1 << 14
"""Elements of each upload."""


def checks(sizes: Sizes) -> list[Check]:
    def repeated(name: str, once: Callable[..., Outcome], *args: Any) -> Check:
        return Check(name, functools.partial(once, sizes.rounds, *args))

    return [
        repeated("uploads, kernels and downloads of one stream", _one_stream, sizes.matrix),
        repeated("copies on the device after the library's products", _copies_after_products, sizes.matrix),
        repeated("two streams with an event between them", _two_streams, sizes.matrix),
        repeated("uploads that are on their way together", _uploads),
        repeated("a replayed graph", _graph, sizes.matrix),
    ]


def _worst(errors: list[Error]) -> Outcome:
    return Outcome({"elements": max(errors)})


def _keep_busy(array: Any) -> None:
    """Launches that end with the array as it was."""
    for _ in range(BUSY):
        scale(array, -1.0, out=array)


def _one_stream(rounds: int, shape: tuple[int, int], rng: np.random.Generator) -> Outcome:
    """The host's array changes at once, the device's after the copy back is queued."""
    errors, x = [], floats(rng, *shape)
    with Stream("gpu") as stream:
        for i in range(1, rounds + 1):
            sent = x + np.float32(i)
            expected = sent * np.float32(0.5)
            there = stream.upload(sent)
            sent[...] = 0
            _keep_busy(there)
            pending = stream.download(scale(there, 0.5, out=there))
            scale(there, 0.0, out=there)
            errors.append(exact(pending.get(), expected))
    return _worst(errors)


def _copies_after_products(rounds: int, shape: tuple[int, int], rng: np.random.Generator) -> Outcome:
    """The library's product into an array, its bytes into a second one, which is doubled: as when read after a wait."""
    errors, weight = [], floats(rng, *shape).astype(np.float16)  # packed, kernels of our own might multiply it
    with Stream("gpu") as stream:
        there, copy = cupy_module().asarray(weight), cupy_module().empty((MAX_TILE_TOKENS + 6, shape[0]), np.float32)
        for _ in range(rounds):
            y = linear(stream.upload(floats(rng, MAX_TILE_TOKENS + 6, shape[1])), there)
            copy.data.copy_from_device_async(y.data, y.nbytes)
            doubled = stream.download(scale(copy, 2.0)).get()
            errors.append(exact(doubled, 2 * stream.download(y).get()))
    return _worst(errors)


def _two_streams(rounds: int, shape: tuple[int, int], rng: np.random.Generator) -> Outcome:
    """Each waits for the other in turn, over one array."""
    first, second, errors = Stream("gpu"), Stream("gpu"), []
    x = floats(rng, *shape)
    shared = first.upload(x)
    for _ in range(rounds):
        with first:
            _keep_busy(shared)
            scale(shared, 2.0, out=shared)
        second.wait_for(first)
        with second:
            pending = second.download(shared)
            _keep_busy(shared)
            scale(shared, 0.5, out=shared)
        first.wait_for(second)
        errors += [exact(pending.get(), 2 * x), exact(first.download(shared).get(), x)]
    return _worst(errors)


def _uploads(rounds: int, rng: np.random.Generator) -> Outcome:
    """Pinned memory is not given to the next copy while one is on its way from it."""
    stream, numbers = Stream("gpu"), rng.integers(0, 1 << 30, rounds).astype(np.int32)
    arrays = [stream.upload(np.full(UPLOADED, number)) for number in numbers]
    return _worst([exact(stream.download(a).get(), np.full(UPLOADED, n)) for a, n in zip(arrays, numbers, strict=True)])


def _graph(rounds: int, shape: tuple[int, int], rng: np.random.Generator) -> Outcome:
    """A norm, a gated product and a product, captured, then replayed on other inputs: bit-equal to their launches."""
    rows, columns = shape[0] // 32 * 32, shape[1]
    errors = []
    with Stream("gpu") as stream:
        gate, up = (random_weight(rng, "Q4_K", (rows, columns)).to_device("gpu") for _ in range(2))
        down = random_weight(rng, "Q8_0", (columns, rows)).to_device("gpu")
        norm, x = stream.upload(floats(rng, columns)), stream.upload(floats(rng, 1, columns))

        def step() -> Any:
            return linear(gated_linear(rms_norm(x, norm), gate, up, consumer=down), down, residual=x)

        step()
        current = cupy_module().cuda.get_current_stream()
        current.begin_capture()
        y = step()
        graph = current.end_capture()
        for _ in range(rounds):
            x.data.copy_from_device_async(stream.upload(floats(rng, 1, columns)).data, x.nbytes)
            expected = stream.download(step()).get()
            graph.launch()
            errors.append(exact(stream.download(y).get(), expected))
    return _worst(errors)
