"""Engine: the step loop. Schedule, run the model on a flat batch, sample, return tokens.

On a GPU, steps are queued one ahead of the tokens that the host has read. An engine belongs to the thread that calls
it. `with Engine(model) as engine` frees everything at the end, also after an error.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rocforge.device.arrays import on_device
from rocforge.device.libraries import cupy_module
from rocforge.device.memory import out_of_memory_explained
from rocforge.device.streams import Stream
from rocforge.engine.breakers import breakers_of
from rocforge.engine.capacity import MAX_REQUESTS, CacheSizes, batch_tokens
from rocforge.engine.cards import Cards
from rocforge.engine.pacing import INTER_TOKEN_MS, Pacer
from rocforge.engine.request import Constraint, Request, Status
from rocforge.engine.sampler import SampledToken, sample_tokens
from rocforge.engine.scheduler import ScheduledChunk, Scheduler
from rocforge.engine.state import StateManager
from rocforge.engine.step import PendingStep, StepRunner
from rocforge.errors import OutOfMemoryError
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.pooling import empty, pool_into, pooling_of
from rocforge.nn.reach import same_reach
from rocforge.nn.scoring import score_into, scores_of
from rocforge.nn.state import blocks_for, kept_of, typed
from rocforge.nn.transformer import Transformer, check_generates
from rocforge.ops.mirostat import Mirostat
from rocforge.ops.sampling import Logprobs, SamplingParams
from rocforge.ops.state import BLOCK_SIZE


class Token(NamedTuple):
    """One token that a step gave a request.

    Attributes:
        request: whose it is.
        id: its id.
        logprobs: where the request asks for them.
        finish_reason: None while the request goes on; "stop" at a token that ends it (which is `id`), "length" when
            max_tokens or the context is reached, "error" where its constraint failed or its logits are not finite.
        error: what failed; `id` is -1 then.
    """

    request: Request
    id: int
    logprobs: Logprobs | None
    finish_reason: str | None
    error: Exception | None = None


class Embedding(NamedTuple):
    """Vectors of prompts, or of their tokens.

    Attributes:
        vectors: float32 NumPy array (prompts, dim), or (prompts, labels) of a model that ranks, or as `Engine.score`
            has it; complete once the passes have ended.
        passes: computes them; at most a pass of the model for each item.
    """

    vectors: np.ndarray
    passes: Iterator[None]


@dataclass(frozen=True)
class HostStep:
    """A step that has run on the CPU; as PendingStep."""

    chunks: list[ScheduledChunk]
    requests: list[Request]
    sampled: list[SampledToken]
    seconds: float

    def tokens(self) -> list[SampledToken]:
        """The token of each request."""
        return self.sampled


@dataclass
class StepStats:
    """What an engine's steps have taken so far.

    Attributes:
        steps: how many there were.
        seconds: of all of them.
        longest: seconds of the longest one.
        waited: seconds that a GPU waited for the host between two steps, though there was work.
    """

    steps: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    waited: float = 0.0

    def count(self, seconds: float, waited: float) -> None:
        """Count a step."""
        self.steps += 1
        self.seconds += seconds
        self.longest = max(self.longest, seconds)
        self.waited += waited


class Engine:
    """Runs any number of requests on one model, with continuous batching over a paged cache.

    Args:
        model: its weights loaded.
        eog_token_ids: tokens that end a generation.
        cache_tokens: size of the KV cache in tokens, for all requests; None: on a GPU the free memory minus a margin,
            as far as max_requests can use it; on a CPU the model's context, up to 16384. Layers with a window, and
            recurrent ones, get what max_requests running sequences need; less on a GPU where that does not fit, down
            to what one needs.
        max_batch_tokens: maximum tokens a step; None: 2048 on a GPU, 512 on a CPU.
        max_requests: maximum running requests.
        inter_token_ms: the target for the time between two tokens of a request while prompts come in, milliseconds;
            None: 50 on a GPU, 20 on a CPU. See docs/scheduling.md.
        cache_type_k, cache_type_v: the types of keys and of values in the cache, as in `rf.load`; None: those that the
            model was loaded with.

    On a GPU the engine's work follows what the thread's current stream has queued so far.

    Attributes:
        limit: the longest sequence that can be served, in tokens.
        cache_tokens: that the KV cache holds, of all sequences.
        stats: of its steps; may be replaced by a new StepStats to begin anew.

    Raises:
        ValueError: a number that is not positive, or an unknown type.
        UnsupportedModelError: a type of the cache is not for the model's heads or for the GPU.
        DeviceError: the cache does not fit.

    >>> with rf.Engine(model, tokenizer.eog_token_ids) as engine:
    ...     request = engine.add(tokenizer.encode("import "), rf.SamplingParams(max_tokens=3, temperature=0))
    ...     while engine.busy:
    ...         tokens = engine.step()
    >>> tokenizer.decode(request.output), tokens[0].finish_reason
    ('atexit', 'length')
    """

    def __init__(
        self,
        model: Transformer,
        eog_token_ids: frozenset[int] | set[int] = frozenset(),
        cache_tokens: int | None = None,
        max_batch_tokens: int | None = None,
        max_requests: int = MAX_REQUESTS,
        inter_token_ms: float | None = None,
        cache_type_k: str | None = None,
        cache_type_v: str | None = None,
    ):
        if not isinstance(eog_token_ids, (Set, Sequence)):
            problem = "allowed are token ids, tokenizer.eog_token_ids"
            raise TypeError(f"eog_token_ids is of type {type(eog_token_ids).__name__}; {problem}")
        given = {"cache_tokens": cache_tokens, "max_batch_tokens": max_batch_tokens, "max_requests": max_requests}
        for name, size in given.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}; allowed is 1 or more")
        max_batch_tokens = max_batch_tokens or batch_tokens(model.device)
        if inter_token_ms is None:
            inter_token_ms = INTER_TOKEN_MS["cpu" if model.device == "cpu" else "gpu"]
        if not inter_token_ms > 0:
            raise ValueError(f"inter_token_ms is {inter_token_ms}; allowed is more than 0")
        self.model, self.eog_token_ids = model, frozenset(eog_token_ids)
        states = typed(kept_of(model), cache_type_k, cache_type_v)
        self._cards: Cards | None = getattr(model, "cards", None)
        count = 1 if self._cards is None else self._cards.group.size
        sizes = CacheSizes(states.values(), model.device, max_batch_tokens, count)
        types, rooms = (cache_type_k, cache_type_v), [sizes.room(cache_tokens, model.config.context, max_requests)]
        if self._cards is not None:
            rooms += self._cards.ask("room", types, cache_tokens, max_batch_tokens, max_requests)
        cache_tokens, sequences = map(min, zip(*rooms, strict=True))
        self.cache_tokens, self.limit = blocks_for(cache_tokens) * BLOCK_SIZE, model.config.context
        if states:
            self.limit = min(self.limit, self.cache_tokens)
        self._pacer = Pacer(max_batch_tokens, inter_token_ms / 1e3)
        if model.device != "cpu":
            with on_device(model.device):
                cupy_module().cuda.get_current_stream().synchronize()  # the weights may have come by it
        self._stream = Stream(model.device)
        self._runner: StepRunner | None = None
        self._pending: PendingStep | None = None
        self._previous: PendingStep | None = None
        self._starved = False
        self._reach: list[Any] | None = None
        self.stats = StepStats()
        self.cache: KVCache | None = None
        with self._stream, out_of_memory_explained(model.device, "KV cache"):
            blocks, slots = sizes.blocks(cache_tokens, sequences), sizes.slots(sequences)
            self.cache = cache = KVCache(states, blocks, slots=slots, device=model.device)
            paged = (group.state for group in cache.paged)
            state = StateManager(paged, blocks, slots, self._copy_slot, sequences=max_requests)
            step = None
            if model.device != "cpu" and model.generates:
                step = max_batch_tokens, max_requests, blocks_for(self.limit)
            if self._cards is not None:
                self._cards.open(cache, types, blocks, slots, step)
            if step:
                self._runner = StepRunner(self._stream, model, cache, *step)
            step_sizes = self._runner.sizes if self._runner else []
            self.scheduler = Scheduler(state, max_batch_tokens, max_requests, step_sizes)

    def __repr__(self) -> str:
        size = f"requests={len(self.scheduler)}, limit={self.limit}" if self.cache else "closed"
        return f"Engine({self.model.config.architecture} on {self.model.device}, {size})"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight and drop the cache. A closed engine takes no more requests.

        >>> engine = rf.Engine(model)
        >>> engine.close()
        >>> engine
        Engine(llama on cpu, closed)
        """
        try:
            self.cancel_all()
        finally:
            if self._cards is not None and self._cards.cache is self.cache is not None:
                self._cards.close_cache()
            self.cache, self._runner = None, None

    def _copy_slot(self, source: int, target: int) -> None:
        if self._cards is not None:
            self._cards.post("copy_slot", source, target)
        self._open_cache().copy_slot(source, target)

    def _together(self) -> AbstractContextManager[None]:
        """For a step: an error ends the other cards, if there are any."""
        return nullcontext() if self._cards is None else self._cards.together()

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or running."""
        return len(self.scheduler) > 0

    @property
    def device(self) -> str:
        """The model's."""
        return self.model.device

    @property
    def waiting(self) -> int:
        """Requests that wait for their first step."""
        return len(self.scheduler.waiting)

    @property
    def cache_blocks(self) -> tuple[int, int]:
        """KV cache blocks of all groups of layers: how many there are, and how many are in use."""
        pools = [group.pool for group in self.scheduler.state.groups]
        blocks = sum(pool.blocks for pool in pools)
        return blocks, blocks - sum(pool.free for pool in pools)

    def add(
        self, prompt: Sequence[int], params: SamplingParams | None = None, constraint: Constraint | None = None
    ) -> Request:
        """Queue a prompt.

        Args:
            prompt: token ids, at least one.
            params: how to continue it; None for the defaults.
            constraint: what the text must obey, new for each request.

        Raises:
            ValueError: as in `check`, or DRY has texts as sequence breakers.
            RuntimeError: the engine is closed.

        >>> engine = rf.Engine(model)
        >>> request = engine.add([1, 2, 3], rf.SamplingParams(max_tokens=2))
        >>> request.status.value, engine
        ('waiting', Engine(llama on cpu, requests=1, limit=1024))
        """
        self._open_cache()
        prompt, params = [int(token) for token in prompt], params or SamplingParams()
        self.check(prompt, params)
        longest = self.limit if params.max_tokens is None else min(self.limit, len(prompt) + params.max_tokens)
        lora = None if params.lora is None else self.model.adapters.placed(params.lora)
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.eog_token_ids)
        mirostat = Mirostat(params.mirostat, params.mirostat_tau, params.mirostat_eta) if params.mirostat else None
        request = Request(prompt, params, constraint, longest, ends, lora, breakers_of(params), mirostat)
        self.scheduler.add(request)
        return request

    def _open_cache(self) -> KVCache:
        if self.cache is None:
            raise RuntimeError("the engine is closed")
        return self.cache

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Whether a request can be served at all; any thread may ask.

        Raises:
            ValueError: the model is an encoder; the prompt is empty or leaves no room for a token; a token id is not of
                the vocabulary; the adapter is none of the model's.

        >>> try:
        ...     rf.Engine(model).check([], rf.SamplingParams())
        ... except ValueError as error:
        ...     print(error)
        the prompt is empty
        """
        check_generates(self.model)
        self._check_ids(prompt, replies=True)
        vocabulary = self.model.config.vocabulary
        if params.logit_bias and not 0 <= min(params.logit_bias) <= max(params.logit_bias) < vocabulary:
            raise ValueError(f"logit_bias has a token id outside 0 to {vocabulary - 1}")
        if params.stop_token_ids and not 0 <= min(params.stop_token_ids) <= max(params.stop_token_ids) < vocabulary:
            raise ValueError(f"stop_token_ids has a token id outside 0 to {vocabulary - 1}")
        if params.lora is not None:
            self.model.adapters.placed(params.lora)

    def _check_ids(self, prompt: Sequence[int], replies: bool = False) -> None:
        vocabulary = self.model.config.vocabulary
        if not prompt:
            raise ValueError("the prompt is empty")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(f"the prompt has a token id outside 0 to {vocabulary - 1}")
        if len(prompt) + replies > self.limit:
            reply = " with the reply" if replies else ""
            raise ValueError(f"the prompt has {len(prompt)} tokens; the limit is {self.limit}{reply}")

    def embed(self, prompts: Sequence[Sequence[int]], lora: str | None = None) -> Embedding:
        """Vectors of prompts, pooled as the model's file says and normalized, or the scores of a model that ranks; as
        `rf.embed`, but a pass at a time.

        The passes have a cache of their own, which on a GPU needs memory beside the engine's.

        Raises:
            ValueError: a prompt is empty, longer than `limit`, or has ids outside the vocabulary; or there is no such
                adapter.

        >>> vectors, passes = rf.Engine(model).embed([[1, 2, 3], [4, 5]])
        >>> for _ in passes:
        ...     pass
        >>> vectors.shape
        (2, 512)
        """
        self._check_prompts(prompts, lora)
        vectors = empty(self.model, len(prompts), self.pooling)
        passes = pool_into(vectors, self.model, prompts, self.pooling, True, lora, batch_tokens(self.device))
        return Embedding(vectors, self._on_stream(passes))

    def score(self, prompts: Sequence[Sequence[int]], top: int, lora: str | None = None) -> Embedding:
        """The log-probability of each token of prompts but the first, and the ids and log-probabilities of the `top`
        likeliest tokens in its place: one row (1 + 2 top) a token, prompt after prompt. As `embed`, a pass at a time.

        Raises:
            ValueError: as in `embed`, or the model is an encoder.

        >>> scores, passes = rf.Engine(model).score([[1, 2, 3], [4, 5]], top=2)
        >>> for _ in passes:
        ...     pass
        >>> scores.shape
        (3, 5)
        """
        check_generates(self.model)
        self._check_prompts(prompts, lora)
        scores = scores_of(prompts, top)
        passes = score_into(scores, self.model, prompts, top, lora, batch_tokens(self.device))
        return Embedding(scores, self._on_stream(passes))

    @property
    def pooling(self) -> str:
        """What `embed` makes of a prompt's hidden states, as `rf.embed` names it."""
        return pooling_of(self.model)

    def _check_prompts(self, prompts: Sequence[Sequence[int]], lora: str | None) -> None:
        if self._cards is not None:
            raise ValueError("embeddings and scores are of a model on one card; this one is on several")
        for prompt in prompts:
            self._check_ids(prompt)
        if lora is not None:
            self.model.adapters.placed(lora)

    def _on_stream(self, passes: Iterator[None]) -> Iterator[None]:
        while True:
            with self._stream, out_of_memory_explained(self.model.device, "pass"):
                if next(passes, self) is self:
                    return
            yield

    def cancel(self, request: Request) -> None:
        """End a request now and free its cache blocks; no effect once it has ended.

        >>> engine = rf.Engine(model)
        >>> request = engine.add([1, 2, 3])
        >>> engine.cancel(request)
        >>> request.status.value, engine.busy
        ('finished', False)
        """
        if request.status is not Status.FINISHED:
            self.scheduler.finish(request)

    def cancel_all(self) -> None:
        """End all requests now; required after an exception in `step`, which leaves their state undefined.

        >>> engine = rf.Engine(model)
        >>> requests = [engine.add([1, 2, 3]) for _ in range(3)]
        >>> engine.cancel_all()
        >>> engine.busy
        False
        """
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            self.scheduler.finish(request)
        self._pending, self._previous, self._starved = None, None, False
        if self._cards is None or not self._cards.ended:  # else what is queued has failed with them
            self._stream.synchronize()

    @property
    def memory_reserved(self) -> int:
        """Bytes that CuPy's pools have allocated on the engine's GPU; on a CPU the peak RSS of the process."""
        if self.model.device == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with on_device(self.model.device):
            reserved = int(cupy_module().get_default_memory_pool().total_bytes())
            return reserved + (self._runner.memory_reserved if self._runner else 0)

    def prepare(self, progress: Callable[[str], Any] = lambda doing: None) -> None:
        """Compile and capture what any step can need, so that no request waits for it; nothing to do on a CPU.

        Args:
            progress: called now and then with what is being done, in words.

        >>> rf.Engine(model).prepare(print)
        """
        if self._runner:
            with self._together(), self._stream, out_of_memory_explained(self.model.device, "step"):
                self._runner.prepare(progress)

    def step(self) -> list[Token]:
        """Run one batch, and return its tokens. After an exception, call `cancel_all`.

        On a GPU the step after is queued as well: what is added or cancelled from now on takes effect after that.

        Raises:
            OutOfMemoryError: the device has too little memory, even after all unused memory has been freed.

        >>> with rf.Engine(model) as engine:
        ...     requests = [engine.add([5, 6, token], rf.SamplingParams(max_tokens=1)) for token in (7, 8)]
        ...     len(engine.step())
        2
        """
        with self._together(), self._stream:
            step = self._pending or self._launch_first()
            self._pending = None
            if step is None:
                return []
            if isinstance(step, PendingStep):
                self._pending = self._launch_ahead()
            sampled = zip(step.requests, step.tokens(), strict=True)
            tokens = [self._accept(*pair) for pair in sampled if pair[0].status is not Status.FINISHED]
            if self._pending and not self._sampled(self._pending):
                self._pending = None
        self._count(step)
        return tokens

    def _count(self, step: PendingStep | HostStep) -> None:
        """Count a step that has ended, in the statistics and for the pacer."""
        previous, self._previous = self._previous, step if self._pending and isinstance(step, PendingStep) else None
        waited = step.waited(previous) if previous and isinstance(step, PendingStep) else 0.0
        self.stats.count(step.seconds, waited)
        decodes = sum(chunk.decodes for chunk in step.chunks)
        self._pacer.observe(step.seconds, decodes, sum(chunk.tokens for chunk in step.chunks) - decodes)

    def _launch_first(self) -> PendingStep | HostStep | None:
        """The next step, with none in flight."""
        if self._starved:
            self._free_unused_memory()
        try:
            return self._launch(sample=True)
        except OutOfMemoryError:
            if self._cards is not None:
                raise  # the others are in the middle of the step
            self._free_unused_memory()
            return self._launch(sample=True)

    def _launch_ahead(self) -> PendingStep | None:
        """The step after one that is in flight; None too if memory is short, which can be freed after that one."""
        try:
            step = self._launch()
        except OutOfMemoryError:
            if self._cards is not None:
                raise
            self._starved, step = True, None
        if not isinstance(step, PendingStep):
            return None
        return step if step.constrained or self._sampled(step) else None

    def _sampled(self, step: PendingStep) -> bool:
        """Queue the sampling of a step; False if memory is short, which can be freed after the step in flight."""
        try:
            with out_of_memory_explained(self.model.device, "step"):
                step.sample()
        except OutOfMemoryError:
            self._starved = True
        return not self._starved

    def _launch(self, sample: bool = False) -> PendingStep | HostStep | None:
        """Schedule the next step and queue it, with its sampling if asked; on a CPU, run it. None if none can run."""
        with out_of_memory_explained(self.model.device, "step"):
            reach = self.model.reach()
            if not same_reach(self._reach, reach):
                self._reach = reach
                if self._cards is not None:
                    self._cards.check_unchanged(self.model)
                self.scheduler.state.model_changed()
            chunks = self.scheduler.schedule(self._pacer)
            if not chunks:
                return None
            step = self._runner.launch(chunks) if self._runner else self._run_on_host(chunks)
            for chunk in chunks:
                self.scheduler.advance(chunk)
            if sample and isinstance(step, PendingStep):
                step.sample()
        return step

    def _run_on_host(self, chunks: list[ScheduledChunk]) -> HostStep:
        start = time.perf_counter()
        parts = [
            Chunk(chunk.start, chunk.tokens, state.tables, chunk.needs_logits, state.slot, chunk.request.lora)
            for chunk in chunks
            for state in (chunk.request.state,)
        ]
        ids = np.concatenate([chunk.request.tokens(chunk.start, chunk.stop) for chunk in chunks]).astype(np.int32)
        if self._cards is not None:
            self._cards.post("run", ids, parts)
        logits = self.model(ids, Batch.of(self._open_cache(), parts))
        requests = [chunk.request for chunk in chunks if chunk.needs_logits]
        sampled = sample_tokens(logits, requests)
        return HostStep(chunks, requests, sampled, time.perf_counter() - start)

    def _free_unused_memory(self) -> None:
        """Drop the graphs with their memory, and preempt all requests: a failed step leaves their state undefined.

        Nothing may be in flight.
        """
        self._stream.synchronize()
        self._previous, self._starved = None, False
        if self._runner:
            self._runner.trim()
        for request in self.scheduler.running[::-1]:
            self.scheduler.preempt(request)
        for request in self.scheduler.waiting:
            request.pending = 0  # tokens that never come

    def _accept(self, request: Request, sampled: SampledToken) -> Token:
        """Give a request its token."""
        if sampled.error:
            self.scheduler.finish(request)
            return Token(request, -1, None, "error", sampled.error)
        self.scheduler.accepted(request, sampled.token)
        reason = None
        if sampled.token in request.ends:
            reason = "stop"
        elif request.known >= request.max_length:
            reason = "length"
        if reason:
            self.scheduler.finish(request)
        return Token(request, sampled.token, sampled.logprobs, reason)
