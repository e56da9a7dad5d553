"""Steps on a device: captured graphs for all numbers of tokens, queued one ahead of the tokens that the host has read.

A step is what the host says of it (`inputs`), a forward pass, and sampling. The forward pass is a graph, captured for
each StepShape, so that it costs the host one call; ROCFORGE_GRAPHS=0 queues the same kernels one by one. Sampling comes
after, as launches of its own: what masks it may be made while the forward pass runs.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rocforge.device.background import BackgroundCompilation
from rocforge.device.blas import workspaces_to_come
from rocforge.device.distributed import ALONE, Group
from rocforge.device.kernels import launches_recorded
from rocforge.device.libraries import cupy_module
from rocforge.device.memory import out_of_memory_explained
from rocforge.device.streams import Stream
from rocforge.engine.capture import GraphRecorder
from rocforge.engine.cards import Cards
from rocforge.engine.inputs import StepInputs, StepShape, decode_sizes, prompt_sizes
from rocforge.engine.request import Request
from rocforge.engine.sampler import DeviceSampler, PendingTokens, SampledToken
from rocforge.engine.scheduler import ScheduledChunk, counted
from rocforge.nn.cache import KVCache
from rocforge.nn.expansion import expanded_blocks, expansion_room
from rocforge.nn.observe import Observer, observations_recorded, replay
from rocforge.nn.reach import same_reach
from rocforge.nn.transformer import Transformer
from rocforge.ops.sampling import SamplingParams
from rocforge.ops.state import BLOCK_SIZE

ATTEMPTS = 3
"""Attempts to capture a step: another thread's calls can invalidate a capture."""


class PendingStep:
    """A step whose forward pass is queued.

    Attributes:
        chunks: what runs in it.
        requests: those that get a token.
        constrained: whether the token of one of them depends on the text so far.
    """

    def __init__(self, chunks: Sequence[ScheduledChunk], sampler: DeviceSampler, logits: Any, began: Any):
        self.chunks, self._sampler, self._logits, self._began = chunks, sampler, logits, began
        self.requests = [chunk.request for chunk in chunks if chunk.needs_logits]
        self.constrained = any(request.follows_text for request in self.requests)
        self._slots = [request.state.row for request in self.requests]
        self._steps = [len(request.output) + request.pending for request in self.requests]
        self._tokens: PendingTokens | None = None
        self._ended: Any = None

    def sample(self) -> None:
        """Queue the sampling, unless it is; where the step is constrained all tokens before must be known."""
        if self._ended is None:
            if self.requests:
                self._tokens = self._sampler.launch(self._logits, self.requests, self._slots, self._steps)
            self._ended = _event()

    def tokens(self) -> list[SampledToken]:
        """The token of each request; waits for the step."""
        self._ended.synchronize()
        return self._tokens.get() if self._tokens else []

    @property
    def seconds(self) -> float:
        """How long the device took, once `tokens` has returned."""
        return _seconds_between(self._began, self._ended)

    def waited(self, previous: PendingStep) -> float:
        """Seconds that the device waited for the host between the step before and this one."""
        return _seconds_between(previous._ended, self._began)


class StepRunner:
    """Queues steps on a stream, which must be the current one.

    Args:
        stream: on a GPU.
        model: on that GPU.
        cache: its cache, there.
        max_batch_tokens, max_requests: of the engine.
        width: blocks of the longest sequence.
    """

    def __init__(
        self, stream: Stream, model: Transformer, cache: KVCache, max_batch_tokens: int, max_requests: int, width: int
    ):
        self._stream, self._model = stream, model
        self._cards: Cards | None = getattr(model, "cards", None)
        self._group: Group = getattr(model, "group", ALONE)
        self.sizes = prompt_sizes(max_batch_tokens)
        decode = [StepShape(rows, rows, False) for rows in decode_sizes(max_requests)]
        mixed = [StepShape(tokens, min(tokens, max_requests), True) for tokens in self.sizes]
        expanded = [replace(shape, expanded=room) for shape in mixed if (room := expansion_room(cache, shape.tokens))]
        self._cache, self.shapes = cache, [*decode, *mixed, *expanded]
        # shapes share their memory: what the first ones have taken serves all that need less
        sizes = {shape: (shape.tokens, shape.mixed, shape.expanded) for shape in self.shapes}
        self._largest_first = sorted(sizes, key=sizes.__getitem__, reverse=True)
        self._sampler = DeviceSampler(stream, model.config.vocabulary, max_requests)
        self._inputs = StepInputs(cache, self.shapes, max_requests, width, self._sampler.last_tokens)
        self._graphs = os.environ.get("ROCFORGE_GRAPHS", "1") != "0"
        self._recorder = GraphRecorder(stream.device)
        self._plans: dict[StepShape, _Plan] = {}
        weakref.finalize(self, _drop, self._plans, self._sampler, self._recorder).atexit = False

    def launch(self, chunks: Sequence[ScheduledChunk]) -> PendingStep:
        """Queue the forward pass of a step. Tokens of the step before need not have been read.

        Args:
            chunks: scheduled, with the blocks for their tokens.
        """
        shape = self._shape(chunks)
        began = _event()
        logits = self._run(shape, chunks)
        return PendingStep(chunks, self._sampler, logits, began)

    def prepare(self, progress: Callable[[str], Any]) -> None:
        """Compile the kernels of all shapes, and run and capture them, without requests: none waits for that later.

        Args:
            progress: called now and then with what is being done.
        """
        if self._cards is not None:
            self._cards.post("compile")
        self.compile(lambda missing: progress(f"compiling {missing} programs"))
        for done, shape in enumerate(self._largest_first):
            progress(f"capturing steps: {done} of {len(self.shapes)}")
            for _ in range(2):
                self._run(shape, [])
            self._stream.synchronize()

    def compile(self, progress: Callable[[int], Any] = lambda missing: None) -> None:
        """Compile the kernels of all shapes, and of sampling.

        Args:
            progress: called now and then with how many are missing.
        """
        compilation = BackgroundCompilation()
        request = Request([0], SamplingParams(temperature=0, logprobs=1, seed=0))
        with self._recorder.memory(), launches_recorded(compilation.add):
            for shape in self._largest_first:
                ids, batch = self._inputs.batch(shape)
                logits = self._model(ids, batch)
            self._sampler.launch(logits, [request], [0], [0])
        self._stream.synchronize()
        self._sampler.restart()
        del logits
        self._recorder.free_unused()
        compilation.wait(progress)

    def rehearse(self) -> int:
        """Bytes that steps will take of the device, as far as a pass of the largest shape shows, of which none of our
        kernels is launched: in the memory of its graph others find room, but for what latents are expanded to, and a
        step that runs before it is captured takes as much beside. The BLAS library's workspaces are counted. 0 where
        the pass would show, to a function that has to be called at each step."""
        if self._model.reach() is None:
            return 0
        explained, unseen = out_of_memory_explained(self._stream.device, "step"), observations_recorded()
        with explained, unseen, self._recorder.memory(), launches_recorded(lambda kernel: None):
            ids, batch = self._inputs.batch(self._largest_first[0])
            self._model(ids, batch)
        self._stream.synchronize()
        nbytes = self.memory_reserved
        self._recorder.free_unused()
        return 2 * nbytes + workspaces_to_come()

    @property
    def memory_reserved(self) -> int:
        """Bytes that the graphs' pool has taken of the device."""
        return self._recorder.memory_reserved

    def trim(self) -> None:
        """Drop the graphs, and free their memory. Nothing may be in flight."""
        _drop(self._plans, self._sampler, self._recorder)

    def _shape(self, chunks: Sequence[ScheduledChunk]) -> StepShape:
        """The smallest shape for these chunks; attention patterns have keys for a power of two."""
        decodes, tokens = counted(chunks)
        mixed = decodes < len(chunks)
        shape = next(shape for shape in self.shapes if shape.mixed == mixed and shape.tokens >= tokens)
        if mixed and (room := expansion_room(self._cache, shape.tokens)):
            needed = expanded_blocks(self._cache, [(chunk.start, chunk.stop) for chunk in chunks])
            if 0 < needed <= room:
                alone = shape.tokens - tokens == 1 or any(chunk.tokens == 1 for chunk in chunks)
                shape = replace(shape, expanded=room, fewest=1 if alone else 2)
        if not self._model.fused.shows_patterns:
            return shape
        longest = max(chunk.stop for chunk in chunks)
        return replace(shape, longest=max(BLOCK_SIZE, 1 << (longest - 1).bit_length()))

    def _run(self, shape: StepShape, chunks: Sequence[ScheduledChunk]) -> Any:
        """Queue a forward pass, on all cards; its logits are there until the next one."""
        staged = self._inputs.stage(shape, chunks)
        if self._cards is not None:
            self._cards.post("step", shape, staged)
        return self.run(shape, staged, chunks)

    def run(self, shape: StepShape, staged: np.ndarray | None, chunks: Sequence[ScheduledChunk] = ()) -> Any:
        """Queue a forward pass on this card.

        Args:
            staged: what it is, as `StepInputs.stage` gives it.
            chunks: of the step, on the card that schedules.
        """
        self._group.broadcast(self._sampler.last_tokens)
        self._inputs.begin(shape, chunks, None if staged is None else self._stream.upload(staged))
        if shape not in self._plans:
            self._plans[shape] = _Plan(shape, self._inputs, self._model, self._recorder)
        plan = self._plans[shape]
        if not plan.captured:
            self._sampler.restart()  # the memory of the logits before is of use to this pass, and to its capture
        return plan.run(self._graphs)


def _event() -> Any:
    """Recorded on the current stream."""
    event = cupy_module().cuda.Event()
    event.record()
    return event


def _seconds_between(first: Any, second: Any) -> float:
    return float(cupy_module().cuda.get_elapsed_time(first, second)) / 1e3


def _drop(plans: dict[Any, _Plan], sampler: DeviceSampler, recorder: GraphRecorder) -> None:
    """A graph's memory is free once its plan has gone, and a step's once nobody has its logits."""
    plans.clear()
    sampler.restart()
    recorder.free_unused()


class _Plan:
    """The forward pass of one shape, and its graph."""

    def __init__(self, shape: StepShape, inputs: StepInputs, model: Transformer, recorder: GraphRecorder):
        self._shape, self._inputs, self._model, self._recorder = shape, inputs, model, recorder
        self._warm, self._attempts = False, ATTEMPTS
        self._reach: list[Any] | None = None
        self._graph: tuple[Any, Any] | None = None
        self._observed: list[tuple[Observer, Any]] = []

    @property
    def captured(self) -> bool:
        """Whether there is a graph."""
        return self._graph is not None

    def run(self, graphs: bool) -> Any:
        """Queue the pass, and return its logits. The first is run kernel by kernel, which compiles them; the second is
        captured. So is the first, and the second, after a module of the model has been replaced, observed or edited, or
        what an edit computes with, or what adapters update. Where an edit must be called at each step, each runs kernel
        by kernel.
        """
        reach = self._model.reach()
        if reach is not None:
            reach.append(self._model.fused)
        if not same_reach(self._reach, reach):
            self._reach, self._warm, self._graph, self._attempts = reach, False, None, ATTEMPTS
        with self._recorder.memory():
            if graphs and self._warm and self._attempts and self._graph is None:
                with observations_recorded() as self._observed:
                    self._graph = self._recorder.capture(self._forward)
                self._attempts -= 1
            if self._graph is None:
                self._warm = True
                return self._forward()
        graph, logits = self._graph
        graph.launch()
        replay(self._observed)
        return logits

    def _forward(self) -> Any:
        ids, batch = self._inputs.batch(self._shape)
        return self._model(ids, batch)
