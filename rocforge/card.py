"""Card: the process of one card of several that compute a model together; see rocforge.engine.cards.

It is started as `python -c "from rocforge.card import main; main()"` with three descriptors: of the connection to rank
0's process, of the memory in which that writes what to do, and of a pipe whose other end closes when that ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import sys
import threading
import warnings
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from rocforge.device.distributed import NcclGroup
from rocforge.device.streams import Stream
from rocforge.engine.capacity import CacheSizes
from rocforge.engine.cards import CardJob
from rocforge.engine.inputs import StepShape
from rocforge.engine.step import StepRunner
from rocforge.load import load_model
from rocforge.loading.files import open_model
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import kept_of, typed

IDLE = 0.02
"""Seconds without a message after which a card looks whether its device has done its work, and done it well."""


class Card:
    """One card's part of a model, and of an engine's cache. Its methods are what rank 0's process may ask for.

    Args:
        job: what it is to do.
        links: connections to the other CPUs.
    """

    def __init__(self, job: CardJob, links: dict[int, Connection]):
        self._group = job.group(links)
        with open_model(job.path) as file:
            self._model = load_model(file, job.device, progress=False, group=self._group, **job.loading)
        self._stream = Stream(self._model.device)
        self._cache: KVCache | None = None
        self._runner: StepRunner | None = None

    def connect(self, unique: bytes) -> None:
        """Meet the other GPUs."""
        assert isinstance(self._group, NcclGroup)
        with self._stream:
            self._group.connect(unique)

    def room(self, types: tuple[str | None, str | None], tokens: int | None, step: int, requests: int) -> Any:
        """Tokens and sequences that this card has room for, as `CacheSizes.room` gives them for an engine."""
        states = typed(kept_of(self._model), *types)
        sizes = CacheSizes(states.values(), self._model.device, step, self._group.size)
        return sizes.room(tokens, self._model.config.context, requests)

    def open(
        self, types: tuple[str | None, str | None], blocks: list[int], slots: int, step: tuple[int, int, int] | None
    ) -> None:
        """Make this card's part of an engine's cache; `step` is what a StepRunner takes after that, on a GPU."""
        with self._stream:
            states = typed(kept_of(self._model), *types)
            self._cache = KVCache(states, blocks, slots=slots, device=self._model.device)
            self._runner = StepRunner(self._stream, self._model, self._cache, *step) if step else None

    def close(self) -> None:
        """Drop what `open` has made."""
        self._cache = self._runner = None

    def compile(self) -> None:
        """Compile the kernels of all steps."""
        assert self._runner is not None
        with self._stream:
            self._runner.compile()

    def step(self, shape: StepShape, staged: np.ndarray) -> None:
        """Queue a step on a GPU."""
        assert self._runner is not None
        with self._stream:
            self._runner.run(shape, staged)

    def run(self, ids: np.ndarray, chunks: list[Chunk]) -> None:
        """Run a step on a CPU."""
        assert self._cache is not None
        self._model(ids, Batch.of(self._cache, chunks))

    def copy_slot(self, source: int, target: int) -> None:
        """As KVCache has it."""
        assert self._cache is not None
        with self._stream:
            self._cache.copy_slot(source, target)

    def logits(self, tokens: np.ndarray) -> None:
        """Call the model with one new sequence."""
        with self._stream:
            self._model(self._stream.upload(tokens))

    def hidden(self, tokens: np.ndarray) -> None:
        """As `logits`, for the last hidden states."""
        with self._stream:
            self._model.hidden(self._stream.upload(tokens))

    def idle(self) -> None:
        """Look whether the device has done its work."""
        self._stream.synchronize()


def main() -> None:
    """Do what rank 0's process says until that ends."""
    control, memory, alive = (int(text) for text in sys.argv[1:])
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    connection = Connection(control)
    warnings.simplefilter("ignore")  # rank 0 says the same
    try:
        job, descriptors = connection.recv()
        _serve(job, {rank: Connection(link) for rank, link in descriptors.items()}, connection, memory)
    except EOFError:
        return  # rank 0's process has ended, or has no more to do
    except BaseException as error:
        with contextlib.suppress(OSError):
            connection.send(("failed", f"{type(error).__name__}: {error}"))
        sys.stderr.flush()
        os._exit(1)


def _serve(job: CardJob, links: dict[int, Connection], connection: Connection, memory: int) -> None:
    card = Card(job, links)
    connection.send(("reply", None))
    told = mmap.mmap(memory, 0, access=mmap.ACCESS_READ)
    while True:
        if not connection.poll(IDLE):
            card.idle()
        length = connection.recv()
        name, args, answers = pickle.loads(told[:length])
        connection.send(("read", None))
        result = getattr(card, name)(*args)
        if answers:
            connection.send(("reply", result))


def _end_with(alive: int) -> None:
    """End this process when rank 0's does, whatever else it waits for."""
    os.read(alive, 1)
    os._exit(1)
