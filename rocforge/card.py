"""Card: the process of one card of several that compute a model together; see rocforge.engine.cards."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from rocforge.device.distributed import HostGroup
from rocforge.device.links import Address, wait_until_gone
from rocforge.device.streams import Stream
from rocforge.engine.capacity import CacheSizes
from rocforge.engine.cards import CardJob
from rocforge.engine.inputs import StepShape
from rocforge.engine.step import StepRunner
from rocforge.load import load_model
from rocforge.loading.files import fingerprint, open_model
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import kept_of, typed

IDLE = 0.02
"""Seconds without a message after which a card looks whether its device has done its work, and done it well."""
GRACE = 1.0
"""Seconds after the end of rank 0's process, or of its link, in which this one stops waiting for other things."""


class Card:
    """One card's part of a model, and of an engine's cache. Its methods are what rank 0's process may ask for.

    Args:
        job: what it is to do.

    Attributes:
        door: where it is met by others, between CPUs.

    Raises:
        ValueError: the model is another one than rank 0 has.
    """

    def __init__(self, job: CardJob):
        with open_model(job.path) as file:
            if fingerprint(file.paths) != job.fingerprint:
                raise ValueError(f"{job.path} is another file there than card 0 has")
            self._group = job.group()
            self._model = load_model(file, job.device, progress=False, group=self._group, **job.loading)
        self._stream = Stream(self._model.device)
        self._cache: KVCache | None = None
        self._runner: StepRunner | None = None

    @property
    def door(self) -> Address | None:
        return self._group.door.address if isinstance(self._group, HostGroup) and self._group.door else None

    def connect(self, meeting: Any) -> None:
        """Meet the others, with what their kind of group connects with."""
        with self._stream:
            self._group.connect(meeting)

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
    """Serve rank 0's process, which has started this one with the descriptor of its link."""
    serve(Connection(int(sys.argv[1])))
    os._exit(0)  # nothing is to wait for a device that waits for others


def serve(control: Connection) -> None:
    """Do what rank 0's process says until that hangs up; an error is told to it, and ends this process.

    Args:
        control: the link to it, whose first message is a CardJob.
    """
    threading.Thread(target=_end_with, args=(control,), daemon=True).start()
    warnings.simplefilter("ignore")  # rank 0 says the same
    try:
        card = Card(control.recv())
        control.send(("reply", card.door))
        while True:
            if not control.poll(IDLE):
                card.idle()
            name, args, answers = control.recv()
            result = getattr(card, name)(*args)
            if answers:
                control.send(("reply", result))
    except EOFError:
        return
    except BaseException as error:
        with contextlib.suppress(OSError):
            control.send(("failed", f"{type(error).__name__}: {error}"))
        sys.stderr.flush()
        os._exit(1)


def _end_with(control: Connection) -> None:
    """End this process when rank 0's does, whatever else it waits for."""
    wait_until_gone(control)
    time.sleep(GRACE)
    os._exit(1)
