"""Engine: the step loop. Schedule, run the model on a flat batch, sample, return tokens.

On a GPU, steps in which every request gets its next token are queued one ahead of the tokens that the host has read.
An engine belongs to the thread that calls it. `with Engine(model) as engine` frees everything at the end, also after an
error.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rocforge.device.arrays import on_device
from rocforge.device.libraries import cupy_module
from rocforge.device.memory import out_of_memory_explained
from rocforge.device.streams import Stream
from rocforge.engine.capacity import MAX_BATCH_TOKENS, CacheSizes
from rocforge.engine.pacing import Pacer
from rocforge.engine.request import Constraint, Request, Status
from rocforge.engine.sampler import SampledToken, sample_tokens
from rocforge.engine.scheduler import ScheduledChunk, Scheduler
from rocforge.engine.state import StateManager
from rocforge.engine.step import Decoder, PendingStep
from rocforge.errors import OutOfMemoryError
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import blocks_for, states_of
from rocforge.nn.transformer import Transformer
from rocforge.ops.sampling import Logprobs, SamplingParams
from rocforge.ops.state import BLOCK_SIZE

CPU_CACHE_TOKENS = 16384
"""The default size of the cache on the CPU."""


@dataclass(frozen=True)
class Token:
    """One token that a step gave a request.

    Attributes:
        request: whose it is.
        id: its id.
        logprobs: where the request asks for them.
        finish_reason: None while the request goes on; "stop" at an end-of-generation token (which is `id`), "length"
            when max_tokens or the context is reached, "error" where its constraint failed or its logits are not finite.
        error: what failed; `id` is -1 then.
    """

    request: Request
    id: int
    logprobs: Logprobs | None
    finish_reason: str | None
    error: Exception | None = None


class Engine:
    """Runs any number of requests on one model, with continuous batching over a paged cache.

    Args:
        model: its weights loaded.
        eog_token_ids: tokens that end a generation.
        cache_tokens: size of the KV cache in tokens, for all requests; None: on a GPU the free memory minus a margin,
            as far as max_requests can use it; on a CPU the model's context, up to 16384. Layers with a window, and
            recurrent ones, get what max_requests running sequences need; less on a GPU where that does not fit, down
            to what one needs.
        max_batch_tokens: maximum tokens a step.
        max_requests: maximum running requests.

    On a GPU the engine's work follows what the thread's current stream has queued so far.

    Attributes:
        limit: the longest sequence that can be served, in tokens.

    Raises:
        ValueError: a number that is not positive.
        DeviceError: the cache does not fit.
    """

    def __init__(
        self,
        model: Transformer,
        eog_token_ids: frozenset[int] | set[int] = frozenset(),
        cache_tokens: int | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        max_requests: int = 256,
    ):
        given = {"cache_tokens": cache_tokens, "max_batch_tokens": max_batch_tokens, "max_requests": max_requests}
        for name, size in given.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}; allowed is 1 or more")
        self.model, self.eog_token_ids = model, frozenset(eog_token_ids)
        sizes = CacheSizes(states_of(model).values(), model.device, max_batch_tokens)
        if cache_tokens is None and model.device == "cpu":
            cache_tokens = min(model.config.context, CPU_CACHE_TOKENS)
        elif cache_tokens is None:
            cache_tokens = sizes.tokens_that_fit(model.config.context, max_requests)
        sequences = max_requests if model.device == "cpu" else sizes.sequences_that_fit(cache_tokens, max_requests)
        self.limit = min(model.config.context, blocks_for(cache_tokens) * BLOCK_SIZE)
        self._pacer = Pacer(max_batch_tokens)
        if model.device != "cpu":
            with on_device(model.device):
                cupy_module().cuda.get_current_stream().synchronize()  # the weights may have come by it
        self._stream = Stream(model.device)
        self._decoder: Decoder | None = None
        self._pending: PendingStep | None = None
        self.cache: KVCache | None = None
        with self._stream, out_of_memory_explained(model.device, "KV cache"):
            blocks, slots = sizes.blocks(cache_tokens, sequences), sizes.slots(sequences)
            self.cache = cache = model.new_cache(blocks, slots=slots)
            state = StateManager((group.state for group in cache.paged), blocks, slots, cache.copy_slot)
            self.scheduler = Scheduler(state, max_batch_tokens, max_requests)
            if model.device != "cpu":
                self._decoder = Decoder(self._stream, model, cache, blocks_for(self.limit), max_requests)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight and drop the cache. A closed engine takes no more requests."""
        try:
            self.cancel_all()
        finally:
            self.cache, self._decoder = None, None

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or running."""
        return len(self.scheduler) > 0

    def add(
        self, prompt: Sequence[int], params: SamplingParams | None = None, constraint: Constraint | None = None
    ) -> Request:
        """Queue a prompt.

        Args:
            prompt: token ids, at least one.
            params: how to continue it; None for the defaults.
            constraint: what the text must obey, new for each request.

        Raises:
            ValueError: as in `check`.
            RuntimeError: the engine is closed.
        """
        self._open_cache()
        prompt, params = [int(token) for token in prompt], params or SamplingParams()
        self.check(prompt, params)
        request = Request(prompt, params, constraint)
        self.scheduler.add(request)
        return request

    def _open_cache(self) -> KVCache:
        if self.cache is None:
            raise RuntimeError("the engine is closed")
        return self.cache

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Whether a request can be served at all; any thread may ask.

        Raises:
            ValueError: the prompt is empty or leaves no room for a token; a token id is outside the vocabulary.
        """
        vocabulary = self.model.config.vocabulary
        if not prompt:
            raise ValueError("the prompt is empty")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(f"the prompt has a token id outside 0 to {vocabulary - 1}")
        if len(prompt) >= self.limit:
            raise ValueError(f"the prompt has {len(prompt)} tokens; the limit is {self.limit} with the reply")
        if params.logit_bias and not 0 <= min(params.logit_bias) <= max(params.logit_bias) < vocabulary:
            raise ValueError(f"logit_bias has a token id outside 0 to {vocabulary - 1}")

    def cancel(self, request: Request) -> None:
        """End a request now and free its cache blocks; no effect once it has ended."""
        if request.status is not Status.FINISHED:
            self.scheduler.finish(request)

    def cancel_all(self) -> None:
        """End all requests now; required after an exception in `step`, which leaves their state undefined."""
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            self.scheduler.finish(request)
        self._pending = None
        if self._decoder:
            self._decoder.forget()
        self._stream.synchronize()

    @property
    def memory_reserved(self) -> int:
        """Bytes that CuPy's pools have allocated on the engine's GPU; on a CPU the peak RSS of the process."""
        if self.model.device == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with on_device(self.model.device):
            reserved = int(cupy_module().get_default_memory_pool().total_bytes())
            return reserved + (self._decoder.memory_reserved if self._decoder else 0)

    def step(self) -> list[Token]:
        """Run one batch, and return its tokens. After an exception, call `cancel_all`.

        Raises:
            OutOfMemoryError: the device has too little memory, even after all unused memory has been freed.
        """
        start = time.perf_counter()
        with self._stream:
            try:
                chunks, sampled = self._run_step()
            except OutOfMemoryError:
                self._free_unused_memory()
                chunks, sampled = self._run_step()
        decodes = sum(chunk.request.remaining == 1 for chunk in chunks)
        prompt_tokens = sum(chunk.count for chunk in chunks) - decodes
        requests = [chunk.request for chunk in chunks if chunk.needs_logits]
        for chunk in chunks:
            self.scheduler.advance(chunk, snapshot=self._pending is None)
        tokens = [self._accept(*pair) for pair in zip(requests, sampled, strict=True)]
        if chunks:
            self._pacer.observe(time.perf_counter() - start, decodes, prompt_tokens)
        return tokens

    def _run_step(self) -> tuple[list[ScheduledChunk], list[SampledToken]]:
        """The chunks of a step, and the tokens sampled for those that need logits."""
        pending, self._pending = self._pending, None
        with out_of_memory_explained(self.model.device, "step"):
            if pending:
                chunks = [ScheduledChunk(r, 1) for r in pending.requests if r.status is Status.RUNNING]
                if chunks:
                    return chunks, self._decode(pending)
                self._stream.synchronize()  # all of its requests were cancelled
            chunks = self.scheduler.schedule(self._pacer)
            if not chunks:
                return [], []
            if self._decoder and self._can_decode(chunks):
                return chunks, self._decode(self._decoder.launch([chunk.request for chunk in chunks]))
            if self._decoder:
                self._decoder.forget()
            logits, requests = self._run(chunks), [chunk.request for chunk in chunks if chunk.needs_logits]
            return chunks, (self._decoder.sample if self._decoder else sample_tokens)(logits, requests)

    def _free_unused_memory(self) -> None:
        """Drop the graphs with their memory, and preempt all requests: a failed step leaves their state undefined."""
        self._stream.synchronize()
        self._pending = None
        if self._decoder:
            self._decoder.trim()
        for request in self.scheduler.running[::-1]:
            self.scheduler.preempt(request)

    def _can_decode(self, chunks: list[ScheduledChunk]) -> bool:
        """Whether the Decoder can run a step: one token for each request, none sampled on the host."""
        return all(chunk.count == 1 and chunk.needs_logits and chunk.request.constraint is None for chunk in chunks)

    def _decode(self, pending: PendingStep) -> list[SampledToken]:
        """The tokens of a pending step, after queueing the next one if its requests are known already.

        Requests that ended since the step was queued are left out.
        """
        if self._decoder and self.scheduler.repeats(pending.requests, self.limit):
            self._pending = self._decoder.launch(pending.requests)
        sampled = zip(pending.requests, pending.tokens(), strict=True)
        return [token for request, token in sampled if request.status is Status.RUNNING]

    def _run(self, chunks: list[ScheduledChunk]) -> Any:
        """Logits of the last row of each chunk that needs them, in order."""
        parts = [
            Chunk(chunk.start, chunk.count, chunk.request.state.tables, chunk.needs_logits, chunk.request.state.slot)
            for chunk in chunks
        ]
        ids = [chunk.request.tokens(chunk.start, chunk.stop) for chunk in chunks]
        return self.model(np.concatenate(ids).astype(np.int32), Batch.of(self._open_cache(), parts))

    def _accept(self, request: Request, sampled: SampledToken) -> Token:
        if sampled.error:
            self.scheduler.finish(request)
            return Token(request, -1, None, "error", sampled.error)
        request.output.append(sampled.token)
        reason = None
        if sampled.token in self.eog_token_ids and not request.params.ignore_eos:
            reason = "stop"
        elif len(request.output) == request.params.max_tokens or request.length >= self.limit:
            reason = "length"
        if reason:
            self.scheduler.finish(request)
        return Token(request, sampled.token, sampled.logprobs, reason)
