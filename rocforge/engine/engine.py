"""Engine: the step loop. Schedule, run the model on a flat batch, sample, return tokens.

On a GPU, steps are queued one ahead of the tokens that the host has read. An engine belongs to the thread that calls
it. `with Engine(model) as engine` frees everything at the end, also after an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rocforge.device.memory import out_of_memory_explained, reserved_memory
from rocforge.device.streams import stream_after_current
from rocforge.engine.admission import Admission
from rocforge.engine.cache import EngineCache
from rocforge.engine.capacity import MAX_REQUESTS
from rocforge.engine.cards import Cards
from rocforge.engine.embedder import Embedder, Embedding
from rocforge.engine.host_step import HostRunner, HostStep
from rocforge.engine.pacing import INTER_TOKEN_MS, Pacer
from rocforge.engine.request import Constraint, Request, Status, Token
from rocforge.engine.sampler import SampledToken
from rocforge.engine.scheduler import Scheduler, counted
from rocforge.engine.stats import StepStats
from rocforge.engine.step import PendingStep, StepRunner
from rocforge.errors import OutOfMemoryError
from rocforge.nn.cache import KVCache
from rocforge.nn.reach import same_reach
from rocforge.nn.transformer import Transformer
from rocforge.ops.sampling import SamplingParams


class Engine:
    """Runs any number of requests on one model, with continuous batching over a paged cache.

    Args:
        model: its weights loaded.
        eog_token_ids: tokens that end a generation.
        cache_tokens: size of the KV cache in tokens, for all requests; None: on a GPU the free memory minus a margin
            and, on one card, what the largest step takes, as far as max_requests can use it; on a CPU the model's
            context, up to 16384. Layers with a window, and recurrent ones, get what max_requests running sequences
            need; less on a GPU where that does not fit, down to what one needs.
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
        if inter_token_ms is None:
            inter_token_ms = INTER_TOKEN_MS["cpu" if model.device == "cpu" else "gpu"]
        if not inter_token_ms > 0:
            raise ValueError(f"inter_token_ms is {inter_token_ms}; allowed is more than 0")
        self.model, self.eog_token_ids = model, frozenset(eog_token_ids)
        self._cards: Cards | None = getattr(model, "cards", None)
        self._stream = stream_after_current(model.device)  # by which the weights may have come
        self._runner: StepRunner | HostRunner | None = None
        self._pending: PendingStep | None = None
        self._previous: PendingStep | None = None
        self._starved = False
        self._reach: list[Any] | None = None
        self.stats = StepStats()
        with self._stream, out_of_memory_explained(model.device, "KV cache"):
            self._cache = cache = EngineCache(
                self._stream, model, (cache_type_k, cache_type_v), cache_tokens, max_batch_tokens, max_requests
            )
            if cache.step:
                self._runner = StepRunner(self._stream, model, cache.opened(), *cache.step)
            elif model.device == "cpu":
                self._runner = HostRunner(model, cache.opened())
            step_sizes = self._runner.sizes if self._runner else ()
            self.scheduler = Scheduler(cache.state, cache.max_batch_tokens, max_requests, step_sizes)
        self._pacer = Pacer(cache.max_batch_tokens, inter_token_ms / 1e3)
        self.cache_tokens, self.limit = cache.tokens, cache.limit
        self._admission = Admission(model, self.limit, self.eog_token_ids)
        self._embedder = Embedder(model, self._stream, self._admission)

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
            self._cache.close()
            self._runner = None

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
        return self._cache.blocks

    @property
    def cache(self) -> KVCache | None:
        """This card's arrays; None once the engine is closed."""
        return self._cache.arrays

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
        self._cache.opened()
        request = self._admission.request(prompt, params or SamplingParams(), constraint)
        self.scheduler.add(request)
        return request

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
        self._admission.check(prompt, params)

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
        return self._embedder.embed(prompts, lora)

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
        return self._embedder.score(prompts, top, lora)

    @property
    def pooling(self) -> str:
        """What `embed` makes of a prompt's hidden states, as `rf.embed` names it."""
        return self._embedder.pooling

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
        return reserved_memory(self.model.device) + (self._runner.memory_reserved if self._runner else 0)

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
            tokens = [self._accept(request, got) for request, got in sampled if request.status is not Status.FINISHED]
            if self._pending and not self._sampled(self._pending):
                self._pending = None
        self._count(step)
        return tokens

    def _count(self, step: PendingStep | HostStep) -> None:
        """Count a step that has ended, in the statistics and for the pacer."""
        previous, self._previous = self._previous, step if self._pending and isinstance(step, PendingStep) else None
        waited = step.waited(previous) if previous and isinstance(step, PendingStep) else 0.0
        self.stats.count(step.seconds, waited)
        decodes, tokens = counted(step.chunks)
        self._pacer.observe(step.seconds, decodes, tokens - decodes)

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
            assert self._runner is not None  # a model that only embeds has no requests
            step = self._runner.launch(chunks)
            for chunk in chunks:
                self.scheduler.advance(chunk)
            if sample and isinstance(step, PendingStep):
                step.sample()
        return step

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
        if reason := request.reason_to_finish:
            self.scheduler.finish(request)
        return Token(request, sampled.token, sampled.logprobs, reason)
