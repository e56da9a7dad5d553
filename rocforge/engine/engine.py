"""Engine: the step loop. Schedule, run the model on a flat batch, sample, hand out tokens.

On a GPU, steps in which every request gets its next token are queued one ahead of the tokens that the host has read.
An engine belongs to the thread that calls it. `with Engine(model) as engine` gives everything back at the end, also
after an error.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rocforge.device.arrays import cupy_module, on_device
from rocforge.device.memory import out_of_memory_explained
from rocforge.device.streams import Stream
from rocforge.engine.block_pool import BlockPool
from rocforge.engine.capacity import cache_tokens_that_fit
from rocforge.engine.pacing import Pacer
from rocforge.engine.sampler import Choice, choose
from rocforge.engine.scheduler import Constraint, Request, Scheduler, Status, Work
from rocforge.engine.step import Decoder, Flight
from rocforge.errors import OutOfMemoryError
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.state import blocks_for
from rocforge.nn.transformer import Transformer
from rocforge.ops.sampling import Logprobs, SamplingParams

CPU_CACHE_TOKENS = 16384
"""A cache on the CPU has that many where nobody says how many."""


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
        cache_tokens: how many tokens the cache holds; None: on a GPU what is free there but a margin, as far as
            max_requests can use it; on a CPU the model's context, up to 16384.
        max_batch_tokens: tokens a step, at most.
        max_requests: requests in flight, at most.

    On a GPU the engine works after what the thread's current stream there has queued so far.

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
        max_batch_tokens: int = 512,
        max_requests: int = 256,
    ):
        sizes = {"cache_tokens": cache_tokens, "max_batch_tokens": max_batch_tokens, "max_requests": max_requests}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}; allowed is from 1")
        self.model, self.eog_token_ids = model, frozenset(eog_token_ids)
        if cache_tokens is None:
            if model.device == "cpu":
                cache_tokens = min(model.config.context, CPU_CACHE_TOKENS)
            else:
                most = max_requests * model.config.context
                cache_tokens = cache_tokens_that_fit(model.config, model.device, most)
        pool = BlockPool(blocks_for(cache_tokens))
        self.scheduler = Scheduler(pool, max_batch_tokens, max_requests)
        self._pacer = Pacer(max_batch_tokens)
        if model.device != "cpu":
            with on_device(model.device):
                cupy_module().cuda.get_current_stream().synchronize()  # the weights may have come by it
        self._stream = Stream(model.device)
        self._decoder, self._flight = None, None
        with self._stream, out_of_memory_explained(model.device, "the cache"):
            self.cache = model.new_cache(pool.blocks, pool.block_size)
            self.limit = min(model.config.context, pool.blocks * pool.block_size)
            if model.device != "cpu":
                self._decoder = Decoder(self._stream, model, self.cache, pool.blocks_for(self.limit))

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
        if self.cache is None:
            raise RuntimeError("the engine is closed")
        prompt, params = [int(token) for token in prompt], params or SamplingParams()
        self.check(prompt, params)
        request = Request(prompt, params, constraint)
        self.scheduler.add(request)
        return request

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Whether a request can be served at all; any thread may ask.

        Raises:
            ValueError: the prompt is empty or leaves no room for a token; a token id is outside the vocabulary.
        """
        vocabulary = self.model.config.vocabulary
        if not prompt:
            raise ValueError("the prompt has no tokens")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(f"the prompt has a token id outside 0 to {vocabulary - 1}")
        if len(prompt) >= self.limit:
            raise ValueError(f"the prompt has {len(prompt)} tokens, and the limit is {self.limit} with the reply")
        if params.logit_bias and not 0 <= min(params.logit_bias) <= max(params.logit_bias) < vocabulary:
            raise ValueError(f"logit_bias has a token id outside 0 to {vocabulary - 1}")

    def cancel(self, request: Request) -> None:
        """End a request now and free its cache blocks; one that has ended stays as it is."""
        if request.status is not Status.FINISHED:
            self.scheduler.finish(request)

    def cancel_all(self) -> None:
        """End all requests now; also after an exception in `step`, which leaves them neither here nor there."""
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            self.scheduler.finish(request)
        self._flight = None
        if self._decoder:
            self._decoder.forget()
        self._stream.synchronize()

    @property
    def held_memory(self) -> int:
        """Bytes that CuPy's pools have taken of the engine's GPU; on a CPU the most that the process has held."""
        if self.model.device == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with on_device(self.model.device):
            held = cupy_module().get_default_memory_pool().total_bytes()
            return held + (self._decoder.held_memory if self._decoder else 0)

    def step(self) -> list[Token]:
        """Run one batch, and return the tokens that it gave. After an exception, `cancel_all` comes next.

        Raises:
            OutOfMemoryError: the device has no room for it, also when what nothing uses has been given back.
        """
        start = time.perf_counter()
        with self._stream:
            flight, self._flight = self._flight, None
            work = [Work(r, 1) for r in flight.requests if r.status is Status.RUNNING] if flight else []
            if flight and not work:  # all of its requests were cancelled
                flight = self._stream.synchronize()
            work = work or self.scheduler.schedule(self._pacer)
            if not work:
                return []
            if flight or self._can_decode(work):
                requests = [item.request for item in work]
                choices = self._decode(flight or self._with_room(lambda: self._decoder.launch(requests)))
            else:
                choices = self._with_room(lambda: self._run_and_choose(work))
        decodes, count = sum(item.request.remaining == 1 for item in work), sum(item.count for item in work)
        sampling = [item.request for item in work if item.samples]
        for item in work:
            self.scheduler.advance(item)
        tokens = [self._accept(request, choice) for request, choice in zip(sampling, choices, strict=True)]
        self._pacer.observe(time.perf_counter() - start, decodes, count - decodes)
        return tokens

    def _with_room(self, run: Callable[[], Any]) -> Any:
        """Do that; where memory is short, give back what nothing uses, in the decode steps' pool too, and do it again.

        Until it is done it may be begun any number of times: what it writes to the cache is the same each time.
        """
        try:
            with out_of_memory_explained(self.model.device, "a step"):
                return run()
        except OutOfMemoryError:
            self._make_room()
        with out_of_memory_explained(self.model.device, "a step"):
            return run()

    def _make_room(self) -> None:
        self._stream.synchronize()
        if self._decoder:
            self._decoder.trim()

    def _can_decode(self, work: list[Work]) -> bool:
        """Whether a step is the Decoder's: on a GPU, a token for each request, none chosen on the host."""
        return self._decoder is not None and all(
            item.count == 1 and item.samples and item.request.constraint is None for item in work
        )

    def _decode(self, flight: Flight) -> list[Choice]:
        """What a queued step gives, once the step after it is queued as well, if that can be told already.

        A request that ended since the step was queued is left out.
        """
        if self.scheduler.repeats(flight.requests, self.limit):
            try:
                with out_of_memory_explained(self.model.device, "a step"):
                    self._flight = self._decoder.launch(flight.requests)
            except OutOfMemoryError:
                self._make_room()  # the step comes when the host has the tokens of this one
        chosen = zip(flight.requests, flight.choices(), strict=True)
        return [choice for request, choice in chosen if request.status is Status.RUNNING]

    def _run_and_choose(self, work: list[Work]) -> list[Choice]:
        if self._decoder:
            self._decoder.forget()
        return choose(self._run(work), [item.request for item in work if item.samples])

    def _run(self, work: list[Work]) -> Any:
        """Logits of the last row of each item that samples, in order."""
        chunks = [Chunk(item.request.computed, item.count, item.request.table, item.samples) for item in work]
        ids = [item.request.tokens(item.request.computed, item.request.computed + item.count) for item in work]
        return self.model(np.concatenate(ids).astype(np.int32), Batch.of(self.cache, chunks))

    def _accept(self, request: Request, choice: Choice) -> Token:
        if choice.error:
            self.scheduler.finish(request)
            return Token(request, -1, None, "error", choice.error)
        request.output.append(choice.token)
        reason = None
        if choice.token in self.eog_token_ids and not request.params.ignore_eos:
            reason = "stop"
        elif len(request.output) == request.params.max_tokens or request.length >= self.limit:
            reason = "length"
        if reason:
            self.scheduler.finish(request)
        return Token(request, choice.token, choice.logprobs, reason)
